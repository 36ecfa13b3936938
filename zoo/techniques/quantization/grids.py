"""Rounding to few bits: grids, rounding that lets gradients through, weights that are stored as
packed codes.

    symmetric   s = max|w| / (2^(b-1) - 1),   q = round(w / s) in -(2^(b-1) - 1) .. 2^(b-1) - 1,   w ≈ s q
    min-max     s = (max w - min w) / (2^b - 1),   q = round((w - min w) / s) in 0 .. 2^b - 1,   w ≈ s q + min w

for each group of a weight matrix: all of it, each row (output), some rows together, or blocks of a
row. Ties go to the even code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.inference.int8 import Int8Linear, random_int8
from zoo.layers.embeddings import check_ids
from zoo.layers.extend import Extension
from zoo.layers.init import truncated_normal
from zoo.techniques.straight_through import straight_through


@dataclass(frozen=True)
class Grid:
    """``bits`` and ``symmetric`` or min-max, for each group. rows: how many groups the rows fall
    into, 0 = one row each; block: inputs in a group, which then lies within a row. Where a number
    does not divide its axis, the next smaller that does is taken.
    """

    bits: int = 8
    symmetric: bool = True
    rows: int = 1
    block: int = 0

    def __post_init__(self) -> None:
        least = 2 if self.symmetric else 1
        if not least <= self.bits <= 8:
            raise ConfigError(f"bits must be {least} to 8, got {self.bits}")
        if self.rows < 0 or self.block < 0 or (self.block and self.rows):
            raise ConfigError(
                f"groups are of whole rows or of blocks in each row (rows=0), got rows={self.rows}, block={self.block}"
            )

    @property
    def top(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def groups(self, shape: torch.Size | tuple[int, ...]) -> int:
        """How many groups a matrix of this shape has."""
        outputs, inputs = shape
        if self.block:
            return outputs * (inputs // divisor(inputs, self.block))
        return outputs if self.rows == 0 else divisor(outputs, self.rows)

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(rows, inputs) -> whole-numbered codes of the same shape, and for each group its step
        and, min-max, its lowest value.
        """
        grouped = weight.detach().reshape(self.groups(weight.shape), -1)
        if self.symmetric:
            step = _positive(grouped.abs().amax(1)) / self.top
            codes = torch.round(grouped / step[:, None]).clamp(-self.top, self.top)
            return codes.view_as(weight), step, None
        low, high = grouped.aminmax(dim=1)
        step = _positive(high - low) / self.top
        codes = torch.round((grouped - low[:, None]) / step[:, None]).clamp(0, self.top)
        return codes.view_as(weight), step, low

    def values(self, codes: Tensor, step: Tensor, low: Tensor | None) -> Tensor:
        """What codes (rows, inputs) stand for."""
        grouped = codes.reshape(step.shape[0], -1).to(step.dtype) * step[:, None]
        return (grouped if low is None else grouped + low[:, None]).view_as(codes)

    def rounded(self, weight: Tensor) -> Tensor:
        """The nearest values of the grid, for the gradient as if nothing had been done."""
        return straight_through(weight, self.values(*self.codes(weight)))


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny * 256)


def divisor(size: int, most: int) -> int:
    """The largest divisor of ``size`` that is at most ``most``."""
    return next(n for n in range(min(size, most), 0, -1) if size % n == 0)


def symmetric_rounding(x: Tensor, largest: Tensor, bits: int = 8) -> Tensor:
    """``x`` on the grid of ``bits`` that ends at ±``largest``, a scalar; what lies beyond is cut.
    The gradient passes everywhere.
    """
    top = 2 ** (bits - 1) - 1
    scale = top / largest
    return straight_through(x, torch.round(x.detach() * scale).clamp(-top, top) / scale)


def range_rounding(x: Tensor, low: Tensor, high: Tensor, bits: int = 8, *, zero: bool = False) -> Tensor:
    """``x`` on the min-max grid from ``low`` to ``high`` (scalars or broadcast); no gradient where
    it was cut. zero: 0 is on the grid.
    """
    if zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
    step = _positive(high - low) / (2**bits - 1)
    if zero:
        low = torch.round(low / step) * step
        high = low + step * (2**bits - 1)
    inside = torch.minimum(torch.maximum(x, low), high)
    return straight_through(inside, torch.round((inside.detach() - low) / step) * step + low)


# --- packed codes


def pack(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers 0 .. 2^bits - 1, (rows, n), as bytes (rows, ceil(n · bits / 8)), the first in
    the lowest bits.
    """
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes
    single = codes[..., None] >> torch.arange(bits, dtype=torch.uint8, device=codes.device) & 1  # (rows, n, bits)
    flat = F.pad(single.flatten(1), (0, -codes.shape[1] * bits % 8)).unflatten(1, (-1, 8))
    return (flat << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(2, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` codes of each row back, uint8."""
    if bits == 8:
        return packed
    if 8 % bits == 0:
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        return (packed[..., None] >> shifts & (2**bits - 1)).flatten(1)[:, :count]
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    single = (packed[..., None] >> places & 1).flatten(1)[:, : count * bits].unflatten(1, (count, bits))
    return (single << places[:bits]).sum(2, dtype=torch.uint8)


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


def no_bias(part: nn.Module) -> None:
    """Set a part's bias to zero, where it has one."""
    bias = part._parameters.get("bias")
    if bias is not None:
        bias.zero_()


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
            check_ids(ids, self.num_embeddings, "ids")
        flat = ids.reshape(-1)
        rows, groups = self.num_embeddings, len(self.step)
        if groups >= rows:  # whole groups in a row
            which = (flat[:, None] * (groups // rows) + torch.arange(groups // rows, device=flat.device)).flatten()
        else:
            which = flat // (rows // groups)
        values = self._values(self.codes[flat], self.step[which], None if self.low is None else self.low[which])
        return values.view(*ids.shape, self.embedding_dim)


# --- training on a grid


class OnGrid(Extension):
    """A part whose ``weight`` is always seen on ``grid``; the parameter below it stays in floating
    point and learns.
    """

    grid: Grid

    def rest(self) -> Any:
        """The parameter itself."""
        return self._parameters["weight"]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.grid.rounded(self.rest())

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        truncated_normal(self.rest(), std, generator)
        no_bias(self)


class Followed(nn.Module):
    """Base of what follows the tensors that pass while training: scalars by ``names``, zero until
    the first update, and ``step``, the calls so far.
    """

    step: Tensor

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        for buffer in self.buffers(recurse=False):
            buffer.zero_()


class CallCount(Followed):
    """How often a part was called while training; ``start_step``: from which call on it is
    rounded.
    """

    def __init__(self, start_step: int) -> None:
        super().__init__()
        self.start_step = start_step


class LateTable(OnGrid):
    """A table that is on its grid from training call ``start_step`` on, and in eval."""

    calls: CallCount

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        rounded = self.grid.rounded(self.rest())
        return torch.where(self.calls.step < self.calls.start_step, self.rest(), rounded) if self.training else rounded

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = super().forward(ids)
        if self.training:
            self.calls.step.add_(1)
        return rows


class MovingRange(Followed):
    """The largest absolute value of what passes, followed while training: ``t <- t - (1 - decay)(t
    - max|x|)``, first of all max|x|.

    It is moved before the tensor is rounded. Calls before ``start_step`` only count. Until the
    first update there is no range and tensors pass as they are. With ``dynamic`` each tensor's own
    largest is taken and nothing is followed.
    """

    largest: Tensor

    def __init__(self, bits: int = 8, decay: float = 0.9999, start_step: int = 0, *, dynamic: bool = False) -> None:
        super().__init__("largest")
        self.bits, self.decay, self.start_step, self.dynamic = bits, decay, start_step, dynamic

    @property
    def top(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Follow one training call."""
        if not self.dynamic:
            now = x.detach().abs().amax().to(self.largest.dtype)
            moved = torch.where(
                self.step == self.start_step, now, self.largest - (1 - self.decay) * (self.largest - now)
            )
            self.largest.copy_(torch.where(self.step < self.start_step, self.largest, moved))
        self.step.add_(1)

    def range_of(self, x: Tensor) -> Tensor:
        """The largest value that is meant for ``x``, a scalar; 0 = none known."""
        return x.detach().abs().amax() if self.dynamic else self.largest.to(x.dtype, copy=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.observe(x)
        largest = self.range_of(x)
        return torch.where(largest > 0, symmetric_rounding(x, torch.where(largest > 0, largest, 1.0), self.bits), x)


class LowHigh(Followed):
    """Lowest and highest value of what passes, followed while training by ``momentum``; ``margin``:
    how far beyond the first call's values it begins.
    """

    low: Tensor
    high: Tensor
    margin: ClassVar[float] = 0.0

    def __init__(self, bits: int, momentum: float) -> None:
        super().__init__("low", "high")
        self.bits, self.momentum = bits, momentum

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Follow one training call."""
        for known, now, beyond in zip(
            (self.low, self.high), x.detach().aminmax(), (-self.margin, self.margin), strict=True
        ):
            now = now.to(known.dtype)
            moved = self.momentum * known + (1 - self.momentum) * now
            known.copy_(torch.where(self.step == 0, now + beyond, moved))
        self.step.add_(1)


class LowHighRange(LowHigh):
    """Rounding between the lowest and the highest value; frozen in eval; no gradient for what is
    cut.

    zero: 0 is exactly on the grid. Until the first update there is no range and tensors pass as
    they are.
    """

    def __init__(self, bits: int = 8, momentum: float = 0.9, *, zero: bool = False) -> None:
        super().__init__(bits, momentum)
        self.zero = zero

    def forward(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """counted: the values that the range is taken from, where not all of ``x`` are meant
        (masked scores).
        """
        if self.training:
            self.observe(x if counted is None else counted)
        low, high = self.low.to(x.dtype, copy=True), self.high.to(x.dtype, copy=True)  # a shared part moves them again
        return torch.where(self.step > 0, range_rounding(x, low, high, self.bits, zero=self.zero), x)


class OnGridLinear(OnGrid):
    """A linear layer with weights on a grid, inputs rounded by ``input_range`` and, where wanted,
    outputs by ``output_range``.
    """

    input_range: nn.Module
    output_range: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(self.input_range(x))  # type: ignore[misc]
        return y if self.output_range is None else self.output_range(y)


class SymmetricLinear(OnGrid):
    """The same with one symmetric range for inputs and one for outputs (Q8BERT): in eval it
    computes what its integers compute, the bias rounded to 32 bits of the product's step. Training
    calls before the inputs' ``start_step`` run in floating point.
    """

    input_range: MovingRange
    output_range: MovingRange | None

    def forward(self, x: Tensor) -> Tensor:
        bias: Tensor | None = self.bias  # type: ignore[assignment]
        early = self.input_range.step < self.input_range.start_step  # before this call is counted
        rounded = self.input_range(x)
        if bias is not None and not self.training:
            bias = torch.where(self.input_range.range_of(x) > 0, self.bias_step(x) * self.bias_codes(x), bias)
        y = F.linear(rounded, self.weight, bias)
        y = y if self.output_range is None else self.output_range(y)
        if self.training and self.input_range.start_step:
            y = torch.where(early, F.linear(x, self.rest(), bias), y)
        return y

    def bias_step(self, x: Tensor) -> Tensor:
        """The step of the integer product, with a range of 1 where none is known."""
        largest = self.input_range.range_of(x)
        _, step, _ = self.grid.codes(self.rest())
        return step[0] * torch.where(largest > 0, largest, 1.0) / self.input_range.top

    def bias_codes(self, x: Tensor) -> Tensor:
        """The bias in 32-bit integers, as floats."""
        assert isinstance(self.bias, Tensor)
        return torch.round(self.bias.detach() / self.bias_step(x)).clamp(-(2.0**31) + 1, 2.0**31 - 1)


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
