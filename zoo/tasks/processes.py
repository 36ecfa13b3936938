"""The processes of a training run, as losses see them: which one this is, how many there are, and the
rows that all of them have.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """The number of this process, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def row_counts(rows: Tensor) -> list[int]:
    """How many rows each process has, in the order of the processes."""
    if world() == 1:
        return [rows.shape[0]]
    own = torch.tensor([rows.shape[0]], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(world())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


def gather_rows(rows: Tensor, counts: list[int] | None = None) -> Tensor:
    """The rows of every process, (all, ...) in the order of the processes, with gradients: what another
    process's loss says of this one's rows arrives here in the backward pass, which all processes run.

    counts: `row_counts`, where they are known; processes may have different numbers of rows.
    """
    if world() == 1:
        return rows
    found: Tensor = _Gather.apply(rows, row_counts(rows) if counts is None else counts)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.counts)[rank()], None
