"""The lottery ticket's rounds of global magnitude pruning on a BERT classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import zoo
from tests.references.case import Adapter, Case
from zoo.techniques.lora.technique import LINEAR_ROLES
from zoo.techniques.pruning.weights import masked_parts, prune_more

NAMES = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
}


def their_name(path: str) -> str:
    """A matrix under the name that it has there."""
    if path == "pooler.dense":
        return "bert.pooler.dense.weight"
    _, _, index, part = path.split(".", 3)
    return f"bert.encoder.layer.{index}.{NAMES[part]}.weight"


def rounds(case: Case) -> Mapping[str, Any]:
    config = {name: value for name, value in case.config.items() if name != "rates"}
    model: Any = zoo.load(case.weights, layout="hf-bert", config=config, task="sequence-classification")
    zoo.apply(model, zoo.WeightPruning(sparsity=0.0, scope="across", roles=(*LINEAR_ROLES, "pooler")))
    found: dict[str, Any] = {}
    for number, rate in enumerate(case.config["rates"]):
        prune_more(model, rate)
        zeros = total = 0
        for path, part in masked_parts(model):
            found[f"mask.{number}.{their_name(path)}"] = part.mask
            zeros += int((part.masked_weight() == 0).sum())
            total += part.mask.numel()
        found[f"zero_rate.{number}"] = 100 * zeros / total
    return found


ADAPTERS: dict[str, Adapter] = {"pruning_model": rounds, "global-l1": rounds}
