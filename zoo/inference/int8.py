"""Matrix multiplication in int8: weights with a scale for each output, activations with a scale for
each row, quantized dynamically.

    s_x = max_j |x_j| / 127,   q_x = round(x / s_x)                         for each row x
    y   = s_x · s_w · (q_w q_x) + b,   s_w = max_j |w_j| / 127              for each row w of W

The integer sum is exact, so the error is that of the two roundings alone.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.layers.feed_forward import activation


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row of (rows, size) as int8 in -127 .. 127, and its step, (rows, 1) float32: ``x ≈ step
    · q``. A row of zeros has step 1e-30.
    """
    step = x.abs().amax(-1, keepdim=True).float().clamp(min=127e-30) / 127
    return torch.round(x / step).to(torch.int8), step


def int8_product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, activation_name: str) -> Tensor:
    """x (rows, in) float; weight (out, in) int8; scale (out,) float32; bias (out,) -> ``act(W x +
    b)`` (rows, out), like x.
    """
    rounded, step = quantize_rows(x)
    exact = (
        torch._int_mm(rounded, weight.t()) if weight.shape[1] > 1 else rounded.int() * weight.int().t()
    )  # torch errs at one column
    made = exact.float() * step * scale
    made = made if bias is None else made + bias
    return activation(activation_name)(made).to(x.dtype)


@functools.cache
def compiled(function: Any) -> Any:
    """A function of this module with everything around its integer multiplication fused, for any
    number of rows. Needs a C++ compiler.
    """
    return torch.compile(function, dynamic=True, fullgraph=True)


def random_int8(weight: Tensor, scale: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill an int8 matrix and its steps with random weights within two of ``std``."""
    drawn = torch.empty(weight.shape, device=weight.device).normal_(0, 1, generator=generator).clamp(-2, 2)
    weight.copy_(torch.round(drawn * 63.5).to(torch.int8))
    scale.fill_(std / 63.5)


class Int8Linear(nn.Module):
    """A linear layer whose weights are int8 and whose product is one of integers. Not
    differentiable.

    ``weight`` (out, in) int8 and ``scale`` (out,) float32 with ``W ≈ scale · weight``; ``bias``
    (out,) float or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None, activation_name: str = "identity") -> None:
        super().__init__()
        if weight.dtype != torch.int8 or tuple(scale.shape) != (weight.shape[0],):
            found = f"{weight.dtype} {tuple(weight.shape)} and scale {tuple(scale.shape)}"
            raise InputError(f"Int8Linear takes an int8 weight (out, in) and a scale (out,), got {found}")
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.float())
        self.register_buffer("bias", bias)
        self.activation_name = activation_name
        self.product: Any = int8_product  # or its compiled form

    @classmethod
    def from_linear(cls, linear: nn.Linear, activation_name: str = "identity") -> Int8Linear:
        """Round a layer's weights, each output by its own largest; the step of a row of zeros is
        1e-30.
        """
        rounded, step = quantize_rows(linear.weight.detach().float())
        return cls(
            rounded, step.squeeze(1), None if linear.bias is None else linear.bias.detach().float(), activation_name
        )

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """Random weights within two of ``std``, no bias."""
        random_int8(self.weight, self.scale, std, generator)
        if self.bias is not None:
            self.bias.zero_()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.activation_name}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) float -> (..., out), like x."""
        rows = x.reshape(-1, self.in_features)
        if not rows.shape[0]:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        return self.product(rows, self.weight, self.scale, self.bias, self.activation_name).reshape(
            *x.shape[:-1], self.out_features
        )
