"""Adaptive attention span (Sukhbaatar et al., 2019) for the self-attention of any model, by
distance to either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model
from zoo.techniques.adaptive_span.layers import AttentionSpan, SpanCore
from zoo.techniques.base import PlacedTechnique, fresh, plain_attentions, put_core


@dataclass(frozen=True, kw_only=True)
class AdaptiveSpan(PlacedTechnique):
    """Each head learns how far it looks, at most ``limit`` tokens to either side, over a ramp of
    ``ramp``; see `zoo.techniques.adaptive_span.layers`.

    start: where z begins, a share of the limit. coefficient: of the loss that `span_loss` gives.
    positions: a learned score for each distance. Call `clamp_spans` after each step of the
    optimizer.
    """

    limit: int = 512  # longest span to either side
    ramp: int = 32  # tokens over which a span fades out
    start: float = 0.0  # first span, as a share of the limit
    coefficient: float = 2e-6  # weight of the loss on spans
    positions: bool = False  # a learned score for each distance

    def check(self) -> None:
        check_positive(self, "limit", "ramp")
        if not 0 <= self.start <= 1:
            raise ConfigError(f"start={self.start} must lie in [0, 1]: it is a share of the limit")

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        for attention in plain_attentions(self, model, "spans can't be put on top"):
            span = AttentionSpan(attention.num_heads, self.limit, self.ramp, self.coefficient, self.start)
            core = SpanCore(span, attention.head_size if self.positions else None)
            put_core(attention, fresh(core, attention.query.weight, model.config.initializer_range, generator))
        return None


def spans_of(model: nn.Module) -> list[AttentionSpan]:
    """Every learned span of a model."""
    return [part for part in model.modules() if isinstance(part, AttentionSpan)]


def span_loss(model: nn.Module) -> Tensor:
    """The sum of ``coefficient · L · mean(z)`` over the layers, to be added to the model's loss."""
    return torch.stack([span.loss() for span in spans_of(model)]).sum()


def clamp_spans(model: nn.Module) -> None:
    """Put every z back into [0, 1]."""
    for span in spans_of(model):
        span.clamp()
