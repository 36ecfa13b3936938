"""Rounding to few bits: grids, rounding that lets gradients through, and codes packed into bytes.

    symmetric   s = max|w| / (2^(b-1) - 1),   q = round(w / s) in -(2^(b-1) - 1) .. 2^(b-1) - 1,   w ≈ s q
    min-max     s = (max w - min w) / (2^b - 1),   q = round((w - min w) / s) in 0 .. 2^b - 1,   w ≈ s q + min w

for each group of a weight matrix: all of it, each row (output), some rows together, or blocks of a
row. Ties go to the even code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ConfigError
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
            step = _positive(grouped.abs().amax(1)) / self.top  # eq: symmetric
            codes = torch.round(grouped / step[:, None]).clamp(-self.top, self.top)  # eq: symmetric
            return codes.view_as(weight), step, None
        low, high = grouped.aminmax(dim=1)  # eq: min-max
        step = _positive(high - low) / self.top  # eq: min-max
        codes = torch.round((grouped - low[:, None]) / step[:, None]).clamp(0, self.top)  # eq: min-max
        return codes.view_as(weight), step, low

    def values(self, codes: Tensor, step: Tensor, low: Tensor | None) -> Tensor:
        """What codes (rows, inputs) stand for."""
        grouped = codes.reshape(step.shape[0], -1).to(step.dtype) * step[:, None]  # eq: values
        return (grouped if low is None else grouped + low[:, None]).view_as(codes)  # eq: values

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
