"""Parts that train on a grid: weights that are seen rounded, and ranges that follow what passes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.extend import Extension
from zoo.layers.init import truncated_normal
from zoo.techniques.quantization.grids import Grid, range_rounding, symmetric_rounding


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
            now = x.detach().abs().amax().to(self.largest.dtype)  # eq: moving
            moved = torch.where(  # eq: moving
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


def no_bias(part: nn.Module) -> None:
    """Set a part's bias to zero, where it has one."""
    bias = part._parameters.get("bias")
    if bias is not None:
        bias.zero_()


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
