"""RoBERTa (Liu et al., 2019) and, with more languages, XLM-R (Conneau et al., 2020): BERT without
the next sentence, trained for longer.

    h_0 = norm(token + position[p] + segment_0),   p_t = pad + #{s <= t : x_s is not padding}        eps 1e-5
    block: BERT's;   words = E norm(gelu(W h + b)) + bias

Differs from BERT: positions count the tokens that are not padding and begin behind the padding id,
so that a table of 514 rows serves 512 tokens; one segment (a row that fairseq does not have and
that is zero in converted files); masked words are the only objective; a classifier reads the first
token's state through a layer of its own and ignores the pooler.

Traps: positions are found from the ids, not from the attention mask: a padding id in the middle of
a text stops the count, and another id at a masked place does not. fairseq sets the embeddings of
padding to zero, the Hugging Face library does not; real tokens agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError
from zoo.layers import FirstTokenPooler, Stack, TextEmbeddings, bert_block_of
from zoo.layers.feed_forward import check_activation
from zoo.layers.heads import ClassificationHead, MaskedLMHead
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder
from zoo.registry.terms import MASKED_LM


@dataclass(frozen=True, kw_only=True)
class RobertaConfig(Config):
    vocab_size: int = 50_265
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 514  # rows of the table; texts may have pad_token_id + 1 fewer tokens
    num_segments: int = 1
    activation: str = "gelu"
    norm_eps: float = 1e-5
    pad_token_id: int = 1
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
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id={self.pad_token_id} must lie in 0..vocab_size - 1 = {self.vocab_size - 1}")
        if self.longest < 1:
            least = self.pad_token_id + 2
            raise ConfigError(
                f"max_positions={self.max_positions} leaves no row behind pad_token_id={self.pad_token_id}; at least "
                f"{least}"
            )

    @property
    def longest(self) -> int:
        """How many tokens a text may have."""
        return self.max_positions - self.pad_token_id - 1


class RobertaEmbeddings(TextEmbeddings):
    """BERT's, with positions that count what is not padding."""

    def __init__(self, c: RobertaConfig, norm: nn.Module) -> None:
        super().__init__(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)
        self.padding, self.longest = c.pad_token_id, c.longest

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """As `TextEmbeddings`; without ids (inputs_embeds) every place counts as a token."""
        tokens = self.tokens(input_ids, inputs_embeds)  # (batch, length, hidden)
        if tokens.shape[1] > (longest := self.longest - self.first_position):
            raise InputError(
                f"the text is {tokens.shape[1]} tokens long; this model reads {longest}: cut it or split it"
            )
        if position_ids is None:
            position_ids = self.count(input_ids, tokens)
        x = tokens + self.segments(token_type_ids, tokens) + self.positions(position_ids, tokens)  # eq: embedding
        return self.dropout(self.norm(x))  # eq: embedding

    def places(self, input_ids: Int[Tensor, "*rows length"]) -> Int[Tensor, "*rows length"]:
        rows = input_ids.flatten(0, -2)
        return self.count(rows, rows).reshape(input_ids.shape)

    def count(self, input_ids: Int[Tensor, "batch length"] | None, tokens: Tensor) -> Int[Tensor, "#batch length"]:
        """``pad + #{s <= t : x_s is not padding}``, behind a prefix so much further, and ``pad`` at padding."""
        if input_ids is None:
            return torch.arange(1, 1 + tokens.shape[1], device=tokens.device)[None] + self.first_position + self.padding
        real = (input_ids != self.padding).long()  # eq: positions
        return (real.cumsum(1) + self.first_position) * real + self.padding  # eq: positions


def classification_head(c: RobertaConfig, num_labels: int) -> nn.Module:  # eq: label
    """What stands above the first token's state in fine-tuning."""
    return ClassificationHead(
        c.hidden_size, num_labels, "tanh", c.dropout if c.classifier_dropout is None else c.classifier_dropout
    )


class Roberta(TextEncoder):
    Config = RobertaConfig
    heads = {  # eq: words
        "masked_lm": lambda c: MaskedLMHead(
            c.hidden_size, c.hidden_size, c.vocab_size, "gelu", c.norm_eps, tied=c.tie_word_embeddings
        )
    }
    pretraining = (MASKED_LM,)
    task_heads = {"sequence_classification": classification_head}
    reads_first = frozenset({"sequence_classification"})
    exceptions = {
        "padding": "positions count the ids that are not the padding id, "
        "so another id to the left of a token moves it, masked or not",
    }

    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = RobertaEmbeddings(c, nn.LayerNorm(c.hidden_size, c.norm_eps))
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None
