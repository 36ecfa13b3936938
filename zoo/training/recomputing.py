"""Gradient checkpointing: a block forgets what it computed on the way and computes it again when
gradients are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.layers.extend import Extension


class Checkpointed(Extension):
    """A block that keeps its inputs alone while training. Masks, streams and packed rows pass
    through as they are; dropout falls alike. What a pass moves, the ranges of a quantized model, is
    moved once: the second pass begins where the first did, and what came of it is put back.
    """

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs, **named)
        if torch.compiler.is_compiling() or not (moving := _moving(self)):  # type: ignore[arg-type]
            return checkpoint(super().forward, *inputs, use_reentrant=False, **named)
        before = [buffer.clone() for buffer in moving]
        return checkpoint(
            super().forward,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _holding(moving, before)),
            **named,
        )


def _moving(block: nn.Module) -> list[Tensor]:
    """The counts and ranges among a block's buffers, those of the parts that it borrows too; matrices
    among them are stored weights.
    """
    parts: dict[int, nn.Module] = {}
    waiting = [block]
    while waiting:
        part = waiting.pop()
        if id(part) not in parts:
            parts[id(part)] = part
            waiting += [*part.children(), *(value for value in vars(part).values() if isinstance(value, nn.Module))]
    found = {id(buffer): buffer for part in parts.values() for buffer in part.buffers(recurse=False)}
    return [buffer for buffer in found.values() if buffer.dim() < 2]


@contextmanager
def _holding(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the buffers begin with these values; then they are what they were."""
    now = [buffer.clone() for buffer in buffers]
    _put(buffers, values)
    try:
        yield
    finally:
        _put(buffers, now)


@torch.no_grad()
def _put(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
