"""BERT-of-Theseus: the forward pass for given draws, and its schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zoo
from tests.references.case import Adapter, Case
from zoo.techniques.theseus import ConstantReplacement, LinearReplacement, replacing


def patterns(case: Case) -> Mapping[str, Any]:
    config = {name: value for name, value in case.config.items() if name != "scc_n_layer"}
    count = case.config["scc_n_layer"]
    before = {name: tensor for name, tensor in case.weights.items() if "scc_layer" not in name}
    after = {name.replace("scc_layer", "layer"): t for name, t in case.weights.items() if "encoder.layer" not in name}
    model: Any = zoo.load(before, layout="hf-bert", config=config, task="sequence-classification")
    successor: Any = zoo.load(
        after, layout="hf-bert", config={**config, "num_hidden_layers": count}, task="sequence-classification"
    )
    zoo.apply(model, zoo.Theseus(layers=count))
    stack = model.model.encoder
    for index, block in zip(stack.plan, successor.model.encoder.blocks, strict=True):
        stack.blocks[index].load_state_dict(block.state_dict())
    found: dict[str, Any] = {}
    model.train()
    for number in range(2**count):
        draws = [int(bit) for bit in f"{number:0{count}b}"]
        with replacing(model, draws):
            output = model(**case.inputs)
        name = "".join(map(str, draws))
        found |= {f"loss.{name}": output.loss, f"logits.{name}": output.logits}
    output = model.eval()(**case.inputs)
    return {**found, "loss.eval_successor": output.loss, "logits.eval_successor": output.logits}


def schedules(case: Case) -> Mapping[str, Any]:
    items = []
    for item in case.given:
        rates: list[float] = []
        kind: Any = ConstantReplacement if item["kind"] == "constant" else LinearReplacement

        class Kept(kind):  # type: ignore[misc, valid-type]
            def _set(self, rate: float, rates: list[float] = rates) -> None:
                super()._set(rate)
                rates.append(rate)

        schedule = Kept(None, item["a"], item["b"])
        returned = [schedule.step() for _ in range(item["n"])]
        items.append({"set_calls": rates, "returned": returned})
    return {"items": items}


ADAPTERS: dict[str, Adapter] = {"BertForSequenceClassification": patterns, "ReplacementScheduler": schedules}
