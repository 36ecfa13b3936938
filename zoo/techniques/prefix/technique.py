"""Prefix tuning (Li and Liang, 2021; P-Tuning v2): n learned keys and values in front of the real
ones in each self-attention.

In a block that runs at several depths (ALBERT) there is one prefix for all of them. The network
through which P is trained can be left behind: ``eject`` keeps P alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.extend import extend
from zoo.layers.feed_forward import check_activation
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model, bare_model
from zoo.techniques.base import PlacedTechnique, fresh
from zoo.techniques.prefix.layers import Prefix, Prefixed


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(PlacedTechnique):
    """``length`` keys and values for each self-attention; trained through a network of inner width
    ``bottleneck``, or themselves (None).

    shift_positions: the real tokens stand behind the prefix, at positions ``length`` and on, as
    ``peft`` has it; else they keep theirs.
    """

    length: int = 30  # keys and values ahead of the real ones
    bottleneck: int | None = 512  # inner width of the network that makes them
    activation: str = "tanh"  # of that network
    dropout: float = 0.0  # on the prefixes
    shift_positions: bool = False  # real tokens begin at position `length`
    name: str = "default"  # of the prefix

    def check(self) -> None:
        check_positive(self, "length")
        check_activation(self.activation)
        if "." in self.name or not self.name:
            raise ConfigError(f"a prefix's name can't hold a dot, got {self.name!r}")

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        attentions: list[Any] = [site.module for site in self.places(model, "self-attention")]
        for attention in attentions:
            if not hasattr(attention, "core"):
                raise TechniqueError(f"a {type(attention).__name__} has no core to put a prefix in front of")
        if self.name in getattr(model, "prefixes", {}):
            raise TechniqueError(f"the model has a prefix named {self.name!r} already; give this one another name")
        embeddings: Any = model.embeddings
        if self.shift_positions and not hasattr(embeddings, "first_position"):
            raise TechniqueError(f"the positions of {type(embeddings).__name__} can't be shifted")
        widths = [attention.key.out_features + attention.value.out_features for attention in attentions]
        like = attentions[0].key.weight
        made = Prefix(
            self.length, sum(widths), model.hidden_size, self.bottleneck, self.activation, dropout=self.dropout
        )
        prefix = fresh(made, like, model.config.initializer_range, generator).train(model.training)
        if not hasattr(model, "prefixes"):
            model.prefixes = nn.ModuleDict()
        holder: Any = model.prefixes
        holder[self.name] = prefix
        start = 0
        for attention, width in zip(attentions, widths, strict=True):
            core = attention.core
            if extend(core, Prefixed):
                core.prefixes = ()
            core.prefixes = (*core.prefixes, (prefix, start))
            start += width
        if self.shift_positions:
            embeddings.first_position += self.length
        return None


@torch.no_grad()
def eject(model: nn.Module, name: str = "default") -> None:
    """Replace a prefix's network by the P that it gives."""
    bare: Any = bare_model(model)
    old: Prefix = bare.prefixes[name]
    new = Prefix(old.eject().shape[0], old.width, 1)
    new.values = nn.Parameter(old.eject().clone())
    new.train(old.training)
    bare.prefixes[name] = new
    for part in bare.modules():
        if isinstance(part, Prefixed):
            part.prefixes = tuple((new if prefix is old else prefix, start) for prefix, start in part.prefixes)
    bare.techniques = tuple(
        replace(t, bottleneck=None, activation="tanh") if isinstance(t, PrefixTuning) and t.name == name else t
        for t in bare.techniques
    )
