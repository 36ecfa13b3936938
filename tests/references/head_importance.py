"""Head importance in its two forms, which heads go by it, and their removal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.bert_lottery_ticket import their_name
from tests.references.case import Adapter, Case
from tests.references.text_models import at_real
from zoo.techniques.pruning.importance import head_importance, head_mask, heads_to_prune, masked_heads, scaled
from zoo.techniques.pruning.structured import remove_heads

OWN = (
    "batch_size",
    "dont_normalize_importance_by_layer",
    "dont_normalize_global_importance",
    "normalize_scores_by_layer",
    "masked_heads",
    "heads_to_prune",
    "use_head_mask",
)


def path_of(layer: object) -> str:
    return f"encoder.blocks.{layer}.attention"


def heads_of(stored: Mapping[str, list[int]]) -> dict[str, list[int]]:
    return {path_of(layer): heads for layer, heads in stored.items()}


def loaded(case: Case, task: str | None) -> Any:
    config = {name: value for name, value in case.config.items() if name not in OWN}
    return zoo.load(case.weights, layout="hf-bert", config=config, task=task).eval()


def batches(case: Case, names: Mapping[str, str]) -> list[dict[str, Tensor]]:
    size = case.config["batch_size"]
    count = len(next(iter(case.inputs.values())))
    return [
        {ours: case.inputs[theirs][at : at + size] for ours, theirs in names.items()} for at in range(0, count, size)
    ]


def stacked(scores: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(scores.values())).float()


def michel(case: Case) -> Mapping[str, Any]:
    model = loaded(case, "sequence-classification")
    names = {
        "input_ids": "input_ids",
        "attention_mask": "input_mask",
        "token_type_ids": "segment_ids",
        "labels": "label_ids",
    }
    masked = heads_of(case.config["masked_heads"])
    mask, by_layer = head_mask(model, masked), case.config["normalize_scores_by_layer"]
    scores = head_importance(model, batches(case, names), mask=mask, by_layer=by_layer, as_published=True)
    with masked_heads(model, masked):
        logits = model(**{ours: case.inputs[theirs] for ours, theirs in names.items() if ours != "labels"}).logits
    return {"head_importance": stacked(scores.importance), "logits": logits}


def bertology(case: Case) -> Mapping[str, Any]:
    model = loaded(case, "sequence-classification")
    found: dict[str, Any] = {}
    masks: dict[str, dict[str, Tensor] | None] = {"": None}
    if "head_mask" in case.inputs:
        masks["_masked"] = {path_of(n): row for n, row in enumerate(case.inputs["head_mask"])}
    for suffix, mask in masks.items():
        scores = head_importance(
            model,
            batches(case, {name: name for name in ("input_ids", "attention_mask", "token_type_ids", "labels")}),
            form="batch",
            mask=mask,
            by_layer=not case.config["dont_normalize_importance_by_layer"],
            as_published=True,
            entropy=True,
        )
        importance = scores.importance
        if not case.config["dont_normalize_global_importance"]:
            importance = scaled(importance)
        assert scores.entropy is not None
        found |= {
            f"head_importance{suffix}": stacked(importance),
            f"attn_entropy{suffix}": stacked(scores.entropy),
        }
    return found


def prune_heads(case: Case) -> Mapping[str, Any]:
    model = loaded(case, None)
    inputs = {name: case.inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    real = inputs["attention_mask"].bool()
    heads = heads_of(case.config["heads_to_prune"])
    before = model.num_parameters()
    full = model(**inputs).last_hidden_state
    with masked_heads(model, heads):
        masked = model(**inputs).last_hidden_state
    remove_heads(model, heads)
    pruned: dict[str, Tensor] = {}
    for layer in case.config["heads_to_prune"]:
        for part in ("query", "key", "value", "output"):
            path = f"{path_of(layer)}.{part}"
            name = their_name(path).removeprefix("bert.").removesuffix(".weight")
            pruned |= {f"pruned_weight.{name}.{kind}": t for kind, t in model.get_submodule(path).named_parameters()}
    after = model(**inputs).last_hidden_state
    outputs = {"full": full, "masked": masked, "pruned": after}
    return {
        **{name: at_real(value, real) for name, value in outputs.items()},
        "num_parameters": [before, model.num_parameters()],
        **pruned,
    }


def what_to_prune(case: Case) -> Mapping[str, Any]:
    scores = {
        str(layer): torch.tensor(row, dtype=torch.float64) for layer, row in enumerate(case.given["head_importance"])
    }
    return {
        "items": [
            heads_to_prune(
                scores,
                item["n_to_prune"],
                item["to_prune"],
                least=item["at_least_x_heads_per_layer"],
                by_number=item["rescale_by_number"],
            )
            for item in case.given["items"]
        ]
    }


ADAPTERS: dict[str, Adapter] = {
    "calculate_head_importance": michel,
    "compute_heads_importance": bertology,
    "BertModel.prune_heads": prune_heads,
    "what_to_prune": what_to_prune,
}
