"""Long-short range attention (Wu et al., 2020) in place of self-attention: the layer starts anew,
since its channels split in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.attention import Attention
from zoo.layers.extend import own_class
from zoo.models.base.model import Model
from zoo.techniques.base import PlacedTechnique, fresh, has_plain_core
from zoo.techniques.long_short.layers import DynamicKernel, Gated, LearnedKernel, LocalConvolution, LongShortAttention


@dataclass(frozen=True, kw_only=True)
class LongShortRange(PlacedTechnique):
    """``share`` of the channels attends with that share of the heads, the rest convolves over
    kernels of ``widths``, in turn by layer.

    dynamic, glu, softmax: see `zoo.techniques.long_short.layers`; clean: padding changes nothing.
    """

    share: float = 0.5  # of channels and heads that attend
    widths: tuple[int, ...] = (3, 7, 15, 31)  # of the kernels, in turn by layer
    dynamic: bool = True  # kernels computed from each token
    glu: bool = True  # gate the input of the convolution
    softmax: bool = True  # normalize the kernels
    dropout: float = 0.0  # on the kernels
    clean: bool = True  # padding changes nothing

    def check(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share={self.share} must lie between 0 and 1")
        if not self.widths or min(self.widths) < 1:
            raise ConfigError(f"widths={self.widths} must be one number or more, each at least 1")

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        sites = self.places(model, "self-attention")
        plans = []
        for site in sites:
            old: Any = site.module
            if own_class(old) is not Attention or not has_plain_core(old):
                raise TechniqueError(
                    f"{site.path} is a {own_class(old).__name__} of its own kind; it has no two halves of one width"
                )
            sizes = {old.query.in_features, old.key.in_features, old.value.in_features, old.output.out_features}
            heads = round(self.share * old.num_heads)
            if len(sizes) > 1 or not 0 < heads < old.num_heads:
                raise TechniqueError(
                    f"{site.path} reads widths {sorted(sizes)} with {old.num_heads} heads; they can't be split in two"
                )
            if getattr(old, "also_at", ()):
                raise TechniqueError(f"{site.path} is shared by several layers; exchange it before sharing")
            plans.append((site, sizes.pop(), heads))
        for place, (site, size, heads) in enumerate(plans):
            attention: Any = site.module
            head = size // attention.num_heads
            long = heads * head
            made = LongShortAttention(
                Attention(long, heads, head_size=head, dropout=attention.dropout),
                self.convolution(size - long, attention.num_heads - heads, self.widths[place % len(self.widths)]),
                long,
            )
            site.replace(
                fresh(made, attention.query.weight, model.config.initializer_range, generator).train(attention.training)
            )
        return ("the exchanged layers start anew: their channels are split in two",)

    def convolution(self, size: int, num_heads: int, width: int) -> LocalConvolution:
        """The half of a layer that convolves."""
        if self.dynamic:
            kernel: Any = DynamicKernel(size, num_heads, width, softmax=self.softmax, dropout=self.dropout)
        else:
            kernel = LearnedKernel(num_heads, width, softmax=self.softmax, dropout=self.dropout)
        return LocalConvolution(
            size, kernel, Gated(size) if self.glu else nn.Linear(size, size), nn.Linear(size, size), clean=self.clean
        )
