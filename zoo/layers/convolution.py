"""Convolutions with batch norm over pictures, how their borders are padded, and grids of cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.layers.feed_forward import activation
from zoo.layers.outputs import Encoded
from zoo.layers.trace import Trace, chosen

Grid = Float[Tensor, "batch channels height width"]
NewGrid = Float[Tensor, "batch new_channels new_height new_width"]

Margins = Callable[[int, int, int], tuple[int, int]]
"""(size, kernel, stride) -> rows of zeros before the first row and behind the last; of columns alike."""


def halves(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Half a kernel on both sides, whatever the size: torch's usual ``padding=kernel // 2``."""
    return kernel // 2, kernel // 2


def same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: as little as gives ``ceil(size / stride)`` results, an odd row at the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)  # eq: same
    return total // 2, total - total // 2


def behind(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What SAME is for an even size, whatever the size: a row less in front where the stride is 2."""
    return (kernel - 1) // 2 - (stride > 1), kernel // 2


def padded(x: Grid, kernel: int, stride: int, margins: Margins, value: float = 0.0) -> NewGrid:
    """The grid with margins of ``value``, as a window of this size and stride wants it."""
    (top, bottom), (left, right) = (margins(size, kernel, stride) for size in x.shape[2:])
    if not torch.compiler.is_compiling() and min(x.shape[2] + top + bottom, x.shape[3] + left + right) < kernel:
        raise InputError(
            f"a grid of {x.shape[2]} x {x.shape[3]} cells is too small for a window of {kernel}: give larger pictures"
        )
    return F.pad(x, (left, right, top, bottom), value=value)


def widened(channels: int, factor: float, unit: int) -> int:
    """``channels`` times a factor, as the nearest multiple of ``unit`` that is not a tenth less."""
    wanted = channels * factor
    near = max(unit, int(wanted + unit / 2) // unit * unit)  # eq: width
    return near + unit if near < 0.9 * wanted else near  # eq: width


def deepened(blocks: Sequence[int], factor: float, fixed_ends: bool = False) -> tuple[int, ...]:
    """The blocks of each stage times a factor, rounded up; ``fixed_ends``: not those of the first and the last."""
    ends = (0, len(blocks) - 1) if fixed_ends else ()
    return tuple(n if stage in ends else max(1, math.ceil(factor * n)) for stage, n in enumerate(blocks))  # eq: depth


@dataclass(frozen=True, kw_only=True)
class ConvStyle:
    """What the convolutions of a network have in common."""

    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    activation: str = "relu"
    margins: Margins = halves  # of convolutions with a stride; without one they keep the grid's size


class BatchNorm(nn.BatchNorm2d):
    """Batch norm without torch's counter of batches, which nothing reads where a momentum is given: some files
    have one and others don't.
    """

    num_batches_tracked: None  # type: ignore[assignment]

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps, momentum)
        self.num_batches_tracked = None

    def reset_running_stats(self) -> None:
        """As if no batch had been seen."""
        self.running_mean.zero_()  # type: ignore[union-attr]
        self.running_var.fill_(1)  # type: ignore[union-attr]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *more: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, {**local_metadata, "version": 2}, *more)


class ConvNorm(nn.Module):
    """``act(norm(conv(x)))``: a convolution without bias, batch norm, and an activation unless
    ``activated`` is False.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style: ConvStyle,
        *,
        stride: int = 1,
        groups: int = 1,
        activated: bool = True,
    ) -> None:
        super().__init__()
        self.margins = None if stride == 1 or style.margins is halves else style.margins
        inner = kernel // 2 if self.margins is None else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, inner, groups=groups, bias=False)
        self.norm = BatchNorm(outputs, style.norm_eps, style.norm_momentum)
        self.activation = activation(style.activation if activated else "identity")

    def forward(self, x: Grid) -> NewGrid:
        if self.margins is not None:
            x = padded(x, self.conv.kernel_size[0], self.conv.stride[0], self.margins)
        return self.activation(self.norm(self.conv(x)))


class ConvStack(nn.Module):
    """Blocks over a grid, one after another; what enters the first and leaves each is kept in a trace."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Grid, trace: Trace) -> NewGrid:
        trace.hidden(x)
        for block in self.blocks:
            x = block(x)
            trace.hidden(x)
        return x


def rows_of(grid: Grid) -> Float[Tensor, "batch positions channels"]:
    """The cells of a grid row by row."""
    return grid.flatten(2).transpose(1, 2)


def encoded_grid(grid: Grid, trace: Trace) -> Encoded:
    """The result of a convolutional tower: its cells row by row, their mean, and the grids that were kept
    on the way alike. It has no attention, so no map is given.
    """
    kept = trace.hidden_states
    states = None if kept is None else tuple(map(rows_of, chosen(kept, trace.wanted[0], "output_hidden_states")))
    return Encoded(rows_of(grid), grid.mean((2, 3)), states, None if trace.attentions is None else ())  # eq: mean
