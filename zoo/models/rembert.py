"""RemBERT (Chung et al., 2021): BERT whose input and output embeddings are two tables, the first
narrow, the second wide.

    h_0 = W norm(token + segment + position)      embedding_size, then hidden_size
    words = O norm(gelu(W_o h + b)) + bias        output_embedding_size; O is a table of its own, which
                                                  fine-tuning drops

Differs from BERT: parameters of the embeddings are spent on depth instead, and the input table is
never tied to the output's.

Traps: no dropout but the classifier's; the public file has no output table, so that masked words
come from a head that starts at random.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.layers import FirstTokenPooler, Stack, TextEmbeddings, bert_block_of
from zoo.layers.feed_forward import check_activation
from zoo.layers.heads import MaskedLMHead
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder
from zoo.registry.terms import MASKED_LM


@dataclass(frozen=True, kw_only=True)
class RemBertConfig(Config):
    vocab_size: int = 250_300
    embedding_size: int = 256  # of the input
    output_embedding_size: int = 1664  # of the table that predicts words
    hidden_size: int = 1152
    num_layers: int = 32
    num_heads: int = 18
    intermediate_size: int = 4608
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    pooler: bool = True
    dropout: float = free(0.0)
    attention_dropout: float = free(0.0)
    classifier_dropout: float | None = free(0.1)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self, "vocab_size", "embedding_size", "output_embedding_size", "hidden_size", "num_layers", "num_heads"
        )
        check_positive(self, "intermediate_size", "max_positions", "num_segments")
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)


class RemBert(TextEncoder):
    Config = RemBertConfig
    heads = {  # eq: words
        "masked_lm": lambda c: MaskedLMHead(
            c.hidden_size, c.output_embedding_size, c.vocab_size, c.activation, c.norm_eps, tied=False
        ),
    }
    pretraining = (MASKED_LM,)

    def __init__(self, config: RemBertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = TextEmbeddings(  # eq: embedding
            c.vocab_size,
            c.embedding_size,
            c.max_positions,
            c.num_segments,
            nn.LayerNorm(c.embedding_size, c.norm_eps),
            dropout=c.dropout,
            projection=nn.Linear(c.embedding_size, c.hidden_size),
        )
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None
