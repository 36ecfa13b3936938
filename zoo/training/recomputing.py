"""Gradient checkpointing: a block forgets what it computed on the way and computes it again when
gradients are asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from zoo.layers.extend import Extension


class Checkpointed(Extension):
    """A block that keeps its inputs alone while training. Masks, streams and packed rows pass
    through as they are; dropout falls alike.
    """

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(*inputs, **named)
        return checkpoint(super().forward, *inputs, use_reentrant=False, **named)
