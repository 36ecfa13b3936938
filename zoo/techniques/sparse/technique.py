"""Sparse attention as a technique: strided and fixed patterns (Child et al., 2019), sliding windows
with global tokens (Longformer, 2020).

The pattern stands at the core of self-attention and has no parameters, so any trained model takes
it and gives it back unchanged. The patterns of the paper are causal; an encoder sees both ways
unless ``causal`` says so. Positions are those of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zoo.errors import ConfigError
from zoo.layers.feed_forward import check_choice
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model
from zoo.techniques.base import PlacedTechnique, plain_attentions, put_core
from zoo.techniques.sparse.layers import SparseAttention
from zoo.techniques.sparse.patterns import Sparsity, fixed, local, strided, windowed

MIXES = ("merged", "heads", "layers")


@dataclass(frozen=True, kw_only=True)
class SparseTechnique(PlacedTechnique):
    """Base: subclasses say which patterns, and whether heads or layers take them in turn."""

    adds_tensors = False

    causal: bool = False  # a token sees those before it alone

    def patterns(self, heads: int, place: int) -> tuple[Sparsity, ...]:
        """The patterns that the heads of the ``place``-th attention take in turn."""
        raise NotImplementedError

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        attentions = plain_attentions(self, model, "it can't be made sparse on top")
        for place, attention in enumerate(attentions):
            put_core(attention, SparseAttention(*self.patterns(attention.num_heads, place)))
        return (f"{len(attentions)} attentions",)


@dataclass(frozen=True, kw_only=True)
class StridedAttention(SparseTechnique):
    """A window of ``stride`` tokens and every stride-th token: "merged" in each head, or by turns
    of "heads" or of "layers".
    """

    stride: int = 128  # width of the window and distance of the summary tokens
    mix: str = "merged"  # "merged", or by turns of "heads" or "layers"

    def check(self) -> None:
        check_positive(self, "stride")
        check_choice("mix", self.mix, MIXES)

    def patterns(self, heads: int, place: int) -> tuple[Sparsity, ...]:
        both = local(self.stride, causal=self.causal), strided(self.stride, causal=self.causal)
        if self.mix == "merged":
            return (both[0] | both[1],)
        return both if self.mix == "heads" else (both[place % 2],)


@dataclass(frozen=True, kw_only=True)
class FixedAttention(SparseTechnique):
    """The own stretch of ``stretch`` tokens and ``summary`` tokens of each stretch. With ``groups``
    > 1 the heads take runs of summary tokens in turn, counted from the stretch's end.
    """

    stretch: int = 128  # tokens of a stretch
    summary: int = 8  # tokens at its end that all see
    groups: int = 1  # runs of summary tokens that heads take in turn

    def check(self) -> None:
        check_positive(self, "stretch", "summary", "groups")
        if self.summary * self.groups > self.stretch:
            raise ConfigError(
                f"{self.groups} groups of {self.summary} summary tokens do not fit into a stretch of {self.stretch}"
            )

    def patterns(self, heads: int, place: int) -> tuple[Sparsity, ...]:
        return tuple(
            fixed(self.stretch, self.summary, group=group, causal=self.causal)
            for group in range(min(self.groups, heads))
        )


@dataclass(frozen=True, kw_only=True)
class SlidingWindow(SparseTechnique):
    """``radius`` neighbors on either side; the first ``global_tokens`` tokens see everyone and are
    seen by everyone.
    """

    radius: int = 64  # tokens on either side
    global_tokens: int = 0  # first tokens that see and are seen by all

    def check(self) -> None:
        if self.radius < 0 or self.global_tokens < 0:
            raise ConfigError(f"radius={self.radius} and global_tokens={self.global_tokens} can't be negative")

    def patterns(self, heads: int, place: int) -> tuple[Sparsity, ...]:
        return (windowed(self.radius, self.global_tokens, causal=self.causal),)
