"""XLM (Lample and Conneau, 2019): one encoder for many languages, pre-trained by masked, next or
translated words (MLM, CLM, TLM).

    h_0 = 1[real] · norm(token + position + language)
    a   = norm(h + MHA(h)),   h' = 1[real] · norm(a + W_2 gelu(W_1 a))       post-norm, eps 1e-12, W_1 of width 4 d
    scores = E h + b            the token table E itself, no transform before it

Differs from BERT: a vector for each token's language instead of its segment, no pooler, rows of
padding are zeros at every depth, a causal variant (CLM), fixed sinusoidal positions as a choice.
TLM is MLM on two translations in one text: positions begin again at 0 with the second, each half
has its language (`zoo.data.collate.TranslationLMCollator`).

Traps: the models for 17 and 100 languages have no language embedding. A text stands between two
</s> (id 1), never <s>, in the original code; the Hugging Face tokenizer begins with <s>, and so
gives other outputs. A causal model's labels are not shifted here: the collator writes the next
word. The causal original does not hide padding to the left of a token from it; here padding is
always hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers import (
    Attention,
    Encoded,
    EncoderBlock,
    FeedForward,
    Mask,
    Pooler,
    Run,
    Stack,
    TextEmbeddings,
    Trace,
    Wanted,
    causal,
)
from zoo.layers.embeddings import LanguageEmbedding, Languages, SinusoidalPositions, ignore_languages
from zoo.layers.feed_forward import check_activation
from zoo.layers.heads import TableHead
from zoo.layers.init import truncated_normal
from zoo.layers.shapes import Bias, Rows
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder
from zoo.registry.terms import MASKED_LM, PretrainingTerm


@dataclass(frozen=True, kw_only=True)
class XlmConfig(Config):
    vocab_size: int = 95_000
    hidden_size: int = 1024
    num_layers: int = 12
    num_heads: int = 8
    max_positions: int = 512
    num_languages: int = 15  # rows of the language table
    languages: tuple[str, ...] = ()  # their names in the order of their ids; empty: known by id alone
    language_embeddings: bool = True  # add a vector for the language
    sinusoidal_positions: bool = False  # sines and cosines in place of a learned table
    causal: bool = False  # a token sees those before it alone
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 2
    tie_word_embeddings: bool = True
    pooler: bool = True  # hand the first token's state on as the pooled output; it has no parameters
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(0.1)
    initializer_range: float = free(0.02)
    embedding_range: float | None = free(None)  # of the tables, None: hidden_size^(-1/2)

    def check(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "num_layers", "num_heads", "max_positions", "num_languages")
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)
        if self.languages and len(self.languages) != self.num_languages:
            raise ConfigError(
                f"languages names {len(self.languages)} languages, num_languages={self.num_languages}; name all or none"
            )

    @property
    def intermediate_size(self) -> int:
        return 4 * self.hidden_size

    @property
    def tells_languages(self) -> bool:
        """Whether there is a language table: one language needs none."""
        return self.language_embeddings and self.num_languages > 1


class Table(nn.Embedding):
    """A table that is drawn with a standard deviation of its own."""

    def __init__(self, rows: int, size: int, std: float) -> None:
        super().__init__(rows, size)
        self.std = std

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        truncated_normal(self.weight, self.std, generator)


class XlmEmbeddings(TextEmbeddings):
    """``dropout(norm(token[t] + position[p] + language[l]))``; no language table where the model
    does not tell languages apart.
    """

    position: nn.Module  # type: ignore[assignment]

    def __init__(self, c: XlmConfig) -> None:
        super().__init__(
            c.vocab_size, c.hidden_size, c.max_positions, 0, nn.LayerNorm(c.hidden_size, c.norm_eps), dropout=c.dropout
        )
        std = c.hidden_size**-0.5 if c.embedding_range is None else c.embedding_range
        self.token = Table(c.vocab_size, c.hidden_size, std)
        sinusoidal = SinusoidalPositions(c.max_positions, c.hidden_size) if c.sinusoidal_positions else None
        self.position = sinusoidal or Table(c.max_positions, c.hidden_size, std)
        self.language = (
            LanguageEmbedding(c.num_languages, c.hidden_size, c.languages, std) if c.tells_languages else None
        )

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        language_ids: Languages | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """As `TextEmbeddings`, and ``language_ids`` as `LanguageEmbedding` takes them."""
        tokens = self.tokens(input_ids, inputs_embeds)  # (batch, length, hidden)
        x = tokens + self.positions(position_ids, tokens) + self.segments(token_type_ids, tokens)  # eq: embedding
        if self.language is None:
            ignore_languages(language_ids)
        else:
            x = x + self.language(language_ids, tokens)  # eq: embedding
        return self.dropout(self.norm(x))  # eq: embedding


def zero_padding(x: Rows, mask: Mask) -> Rows:  # eq: block
    """``1[real] · x``: rows of padding become zeros. A packed batch has none of them; behind a cache
    the rows are the last of the keys.
    """
    return x if mask.keys is None else x.masked_fill(~mask.keys[:, -x.shape[1] :].unsqueeze(2), 0)


class XlmBlock(EncoderBlock):
    """BERT's block, after which rows of padding are zeros."""

    def forward(self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None) -> Rows:
        return zero_padding(super().forward(x, mask, bias, trace), mask)  # eq: block


def xlm_block(c: XlmConfig) -> XlmBlock:
    """A block of the encoder."""
    return XlmBlock(
        Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout),
        FeedForward(c.hidden_size, c.intermediate_size, c.activation),
        nn.LayerNorm(c.hidden_size, c.norm_eps),
        nn.LayerNorm(c.hidden_size, c.norm_eps),
        dropout=c.dropout,
    )


class Xlm(TextEncoder):
    Config = XlmConfig
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "language_ids", "position_ids")
    heads = {"masked_lm": lambda c: TableHead(c.hidden_size, c.vocab_size, tied=c.tie_word_embeddings)}
    pretraining: ClassVar[tuple[PretrainingTerm, ...]] = (MASKED_LM,)

    def __init__(self, config: XlmConfig) -> None:
        super().__init__(config)
        self.embeddings = XlmEmbeddings(config)
        self.encoder = Stack([xlm_block(config) for _ in range(config.num_layers)])
        self.pooler = Pooler() if config.pooler else None

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        language_ids: Languages | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """As `TextEncoder`, and ``language_ids``: for each token, or a language's name or id, or one for
        each text.

        A model that tells languages apart refuses to run without them; another takes them and warns
        that it ignores them. There are no segments: token_type_ids other than 0 are refused.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, language_ids)
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
        run.x = zero_padding(run.x, run.mask)  # eq: embedding
        x = run.through(self.encoder, causal() if self.config.causal else None)  # eq: causal
        return run.encoded(x, self.pooler)
