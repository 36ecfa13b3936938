"""I-BERT: the integer operations, one after another (transformers' quant_modules)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.references.case import Adapter, Case
from zoo.techniques.quantization.integer import QuantAct, int_gelu, int_layer_norm, int_linear, int_softmax


def operations(case: Case) -> Mapping[str, Any]:
    config, weights = case.config, case.weights
    first, second = QuantAct(config["act_bit"]), QuantAct(config["act_bit"])
    x = case.inputs["x"]
    linear = {}
    for training in (True, False):  # the first call sets the ranges
        act, step = first.train(training)(x)
        bits, per_output = (config["weight_bit"], config["bias_bit"]), config["per_channel"]
        made, made_step = int_linear(
            act, step, weights["lin.weight"], weights["lin.bias"], *bits, per_output=per_output
        )
        narrow, narrow_step = second.train(training).requantize(made, made_step)
        linear = {"act": act, "act_scale": step.reshape(1), "linear": made, "linear_scale": made_step}
        linear |= {"requantized": narrow, "requantized_scale": narrow_step.reshape(1)}
    gelu, gelu_step = int_gelu(narrow, narrow_step)
    scores = case.inputs["scores"]
    most = 2 ** (config["act_bit"] - 1) - 1
    score_step = scores.abs().amax() / most
    given = torch.round(scores / score_step).clamp(-most, most) * score_step
    inner = QuantAct(16).eval()  # the range that lies in the file, whatever it is worth
    inner.low.copy_(weights["sm.act.x_min"].squeeze())
    inner.high.copy_(weights["sm.act.x_max"].squeeze())
    inner.step.fill_(1)
    softmax, softmax_step = int_softmax(given, score_step, inner, config["softmax_output_bit"])
    shift = weights["ln.shift"]
    norm, norm_step = int_layer_norm(narrow, narrow_step, weights["ln.weight"], weights["ln.bias"], shift)
    return linear | {
        "gelu": gelu,
        "gelu_scale": gelu_step.reshape(1),
        "softmax_input": given,
        "softmax": softmax,
        "softmax_scale": softmax_step.reshape(1),
        "layernorm": norm,
        "layernorm_scale": norm_step,
    }


ADAPTERS: dict[str, Adapter] = {"IntSoftmax": operations}
