"""Parts whose weights are stored as integers: packed codes that are written out for each product, and
int8 that multiplies as int8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.inference.int8 import Int8Linear, random_int8
from zoo.layers.embeddings import check_ids
from zoo.techniques.quantization.grids import Grid, pack, unpack
from zoo.techniques.quantization.trained import OnGrid, SymmetricLinear, no_bias


class _Coded(nn.Module):
    """The matrix of a layer or table as packed ``codes`` (rows, bytes), with ``step`` and, min-max,
    ``low`` of each group. A part that is seen on a grid gives its own parameter.
    """

    codes: Tensor
    step: Tensor
    low: Tensor | None

    def __init__(self, part: Any, grid: Grid) -> None:
        nn.Module.__init__(self)
        weight: Tensor = (part.rest() if isinstance(part, OnGrid) else part.weight).detach()
        self.grid, self.shape, self.lowest = grid, tuple(weight.shape), -grid.top if grid.symmetric else 0
        for name, tensor in self._coded(weight).items():
            self.register_buffer(name, tensor)

    def _coded(self, weight: Tensor) -> dict[str, Tensor | None]:
        codes, step, low = self.grid.codes(weight)
        return {"codes": pack(codes - self.lowest, self.grid.bits), "step": step, "low": low}

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """Random weights, rounded."""
        weight = self.step.new_empty(self.shape).normal_(0, std, generator=generator)
        for name, tensor in self._coded(weight.clamp(-2 * std, 2 * std)).items():
            if tensor is not None:
                getattr(self, name).copy_(tensor)
        no_bias(self)

    @property
    def weight(self) -> Tensor:
        """The whole matrix, made anew each time."""
        return self._values(self.codes, self.step, self.low)

    def _values(self, packed: Tensor, step: Tensor, low: Tensor | None) -> Tensor:
        codes = unpack(packed, self.grid.bits, self.shape[1]).to(step.dtype)
        return self.grid.values(codes + self.lowest, step, low)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, bits={self.grid.bits}, groups={len(self.step)}"


class CodedLinear(_Coded, nn.Linear):  # type: ignore[misc, override]
    """A linear layer with few-bit weights: they are written out in floating point for each product.
    The bias stays as it was.
    """

    def __init__(self, linear: nn.Linear, grid: Grid) -> None:
        super().__init__(linear, grid)
        self.out_features, self.in_features = self.shape
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class CodedEmbedding(_Coded):
    """A table with few-bit rows; only the rows asked for are written out."""

    def __init__(self, table: nn.Embedding, grid: Grid) -> None:
        super().__init__(table, grid)
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx = table.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int -> (..., width)."""
        if ids.dim() == 2:
            ids = check_ids(ids, self.num_embeddings, "ids")
        flat = ids.reshape(-1)
        rows, groups = self.num_embeddings, len(self.step)
        if groups >= rows:  # whole groups in a row
            which = (flat[:, None] * (groups // rows) + torch.arange(groups // rows, device=flat.device)).flatten()
        else:
            which = flat // (rows // groups)
        values = self._values(self.codes[flat], self.step[which], None if self.low is None else self.low[which])
        return values.view(*ids.shape, self.embedding_dim)


class Int8StaticLinear(nn.Module):
    """The integers of a layer trained with moving ranges: one step for the weights, one for the
    inputs, the bias in 32 bits.

    ``y = (q_w q_x + q_b) s_w s_x``, then rounded to the outputs' range where it was trained so.
    """

    weight: Tensor
    bias: Tensor | None
    weight_step: Tensor
    input_largest: Tensor
    output_largest: Tensor | None

    def __init__(self, linear: Any) -> None:
        super().__init__()
        raw = linear.rest()
        self.out_features, self.in_features = raw.shape
        ranged = linear.output_range
        self.top, self.output_top = linear.input_range.top, 0 if ranged is None else ranged.top
        codes, step, _ = linear.grid.codes(raw)
        self.register_buffer("weight", codes.to(torch.int8))
        self.register_buffer("weight_step", step[0].float())
        self.register_buffer("input_largest", linear.input_range.largest.float())
        self.register_buffer("output_largest", None if ranged is None else ranged.largest.float())
        bias = None
        if linear.bias is not None:
            joint = self.weight_step * self.input_largest / self.top
            limit = 2.0**31 - 1
            bias = torch.round(linear.bias.detach().double() / joint).clamp(-limit, limit).to(torch.int32)
        self.register_buffer("bias", bias)

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """Random weights and a range of one for what enters and leaves."""
        random_int8(self.weight, self.weight_step, std, generator)
        for range_ in (self.input_largest, self.output_largest):
            if range_ is not None:
                range_.fill_(1)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), like x."""
        rows = x.reshape(-1, self.in_features).float()
        codes = torch.round(rows * (self.top / self.input_largest)).clamp(-self.top, self.top).to(torch.int8)
        if not rows.shape[0]:
            return x.new_zeros(*x.shape[:-1], self.out_features)
        product = torch._int_mm(codes, self.weight.t()) if self.in_features > 1 else codes.int() * self.weight.int().t()
        whole = product if self.bias is None else product + self.bias
        y = whole.float() * (self.weight_step * (self.input_largest / self.top))
        if self.output_largest is not None:
            scale = self.output_top / self.output_largest
            y = torch.round(y * scale).clamp(-self.output_top, self.output_top) / scale
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)


def int8_of(linear: Any) -> nn.Module:
    """The executing form of a linear layer: of one trained with moving ranges its own integers, of
    any other ones made now.
    """
    if isinstance(linear, SymmetricLinear):
        if not linear.input_range.dynamic:
            return Int8StaticLinear(linear)
        codes, step, _ = linear.grid.codes(OnGrid.rest(linear))
        bias = None if linear.bias is None else linear.bias.detach().float()  # type: ignore[operator]
        return Int8Linear(codes.to(torch.int8), step.float().expand(len(codes)).contiguous(), bias)
    return Int8Linear.from_linear(linear)
