"""K-BERT (Liu et al., 2020): BERT over a sentence into which facts of a knowledge graph are
grafted, as branches that only their word sees.

    sentence tree   "Cook [CEO Apple] visits Beijing [capital China] now"
                    a branch behind each word that is a subject of the graph
    soft position   the trunk counts 0, 1, 2, ... past the branches;
                    a branch counts on from the last token of its word
    visible matrix  V[i, j] = 1 where i and j stand on the trunk, or in one branch,
                    or one is of a branch and the other of its word
    attention       softmax(Q Kᵀ / sqrt(d) where V = 1, else -inf) Values     the same V in every layer and head

The tree is built by `zoo.data.knowledge_batches.SentenceTreeCollator`, for this or any other
family: V is the attention_mask (batch, query, key), the soft positions are the position_ids. No
parameter is new: the model is UER-py's BERT, on whose checkpoints K-BERT was built.

Differs from BERT: the norm (unbiased standard deviation, eps added to it), three segments (0 is
padding, 1 and 2 the sentences), a decoder of its own in the masked-word head.

Traps: a branch's parts are single characters, Latin words too. The classifier reads tanh(W
pool(h)); the reference's mean and maximum run over padding, ours over real tokens: hand over a
matrix whose padding rows see everything to have the former. Inserted tokens count in the tagger's
loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers import (
    Attention,
    EncoderBlock,
    FeedForward,
    FirstTokenPooler,
    Padding,
    Stack,
    TextEmbeddings,
    pool,
)
from zoo.layers.feed_forward import check_activation, check_choice
from zoo.layers.heads import MaskedLMHead
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder
from zoo.registry.terms import MASKED_LM, NEXT_SENTENCE

POOLER_INPUTS = ("cls", "mean", "max", "last")


@dataclass(frozen=True, kw_only=True)
class KBertConfig(Config):
    vocab_size: int = 21_128
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 3  # padding, first sentence, second sentence
    activation: str = "gelu"
    norm_eps: float = 1e-6  # added to the standard deviation
    pooler_input: str = (
        "cls"  # what the pooler reads, in the words of sentence-embedding's pooling: one token, or all the real ones
    )
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(0.0)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self, "vocab_size", "num_layers", "num_heads", "intermediate_size", "max_positions", "num_segments"
        )
        if self.hidden_size < 2:
            raise ConfigError(
                f"hidden_size={self.hidden_size} must be at least 2: one number has no standard deviation"
            )
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)
        check_choice("pooler_input", self.pooler_input, POOLER_INPUTS)


class StandardDeviationNorm(nn.Module):
    """``weight · (x - mean) / (std + eps) + bias`` with the unbiased standard deviation (n - 1), as
    UER-py has it.

    `nn.LayerNorm` divides by ``sqrt(variance + eps)`` with the biased variance (n): close, and not
    the same.
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.weight.fill_(1)
        self.bias.zero_()

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        centred = x - x.mean(-1, keepdim=True)  # eq: norm
        deviation = (  # eq: norm
            torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5
        )  # its gradient at zero is zero
        return self.weight * centred / (deviation + self.eps) + self.bias  # eq: norm


class KBertEmbeddings(TextEmbeddings):
    """BERT's, with segment 0 for padding: a text without segments is all first sentence (1)."""

    def segments(
        self, token_type_ids: Int[Tensor, "batch length"] | None, tokens: Float[Tensor, "batch length size"]
    ) -> Float[Tensor, "*grid hidden"] | float:
        if token_type_ids is None and self.segment is not None:
            return self.segment.weight[min(1, self.segment.num_embeddings - 1)]
        return super().segments(token_type_ids, tokens)


class KBertMaskedLMHead(MaskedLMHead):
    """BERT's word predictor with UER-py's norm and, unless tied, a decoder of its own."""

    def __init__(self, c: KBertConfig) -> None:
        super().__init__(
            c.hidden_size, c.hidden_size, c.vocab_size, c.activation, c.norm_eps, tied=c.tie_word_embeddings
        )
        self.norm = StandardDeviationNorm(c.hidden_size, c.norm_eps)  # type: ignore[assignment]


class KBertPooler(FirstTokenPooler):
    """``tanh(W s + b)`` with s the first state, or the mean, the maximum or the last."""

    def __init__(self, hidden_size: int, reads: str) -> None:
        super().__init__(hidden_size)
        self.reads = reads

    def choose(self, hidden: Float[Tensor, "batch length hidden"], padding: Padding) -> Float[Tensor, "batch hidden"]:
        return pool(hidden, padding.real, self.reads)  # eq: pooler


class KBert(TextEncoder):
    """The visible matrix is a (batch, query, key) ``attention_mask``, the soft positions are
    ``position_ids``.
    """

    Config = KBertConfig
    heads = {"masked_lm": KBertMaskedLMHead, "next_sentence": lambda c: nn.Linear(c.hidden_size, 2)}
    pretraining = (MASKED_LM, NEXT_SENTENCE)

    def __init__(self, config: KBertConfig) -> None:
        super().__init__(config)
        c = config
        norm = StandardDeviationNorm(c.hidden_size, c.norm_eps)
        self.embeddings = KBertEmbeddings(
            c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout
        )
        self.encoder = Stack([self._block(c) for _ in range(c.num_layers)])
        self.pooler = KBertPooler(c.hidden_size, c.pooler_input) if c.pooler else None

    @staticmethod
    def _block(c: KBertConfig) -> EncoderBlock:
        return EncoderBlock(
            Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout),
            FeedForward(c.hidden_size, c.intermediate_size, c.activation),
            StandardDeviationNorm(c.hidden_size, c.norm_eps),
            StandardDeviationNorm(c.hidden_size, c.norm_eps),
            dropout=c.dropout,
        )
