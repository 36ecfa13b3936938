"""The libraries ``adapters`` and ``peft`` around a BERT: their whole state, as our model with techniques."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import zoo
from tests.adapters.case import Case
from tests.adapters.text_models import at_real, real_of
from zoo.techniques import foreign


def base_config(case: Case) -> dict[str, Any]:
    """The BERT below; what the case leaves out is Hugging Face's default."""
    defaults = {"model_type": "bert", "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return {**defaults, **case.config["bert"]}


def fused_names(case: Case) -> tuple[str, ...]:
    """``Fuse[a, b]`` -> ("a", "b")."""
    inside = str(case.config["active"]).partition("[")[2].rstrip("]")
    return tuple(name.strip() for name in inside.split(","))


def answers(case: Case, model: Any, **named: Any) -> dict[str, Any]:
    """States and pooled vector under the names of the cases. A gate of the reference averages over padding too: it runs unpacked."""
    inputs = {name: case.inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in case.inputs}
    with torch.no_grad(), zoo.packing(False):
        result = model.eval()(**inputs, **named, output_hidden_states=True)
    real = real_of(case)
    encoded = getattr(result, "encoded", None) or result
    outputs = {f"hidden.{i}": at_real(state, real) for i, state in enumerate(encoded.hidden_states)}
    outputs["last_hidden_state"] = at_real(encoded.last_hidden_state, real)
    if encoded.pooler_output is not None:
        outputs["pooled"] = encoded.pooler_output
    for name in ("logits", "loss"):
        if getattr(result, name, None) is not None:
            outputs[name] = getattr(result, name)
    return outputs


def with_adapters(case: Case) -> Any:
    """``adapters.init(BertModel)`` with its adapters, and what is active."""
    base, own = foreign.split_adapters(case.weights)
    model = zoo.load(base, config=base_config(case))
    configs: Mapping[str, Any] = case.config["adapters"]
    fusion = None
    if case.config.get("fusion"):
        fusion = (fused_names(case), case.config["fusion"])
    model = foreign.from_adapters(model, own, configs, layout="hf-bert", fusion=fusion)
    active = str(case.config["active"])
    kind, _, inside = active.partition("[")
    if kind in ("Stack", "Average"):
        zoo.apply(model, zoo.ActiveAdapters(names=tuple(n.strip() for n in inside.rstrip("]").split(",")), how=kind.lower()))
    elif kind in configs and len(configs) > 1:
        zoo.apply(model, zoo.ActiveAdapters(names=(kind,)))
    return model


def adapters_case(case: Case) -> dict[str, Any]:
    return answers(case, with_adapters(case))


def peft_linear(case: Case) -> dict[str, Any]:
    base, own = foreign.split_peft(case.weights)
    task = "sequence-classification" if any(name.startswith("classifier.") for name in base) else None
    options = {"num_labels": int(base["classifier.weight"].shape[0])} if task else {}
    model = zoo.load(base, config=base_config(case), task=task, **options)
    model = foreign.from_peft(
        model, {k: v for k, v in own.items() if ".lora_" in k or ".ia3_l" in k}, case.config["peft"], layout="hf-bert"
    )
    labels = {"labels": case.inputs["labels"]} if "labels" in case.inputs else {}
    return answers(case, model, **labels)


def peft_prefix(case: Case) -> dict[str, Any]:
    base, own = foreign.split_peft(case.weights)
    config = {"peft_type": "PREFIX_TUNING", **case.config, **case.config.get("peft", {})}
    task = "sequence-classification" if "classifier.weight" in base else None
    options = {"num_labels": int(base["classifier.weight"].shape[0])} if task else {}
    model = zoo.load(base, config=base_config(case), task=task, **options)
    model = foreign.from_peft(model, {k: v for k, v in own.items() if "prompt_e" in k}, config, layout="hf-bert")
    labels = {"labels": case.inputs["labels"]} if "labels" in case.inputs else {}
    bare = getattr(model, "model", model)
    return {**answers(case, model, **labels), "prefix": bare.prefixes["default"].eject()}
