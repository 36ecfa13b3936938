"""Movement pruning's masked layers, its schedule and its penalties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.references.case import Adapter, Case
from zoo.layers.extend import extend
from zoo.techniques.pruning.masks import HardConcrete, MaskedLayer, ScoredLayer, top_mask
from zoo.techniques.pruning.weights import METHODS, score_penalty, threshold_at

OURS = {"topK": "top", "threshold": "threshold", "sigmoied_threshold": "sigmoid-threshold"}  # spelt as there


def masked_linear(case: Case) -> Mapping[str, Any]:
    config = case.config
    layer: Any = nn.Linear(config["in_features"], config["out_features"], bias="bias" in case.weights)
    layer.load_state_dict({name: case.weights[name] for name in ("weight", "bias") if name in case.weights})
    shape, method = tuple(layer.weight.shape), config["pruning_method"]
    if method == "magnitude":
        extend(layer, MaskedLayer)
        layer.register_buffer(
            "mask", top_mask(layer.weight.abs(), int(config["threshold"] * layer.weight.numel())), persistent=False
        )
    else:
        kind = HardConcrete if method == "l0" else METHODS[OURS[method]]
        extend(layer, ScoredLayer)
        layer.gate = kind(shape, 0.0, config["threshold"])
        layer.gate.scores.data.copy_(case.weights["mask_scores"])
    layer.eval()
    x = case.inputs["x"].clone().requires_grad_()
    out = layer(x)
    out.backward(case.inputs["upstream"])
    found: dict[str, Tensor] = {
        "out": out,
        "effective_weight": layer.masked_weight(),
        "grad_input": x.grad,
        "grad_weight": layer.weight.grad,
    }
    found |= {} if layer.bias is None else {"grad_bias": layer.bias.grad}
    return found if method == "magnitude" else {**found, "grad_mask_scores": layer.gate.scores.grad}


def schedule(case: Case) -> Mapping[str, Any]:
    given = case.given
    return {
        "items": [
            [
                list(
                    threshold_at(
                        step,
                        total=item["total_step"],
                        warmup=item["warmup_steps"],
                        initial=item["initial_threshold"],
                        final=item["final_threshold"],
                        initial_warmup=item["initial_warmup"],
                        final_warmup=item["final_warmup"],
                        final_penalty=item["final_lambda"],
                    )
                )
                for step in given["steps"]
            ]
            for item in given["items"]
        ]
    }


def regularization(case: Case) -> Mapping[str, Any]:
    scores = {
        name.split(".")[0]: t.clone().requires_grad_()
        for name, t in case.weights.items()
        if name.endswith("mask_scores")
    }
    losses = {kind: score_penalty(list(scores.values()), kind) for kind in ("l1", "l0")}
    found: dict[str, Any] = dict(losses)
    for kind, loss in losses.items():
        grads = torch.autograd.grad(loss, list(scores.values()))
        found.update({f"grad_{kind}_{name}": grad for name, grad in zip(scores, grads, strict=True)})
    return found


ADAPTERS: dict[str, Adapter] = {
    "masked_nn.MaskedLinear": masked_linear,
    "schedule_threshold": schedule,
    "regularization": regularization,
}
