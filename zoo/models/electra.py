"""ELECTRA (Clark et al., 2020): a discriminator that tells replaced tokens from original ones, and
the small generator that replaces them.

    h_0 = W norm(token + segment + position)                  width E, then H; W only where E != H
    block: BERT's;   pooled = h_first                         no learned pooler
    replaced = w act(W_d h_t + b_d) + b                       one logit per token: above zero = "not the original"
    words    = E norm(gelu(W_g h_t + b_g)) + bias             the generator's, at width E

Both networks are this class at two sizes.

Traps: while they are trained they share ALL embeddings (tokens, positions, segments and the norm),
not the projection W; published files of the Hugging Face library hold a copy in each. The
generator's activation there is always the erf GELU, whatever the config says. A classifier has a
layer of its own: dense, GELU, output. `zoo.tasks.electra` trains the pair.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers import Pooler, Stack, TextEmbeddings, activation, bert_block_of
from zoo.layers.feed_forward import check_activation
from zoo.layers.heads import ClassificationHead, MaskedLMHead
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder


@dataclass(frozen=True, kw_only=True)
class ElectraConfig(Config):
    vocab_size: int = 30_522
    embedding_size: int = 768  # width of the tables; widened where it is not hidden_size
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu"
    masked_lm_activation: str = "gelu"  # of the generator's head
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True  # hand the first token's state on as the pooled output; it has no parameters
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self, "vocab_size", "embedding_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"
        )
        check_positive(self, "max_positions", "num_segments")
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)
        check_activation(self.masked_lm_activation, "masked_lm_activation")


class ReplacedTokenHead(nn.Module):
    """``w act(W h + b) + b'``: above zero where the token is not the original."""

    def __init__(self, hidden_size: int, activation_name: str) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, 1)
        self.activation = activation(activation_name)

    def forward(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows"]:
        return self.output(self.activation(self.dense(hidden))).squeeze(-1)  # eq: replaced


def classification_head(c: ElectraConfig, num_labels: int) -> nn.Module:
    """What stands above the first token's state in fine-tuning."""
    return ClassificationHead(
        c.hidden_size, num_labels, "gelu", c.dropout if c.classifier_dropout is None else c.classifier_dropout
    )


class Electra(TextEncoder):
    Config = ElectraConfig
    heads = {  # eq: heads
        "masked_lm": lambda c: MaskedLMHead(
            c.hidden_size,
            c.embedding_size,
            c.vocab_size,
            c.masked_lm_activation,
            c.norm_eps,
            tied=c.tie_word_embeddings,
        ),
        "replaced_token": lambda c: ReplacedTokenHead(c.hidden_size, c.activation),
    }
    task_heads = {"sequence_classification": classification_head, "multiple_choice": classification_head}

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = TextEmbeddings(  # eq: embeddings
            c.vocab_size,
            c.embedding_size,
            c.max_positions,
            c.num_segments,
            nn.LayerNorm(c.embedding_size, c.norm_eps),
            dropout=c.dropout,
            projection=nn.Linear(c.embedding_size, c.hidden_size) if c.embedding_size != c.hidden_size else None,
        )
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = Pooler() if c.pooler else None  # eq: pooler
