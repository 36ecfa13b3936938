"""ALBERT (Lan et al., 2020): BERT with a narrow embedding and few blocks used again and again.

    h_0 = W norm(token + segment + position)          embedding_size E, then widened to hidden_size H
    h_{i+1} = group[floor(i · num_groups / num_layers)](h_i)      the same parameters at every depth when num_groups = 1

Differs from BERT: factorised embedding, sharing across layers, sentence order instead of next
sentence; the masked-word head works at width E.

Traps: the activation is GELU's tanh form in the TensorFlow code and in the v2 checkpoints, the erf
form in some public configs: read it from the config. A group may hold several inner blocks, so the
depth is num_layers · num_inner_blocks. The first group serves the first num_layers / num_groups
layers, not every other one. W exists even where E = H; TensorFlow files then lack it: the identity
is meant.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.errors import ConfigError
from zoo.layers import FirstTokenPooler, Stack, TextEmbeddings, bert_block_of
from zoo.layers.feed_forward import check_activation
from zoo.layers.heads import masked_lm_of
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder
from zoo.registry.terms import MASKED_LM, SENTENCE_ORDER


@dataclass(frozen=True, kw_only=True)
class AlbertConfig(Config):
    vocab_size: int = 30_000
    embedding_size: int = 128  # width of the tables, widened to hidden_size
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    num_groups: int = 1  # parameter groups; 1 = every layer shares them
    num_inner_blocks: int = 1  # blocks in a group, run in order at each of its layers
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.0)
    attention_dropout: float = free(0.0)
    classifier_dropout: float | None = free(0.1)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self, "vocab_size", "embedding_size", "hidden_size", "num_layers", "intermediate_size", "num_inner_blocks"
        )
        check_positive(self, "max_positions", "num_segments")
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)
        if not 1 <= self.num_groups <= self.num_layers:
            raise ConfigError(f"num_groups={self.num_groups} must lie between 1 and num_layers={self.num_layers}")

    @property
    def plan(self) -> tuple[int, ...]:
        """Which group runs at each layer."""
        return tuple(layer * self.num_groups // self.num_layers for layer in range(self.num_layers))  # eq: plan


class Albert(TextEncoder):
    Config = AlbertConfig
    heads = {  # eq: heads
        "masked_lm": lambda c: masked_lm_of(c, c.embedding_size),
        "sentence_order": lambda c: nn.Linear(c.hidden_size, 2),
    }
    pretraining = (MASKED_LM, SENTENCE_ORDER)  # eq: loss

    def __init__(self, config: AlbertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = TextEmbeddings(  # eq: embeddings
            c.vocab_size,
            c.embedding_size,
            c.max_positions,
            c.num_segments,
            nn.LayerNorm(c.embedding_size, c.norm_eps),
            dropout=c.dropout,
            projection=nn.Linear(c.embedding_size, c.hidden_size),
        )
        self.encoder = Stack([self._group(c) for _ in range(c.num_groups)], plan=c.plan)  # eq: stack
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    @staticmethod
    def _group(c: AlbertConfig) -> Stack:
        return Stack([bert_block_of(c) for _ in range(c.num_inner_blocks)])  # eq: group
