"""Q8BERT: a linear layer and a table in training and in eval (IntelLabs/nlp-architect)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tests.references.case import Adapter, Case
from zoo.techniques.quantization.stored import int8_of
from zoo.techniques.quantization.technique import Q8Bert


def technique(config: Mapping[str, Any]) -> Q8Bert:
    return Q8Bert(
        bits=config["weight_bits"],
        activation_bits=config.get("activation_bits", 8),
        mode=config["mode"],
        decay=config.get("ema_decay", 0.9999),
        start_step=config.get("start_step", 0),
    )


def linear(case: Case) -> Mapping[str, Any]:
    config = case.config
    layer = nn.Linear(config["in_features"], config["out_features"], bias="bias" in case.weights)
    layer.load_state_dict({name: case.weights[name] for name in ("weight", "bias") if name in case.weights})
    technique(config).on_linear(layer, requantize=config["requantize_output"])
    made: Any = layer.train()
    outputs: dict[str, Any] = {}
    steps = sorted(int(name[1:]) for name in case.inputs if name[1:].isdigit() and name[0] == "x")
    for step in steps[:-1]:
        x = case.inputs[f"x{step}"].clone().requires_grad_()
        layer.zero_grad()
        y = layer(x)
        (y * case.inputs["upstream"]).sum().backward()
        outputs |= {
            f"train_out.{step}": y,
            f"grad_input.{step}": x.grad,
            f"grad_weight.{step}": made.rest().grad.clone(),
        }
        outputs |= {} if layer.bias is None else {f"grad_bias.{step}": layer.bias.grad.clone()}  # type: ignore[union-attr]
        outputs |= {f"input_thresh.{step}": made.input_range.largest.clone().reshape(1)}
        ranged = made.output_range
        outputs |= {f"output_thresh.{step}": torch.zeros(1) if ranged is None else ranged.largest.clone().reshape(1)}
    x = case.inputs[f"x{steps[-1]}"]
    codes, weight_step, _ = made.grid.codes(made.rest())
    layer.eval()
    outputs |= {"quantized_weight": codes, "weight_scale": 1 / weight_step[0]}
    if config["mode"] == "ema":  # the integers that run, which training must agree with
        outputs["eval_out"] = int8_of(made)(x)
        if layer.bias is not None:
            outputs |= {"bias_scale": 1 / made.bias_step(x).reshape(1), "quantized_bias": made.bias_codes(x)}
        assert torch.allclose(outputs["eval_out"], layer(x), atol=1e-5)
    else:
        outputs["eval_out"] = layer(x)
    return outputs


def embedding(case: Case) -> Mapping[str, Any]:
    config = case.config
    table = nn.Embedding(config["num_embeddings"], config["embedding_dim"], config.get("padding_idx"))
    table.load_state_dict({"weight": case.weights["weight"]})
    technique(config).on_embedding(table)
    made: Any = table.train()
    out = table(case.inputs["ids"])
    (out * case.inputs["upstream"]).sum().backward()
    codes, step, _ = made.grid.codes(made.rest())
    return {
        "train_out": out,
        "grad_weight": made.rest().grad,
        "eval_out": table.eval()(case.inputs["ids"]),
        "quantized_weight": codes,
        "weight_scale": 1 / step[0],
    }


ADAPTERS: dict[str, Adapter] = {"QuantizedLinear": linear, "QuantizedEmbedding": embedding}
