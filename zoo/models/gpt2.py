"""GPT-2 (Radford et al., 2019): a stack of causal blocks that predicts the next token.

    h_0    = token[x_t] + position[t]                               no norm
    a      = h + MHA(norm(h)),   h' = a + W_2 gelu(W_1 norm(a))       pre-norm, eps 1e-5, tanh GELU
    result = norm(h_L)
    P(x_{t+1} | x_1 .. x_t) = softmax(E result_t)                   E the token table, no bias

A token attends to itself and to the tokens before it. Differs from BERT: norms before the sublayers
and one at the end, no segments, the causal mask, words scored by the token table alone. The weights
of the two projections that end in the residual start smaller by sqrt(2 num_layers).

CPM (Zhang et al., 2021) is the same model over Chinese texts.

Traps: GELU is the tanh form. A text has no token for its beginning; <|endoftext|> (id 50256) stands
between documents, and transformers begins with it where there is no prompt. Labels are the input
ids: the loss compares the prediction at each token with the next real token's label. The pooled
vector is the state of the last real token, the only one that has seen the whole text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers import Padding, Pooler, Stack, TextEmbeddings, bert_block_of, pool, pre_norm
from zoo.layers.feed_forward import check_activation
from zoo.models.base.causal import CausalModel
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.registry.terms import NEXT_TOKEN


@dataclass(frozen=True, kw_only=True)
class Gpt2Config(Config):
    vocab_size: int = 50_257
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 1024
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-5
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True
    pooler: bool = True  # hand the last token's state on as the pooled output; it has no parameters
    dropout: float = free(0.1)  # on the result of each sublayer
    embedding_dropout: float = free(0.1)  # on the sum of token and position
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(0.1)
    initializer_range: float = free(0.02)
    end_token_id: int | None = free(50_256)  # what ends a text; None: nothing does

    def check(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
        check_positive(self, "max_positions")
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)


class LastTokenPooler(Pooler):
    """The last real token's state as it is."""

    def choose(self, hidden: Float[Tensor, "batch length hidden"], padding: Padding) -> Float[Tensor, "batch hidden"]:
        return pool(hidden, padding.real, "last")


class NextTokenHead(nn.Module):
    """``E h``: a score for each token of the vocabulary, E the token table that is handed over
    (``tied=False``: a matrix of its own).
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, tied: bool = True) -> None:
        super().__init__()
        self.decoder = None if tied else nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(  # eq: words
        self, hidden: Float[Tensor, "*rows hidden"], table: Float[Tensor, "vocabulary hidden"]
    ) -> Float[Tensor, "*rows vocabulary"]:
        return F.linear(hidden, table if self.decoder is None else self.decoder.weight)


class Gpt2(CausalModel):
    Config = Gpt2Config
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "position_ids")
    heads = {"language_model": lambda c: NextTokenHead(c.hidden_size, c.vocab_size, tied=c.tie_word_embeddings)}
    task_heads = {"sequence_classification": lambda c, labels: nn.Linear(c.hidden_size, labels, bias=False)}
    pretraining = (NEXT_TOKEN,)

    def __init__(self, config: Gpt2Config) -> None:
        super().__init__(config)
        c = config
        self.embeddings = TextEmbeddings(  # eq: embedding
            c.vocab_size, c.hidden_size, c.max_positions, 0, nn.Identity(), dropout=c.embedding_dropout
        )
        self.encoder = Stack([bert_block_of(c, pre_norm) for _ in range(c.num_layers)])  # eq: block
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)  # eq: norm
        self.pooler = LastTokenPooler() if c.pooler else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """As every model's, then the projections into the residual are divided by sqrt(2 num_layers)."""
        super().init_weights(generator)
        for block in self.encoder.blocks:
            for projection in (block.attention.output, block.feed_forward.down):  # type: ignore[union-attr]
                projection.weight.mul_((2 * self.config.num_layers) ** -0.5)  # type: ignore[operator, union-attr]
