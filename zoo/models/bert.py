"""BERT (Devlin et al., 2019): bidirectional Transformer encoder, pre-trained by masked words and
next sentences.

    h_0 = norm(token + segment + position)
    a   = norm(h + W_o MHA(h)),   h' = norm(a + W_2 gelu(W_1 a))         post-norm, eps 1e-12
    pooled = tanh(W_p h_first)

Traps: GELU is the exact erf form in the published checkpoints, the tanh form in the last TensorFlow
code. Next-sentence label 0 means "B follows A". The masked-word decoder is the token table itself.
Padding hides keys, never queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from zoo.layers import FirstTokenPooler, Stack, bert_block_of, text_embeddings_of
from zoo.layers.feed_forward import check_activation
from zoo.layers.heads import masked_lm_of
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder
from zoo.registry.terms import MASKED_LM, NEXT_SENTENCE, PretrainingTerm


@dataclass(frozen=True, kw_only=True)
class BertConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self,
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_positions",
            "num_segments",
        )
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)


class Bert(TextEncoder):
    Config = BertConfig
    heads = {  # eq: heads
        "masked_lm": masked_lm_of,
        "next_sentence": lambda c: nn.Linear(c.hidden_size, 2),
    }
    pretraining: ClassVar[tuple[PretrainingTerm, ...]] = (MASKED_LM, NEXT_SENTENCE)  # eq: loss

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = text_embeddings_of(c)
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])  # eq: stack
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None
