"""SpanBERT (Joshi et al., 2020): BERT trained to predict masked spans, and each word of a span from
the span's two outer neighbors alone.

    span boundary objective, for a masked span between the words at l and r:
    z_i = norm(gelu(W_1 [x_l; x_r; p_i] + b_1))          p_i a vector for the i-th place in the span, counted from 0
    y_i = norm(gelu(W_2 z_i + b_2)),   scores_i = E y_i + b          E the token table

The encoder is BERT's, cased. Differs in training: spans of words instead of single tokens
(`zoo.data.knowledge_masking.SpanBertMasking`), one text instead of two, no next-sentence objective and
so no pooler (``pooler = True`` is the two-sentence variant of its code).

Traps: the order is linear, activation, norm, twice. The position vectors are 200 wide whatever an
option of the code says. The paper counts places in a span from 1. Released archives hold the
encoder alone: a classifier's pooler starts at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers import activation
from zoo.layers.padding import at_hand
from zoo.models.base.config import check_positive
from zoo.models.bert import Bert, BertConfig
from zoo.registry.terms import MASKED_LM, NEXT_SENTENCE, SPAN_BOUNDARY


@dataclass(frozen=True, kw_only=True)
class SpanBertConfig(BertConfig):
    vocab_size: int = 28_996
    max_span_targets: int = 15  # words of a span that are guessed, from its first on
    span_position_size: int = 200  # width of the position within a span
    span_layer: int = -1  # the block whose states the objective reads, -1 = the last

    def check(self) -> None:
        super().check()
        check_positive(self, "max_span_targets", "span_position_size")
        if not -self.num_layers <= self.span_layer < self.num_layers:
            raise ConfigError(f"span_layer={self.span_layer} is none of the {self.num_layers} blocks")


class SpanBoundaryHead(nn.Module):
    """Predicts the words of a span from its two boundaries; the token table is handed over."""

    def __init__(self, c: SpanBertConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(c.max_span_targets, c.span_position_size)
        self.first = nn.Linear(2 * c.hidden_size + c.span_position_size, c.hidden_size)
        self.first_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.second = nn.Linear(c.hidden_size, c.hidden_size)
        self.second_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.bias = nn.Parameter(Tensor(c.vocab_size))
        self.activation = activation(c.activation)

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        pairs: Integer[Tensor, "batch spans 2"],
        table: Float[Tensor, "vocabulary hidden"],
    ) -> Float[Tensor, "batch spans places vocabulary"]:
        """pairs: the places of the spans' boundaries."""
        if not isinstance(pairs, Tensor):
            raise InputError(f"pairs must be a tensor (batch, spans, 2) of whole numbers, got {type(pairs).__name__}")
        if pairs.is_complex() or pairs.dtype == torch.bool:
            raise InputError(f"pairs must be whole numbers, the boundaries' places, got {pairs.dtype}")
        if pairs.dim() != 3 or pairs.shape[0] != hidden.shape[0] or pairs.shape[2] != 2 or pairs.is_floating_point():
            raise InputError(
                f"pairs must be ({hidden.shape[0]}, spans, 2) whole numbers, got {tuple(pairs.shape)} of {pairs.dtype}"
            )
        pairs = pairs.long()
        if at_hand(pairs):  # elsewhere the look-up itself asserts
            low, high = (int(place) for place in pairs.aminmax())
            if low < 0 or high >= hidden.shape[1]:
                outside = low if low < 0 else high
                raise InputError(
                    f"the boundaries of spans must lie in the text, at places 0..{hidden.shape[1] - 1}, got {outside}"
                )
        width = hidden.shape[2]
        # (batch, 2 · spans, hidden)
        ends = hidden.gather(1, pairs.flatten(1).unsqueeze(2).expand(-1, -1, width))  # eq: sbo
        ends = rearrange(ends, "batch (spans ends) hidden -> batch spans 1 (ends hidden)", ends=2)  # eq: sbo
        # (batch, spans, places, position size)
        places = self.position.weight.expand(*ends.shape[:2], -1, -1)  # eq: sbo
        x = torch.cat([ends.expand(-1, -1, places.shape[2], -1), places], 3)  # eq: sbo
        x = self.first_norm(self.activation(self.first(x)))  # eq: sbo
        x = self.second_norm(self.activation(self.second(x)))  # eq: sbo
        return F.linear(x, table, self.bias)  # eq: sbo


class SpanBert(Bert):
    Config = SpanBertConfig
    heads = {**Bert.heads, "span_boundary": SpanBoundaryHead}
    pretraining = (MASKED_LM, SPAN_BOUNDARY, replace(NEXT_SENTENCE, optional=True))  # eq: terms
