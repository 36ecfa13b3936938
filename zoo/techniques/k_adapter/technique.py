"""K-Adapter (Wang et al., 2021): adapters beside a frozen model, several at once, each trained on
knowledge of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.blocks import bert_block
from zoo.layers.extend import extend
from zoo.layers.feed_forward import check_activation, check_choice
from zoo.layers.stack import Stack
from zoo.models.base.config import check_heads, check_positive
from zoo.models.base.model import Model
from zoo.models.base.text_encoder import TextEncoder
from zoo.techniques.base import Technique, fresh
from zoo.techniques.k_adapter.layers import KnowledgeAdapter, KnowledgeFusion, WithKnowledge


@dataclass(frozen=True, kw_only=True)
class KAdapter(Technique):
    """Adapters named ``names`` that read the hidden states number ``taps`` (0 is what enters the
    first block; empty: first, middle, last).

    Each tap has an encoder of its own: width ``size``, ``num_layers`` blocks. fusion: "concat" or
    "add", see `zoo.techniques.k_adapter.layers`. Padding is hidden inside the adapters; the
    reference shows it there: a (batch, query, key) attention_mask, in which every position sees the
    real ones, gives its numbers.
    """

    names: tuple[str, ...] = ("factual",)  # one adapter each
    taps: tuple[int, ...] = ()  # hidden states that an adapter reads
    size: int = 768  # width of an adapter's encoder
    num_layers: int = 2  # blocks at each tap
    num_heads: int = 12  # heads of those blocks
    intermediate_size: int = 3072  # inner width of their feed-forward
    activation: str = "gelu"  # of that feed-forward
    norm_eps: float = 1e-5  # of their norms
    skip: int = 0  # an earlier result is added after every skip-th tap; 0: never
    fusion: str = "concat"  # "concat" or "add"
    dropout: float = 0.1  # inside the adapters

    def check(self) -> None:
        check_positive(self, "size", "num_layers", "num_heads", "intermediate_size")
        check_heads(self.size, self.num_heads, "size")
        check_activation(self.activation)
        check_choice("fusion", self.fusion, ("concat", "add"))
        if not self.names or len(set(self.names)) < len(self.names) or any("." in name for name in self.names):
            raise ConfigError(f"names must be different names without dots, at least one, got {self.names}")

    def encoder(self) -> Stack:
        """What runs at one tap."""
        blocks = [
            bert_block(
                self.size,
                self.num_heads,
                self.intermediate_size,
                activation=self.activation,
                norm_eps=self.norm_eps,
                dropout=self.dropout,
                attention_dropout=self.dropout,
            )
            for _ in range(self.num_layers)
        ]
        return Stack(blocks)

    reads_depths = True

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        if isinstance(model, WithKnowledge):
            raise TechniqueError("the model has knowledge adapters already; name all of them in one KAdapter")
        if (
            not isinstance(model, TextEncoder)
            or not isinstance(model.encoder, Stack)
            or "decoder_input_ids" in model.inputs
        ):
            raise TechniqueError(
                f"{type(model).__name__} is no encoder of one text, whose hidden states an adapter could read"
            )
        depth = 1 + max(depth for site in model.sites() for depth in site.depths)
        taps = self.taps or (0, depth // 2, depth)
        if any(not 0 <= tap <= depth for tap in taps):
            raise TechniqueError(f"taps={taps} must lie in 0..{depth}, the hidden states of {type(model).__name__}")
        hidden, like, std = model.hidden_size, next(model.parameters()), model.config.initializer_range
        adapters = {name: KnowledgeAdapter(hidden, taps, self.size, self.encoder, self.skip) for name in self.names}
        part: Any = model
        extend(part, WithKnowledge)
        part.knowledge = fresh(nn.ModuleDict(adapters), like, std, generator).train(model.training)
        part.knowledge_fusion = fresh(KnowledgeFusion(hidden, self.names, self.fusion), like, std, generator)
        return None
