"""Depth is a plan: which block runs at each step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from zoo.errors import ConfigError
from zoo.layers.masks import Mask
from zoo.layers.shapes import Bias, Rows
from zoo.layers.trace import Trace


class Stack(nn.Module):
    """Blocks and a plan of indexes: ``range(12)`` is BERT, ``(0,) * 12`` is ALBERT, ``range(0, 12,
    2)`` a truncated student.

    A block may itself be a stack (ALBERT's groups of several inner blocks). Where a trace is kept,
    what leaves each innermost block is added.
    """

    def __init__(self, blocks: Sequence[nn.Module], plan: Sequence[int] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.plan = tuple(range(len(blocks)) if plan is None else plan)
        if not self.plan or not all(0 <= index < len(blocks) for index in self.plan):
            raise ConfigError(f"a plan must hold indexes of its {len(blocks)} blocks, got {self.plan}")
        if unused := sorted(set(range(len(blocks))) - set(self.plan)):
            raise ConfigError(f"the plan {self.plan} never runs block {', '.join(map(str, unused))}; leave it out")

    def forward(self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None) -> Rows:
        for index in self.plan:  # eq: plan
            block = self.blocks[index]
            x = block(x, mask, bias, trace)
            if trace is not None and not isinstance(block, Stack):
                trace.hidden(x)
        return x
