"""MobileBERT (Sun et al., 2020): as deep as BERT-large, but thin: each block works in a bottleneck,
with several small feed-forwards.

    x_t = W_e [e_{t+1}; e_t; e_{t-1}] + b_e           trigram: next, own, previous; zeros at the ends
    h_0 = norm(x + position + segment)
    r   = norm(W_in h + b),   s = norm(W_kq h + b)    H -> B; s is the shared key-query bottleneck
    a_0 = norm(MHA(query = s, key = s, value = h) + r)                  4 heads in width B
    a_j = norm(W_2 relu(W_1 a_{j-1}) + a_{j-1}),   j = 1 .. F           F feed-forwards, one after the other
    h'  = norm(W_out a_F + b + h)                                       B -> H
    norm(x) = g · x + b                               NoNorm; the teacher has LayerNorm
    words   = [E ; D] norm(relu(W h + b)) + bias      E: token table (V, E), D: extra (V, H - E)

Other wirings of the paper: all of attention in the bottleneck (MobileBERT tiny: query = key = value
= r), none of it (IB-BERT, the teacher: query = key = value = h), and no bottleneck at all. The
head's own norm is a LayerNorm always.

Traps: the trigram of a text's last token reads the padding behind it, so padding changes that
token. The pooled vector is the raw first state in the published TensorFlow config (`pooler_dense` =
False), tanh(W h_first) in the Hugging Face default. That port gives two of its LayerNorms
(embeddings, last feed-forward) another eps: norm = "layer_norm_hf". Google's code masks scores to
-6, so its padding keeps a weight of e^-6; here it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.layers import (
    Attention,
    EncoderBlock,
    FeedForward,
    FirstTokenPooler,
    Mask,
    Pooler,
    Stack,
    TextEmbeddings,
    Trace,
    activation,
    post_norm,
)
from zoo.layers.feed_forward import check_activation, check_choice, identity
from zoo.layers.shapes import Bias, Rows
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.text_encoder import TextEncoder
from zoo.registry.terms import MASKED_LM, NEXT_SENTENCE

NORMS = ("no_norm", "layer_norm", "layer_norm_hf", "manual_layer_norm")


@dataclass(frozen=True, kw_only=True)
class MobileBertConfig(Config):
    vocab_size: int = 30_522
    embedding_size: int = 128  # width of the token table
    hidden_size: int = 512
    num_layers: int = 24
    num_heads: int = 4
    intermediate_size: int = 512
    num_feed_forwards: int = 4  # in each block, one after the other
    bottleneck: bool = True  # blocks work at bottleneck_size inside
    bottleneck_size: int = 128  # width inside a block
    bottleneck_attention: bool = False  # query, key and value all read the input bottleneck
    shared_key_query: bool = (
        True  # query and key share a bottleneck of their own; without either option they read the full state
    )
    trigram: bool = True  # a token is embedded with its two neighbors
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "relu"
    norm: str = "no_norm"  # "no_norm": a scale and a shift; or "layer_norm"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    pooler_dense: bool = False  # tanh(W h_first) instead of h_first
    dropout: float = free(0.0)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self, "vocab_size", "embedding_size", "hidden_size", "num_layers", "intermediate_size", "num_feed_forwards"
        )
        check_positive(self, "bottleneck_size", "max_positions", "num_segments")
        check_heads(self.inner_size, self.num_heads, "bottleneck_size" if self.bottleneck else "hidden_size")
        check_activation(self.activation)
        check_choice("norm", self.norm, NORMS)
        if self.embedding_size > self.hidden_size:
            sizes = f"embedding_size={self.embedding_size} must not exceed hidden_size={self.hidden_size}"
            raise ConfigError(f"{sizes}: the word predictor needs room for the token table")

    @property
    def inner_size(self) -> int:
        """The width in which a block works."""
        return self.bottleneck_size if self.bottleneck else self.hidden_size

    def new_norm(self, size: int, *, outer: bool = False) -> nn.Module:
        """A norm of the configured kind; ``outer``: the two to which the Hugging Face port gives no
        eps.
        """
        if self.norm == "no_norm":
            return NoNorm(size)
        eps = {
            "layer_norm": self.norm_eps,
            "layer_norm_hf": 1e-5 if outer else self.norm_eps,
            "manual_layer_norm": 1e-6,
        }
        return nn.LayerNorm(size, eps[self.norm])


class NoNorm(nn.Module):
    """``g · x + b``: what is left of a norm without its statistics, which are slow on a phone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.weight.fill_(1)
        self.bias.zero_()

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        return torch.addcmul(self.bias, x, self.weight)  # eq: no-norm


def trigram(tokens: Float[Tensor, "batch length embedding"]) -> Float[Tensor, "batch length 3*embedding"]:
    """``[e_{t+1}; e_t; e_{t-1}]``, zeros beyond the ends."""
    following, previous = F.pad(tokens[:, 1:], (0, 0, 0, 1)), F.pad(tokens[:, :-1], (0, 0, 1, 0))  # eq: trigram
    return torch.cat([following, tokens, previous], dim=2)  # eq: trigram


class MobileBertEmbeddings(TextEmbeddings):
    """A narrow token table, widened together with its neighbors before positions and segments of
    full width are added.
    """

    def __init__(self, c: MobileBertConfig) -> None:
        super().__init__(
            c.vocab_size,
            c.hidden_size,
            c.max_positions,
            c.num_segments,
            c.new_norm(c.hidden_size, outer=True),
            dropout=c.dropout,
        )
        self.token = nn.Embedding(c.vocab_size, c.embedding_size)
        self.context: Callable[[Tensor], Tensor] = trigram if c.trigram else identity
        read = 3 * c.embedding_size if c.trigram else c.embedding_size
        self.projection = nn.Linear(read, c.hidden_size) if c.trigram or read != c.hidden_size else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        tokens = self.tokens(input_ids, inputs_embeds)  # (batch, length, embedding)
        x = self.context(tokens)  # (batch, length, 3 · embedding)  # eq: embeddings
        x = x if self.projection is None else self.projection(x)  # (batch, length, hidden)  # eq: embeddings
        x = x + self.segments(token_type_ids, tokens) + self.positions(position_ids, tokens)  # eq: embeddings
        return self.dropout(self.norm(x))  # eq: embeddings


class Bottleneck(nn.Module):
    """``norm(W x + b)`` into another width."""

    roles = {"dense": "bottleneck"}

    def __init__(self, size: int, output_size: int, norm: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(size, output_size)
        self.norm = norm

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows bottleneck"]:
        return self.norm(self.dense(x))  # eq: bottleneck


class StackedBlock(nn.Module):
    """Self-attention, then ``num_feed_forwards`` feed-forwards, each in its residual, all in the
    width of the stream: no bottleneck.
    """

    roles = {
        **EncoderBlock.roles,
        "inner_feed_forwards": "feed-forward",
        "inner_feed_forward_norms": "feed-forward-norm",
    }

    def __init__(self, c: MobileBertConfig) -> None:
        super().__init__()
        self.attention = self.new_attention(c)
        self.attention_norm = c.new_norm(c.inner_size)
        inner = range(c.num_feed_forwards - 1)
        self.inner_feed_forwards = nn.ModuleList(
            FeedForward(c.inner_size, c.intermediate_size, c.activation) for _ in inner
        )
        self.inner_feed_forward_norms = nn.ModuleList(c.new_norm(c.inner_size) for _ in inner)
        self.feed_forward = FeedForward(c.inner_size, c.intermediate_size, c.activation)
        self.feed_forward_norm = c.new_norm(c.inner_size, outer=True)
        self.dropout = nn.Dropout(c.dropout)

    def new_attention(self, c: MobileBertConfig) -> Attention:
        return Attention(c.inner_size, c.num_heads, dropout=c.attention_dropout)

    def forward(self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None) -> Rows:
        a = post_norm(x, lambda y: self.attention(y, y, y, mask, bias, trace), self.attention_norm, self.dropout)
        return self.feed(a, self.dropout)

    def feed(
        self, a: Float[Tensor, "*rows hidden"], dropout: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "*rows hidden"]:
        """The feed-forwards, one after the other; dropout only at the last."""
        for feed_forward, norm in zip(self.inner_feed_forwards, self.inner_feed_forward_norms, strict=True):  # eq: feed
            a = post_norm(a, feed_forward, norm, identity)
        return post_norm(a, self.feed_forward, self.feed_forward_norm, dropout)  # eq: feed


class BottleneckBlock(StackedBlock):
    """The same inside a bottleneck ``r = norm(W_in h)``, with attention over the full states and
    back by ``norm(W_out a + h)``: IB-BERT.
    """

    def __init__(self, c: MobileBertConfig) -> None:
        super().__init__(c)
        self.input_bottleneck = Bottleneck(c.hidden_size, c.bottleneck_size, c.new_norm(c.bottleneck_size))
        self.output_bottleneck = Bottleneck(c.bottleneck_size, c.hidden_size, c.new_norm(c.hidden_size))

    def new_attention(self, c: MobileBertConfig) -> Attention:
        head_size = c.bottleneck_size // c.num_heads
        return Attention(
            c.hidden_size, c.num_heads, head_size=head_size, output_size=c.bottleneck_size, dropout=c.attention_dropout
        )

    def forward(self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None) -> Rows:
        r = self.input_bottleneck(x)  # (..., bottleneck)  # eq: block
        query, value = self.attended(x, r)  # eq: block
        a = post_norm(  # eq: block
            r, lambda _: self.attention(query, query, value, mask, bias, trace), self.attention_norm, identity
        )  # (..., bottleneck)
        out = self.output_bottleneck  # eq: back
        return post_norm(  # eq: back
            x, lambda _: out.dense(self.feed(a, identity)), out.norm, self.dropout
        )  # (..., hidden)

    def attended(
        self, x: Float[Tensor, "*rows hidden"], r: Float[Tensor, "*rows bottleneck"]
    ) -> tuple[Float[Tensor, "*rows query_size"], Float[Tensor, "*rows value_size"]]:
        """What query and key read, and what value reads."""
        return x, x  # eq: wirings


class NarrowAttentionBlock(BottleneckBlock):
    """Attention wholly inside the bottleneck: query, key and value read ``r``. MobileBERT tiny."""

    def new_attention(self, c: MobileBertConfig) -> Attention:
        return Attention(c.bottleneck_size, c.num_heads, dropout=c.attention_dropout)

    def attended(
        self, x: Float[Tensor, "*rows hidden"], r: Float[Tensor, "*rows bottleneck"]
    ) -> tuple[Float[Tensor, "*rows query_size"], Float[Tensor, "*rows value_size"]]:
        return r, r  # eq: wirings


class SharedKeyQueryBlock(BottleneckBlock):
    """Query and key read a bottleneck of their own, ``s = norm(W_kq h)``, value reads ``h``.
    MobileBERT.
    """

    def __init__(self, c: MobileBertConfig) -> None:
        super().__init__(c)
        self.key_query_bottleneck = Bottleneck(c.hidden_size, c.bottleneck_size, c.new_norm(c.bottleneck_size))

    def new_attention(self, c: MobileBertConfig) -> Attention:
        return Attention(
            c.bottleneck_size,
            c.num_heads,
            key_size=c.bottleneck_size,
            value_size=c.hidden_size,
            dropout=c.attention_dropout,
        )

    def attended(
        self, x: Float[Tensor, "*rows hidden"], r: Float[Tensor, "*rows bottleneck"]
    ) -> tuple[Float[Tensor, "*rows query_size"], Float[Tensor, "*rows value_size"]]:
        return self.key_query_bottleneck(x), x  # eq: shared


class SplitMaskedLMHead(nn.Module):
    """``[E ; D] norm(act(W h + b)) + bias``: BERT's word predictor at full width, where the token
    table E fills only the first columns.

    ``extra`` holds the rest, D (vocabulary, hidden - embedding); there is none where the table is
    as wide as the model.
    """

    def __init__(self, c: MobileBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, 1e-12 if c.norm == "manual_layer_norm" else c.norm_eps)
        self.decoder = None if c.tie_word_embeddings else nn.Linear(c.embedding_size, c.vocab_size, bias=False)
        rest = c.hidden_size - c.embedding_size
        self.extra = nn.Linear(rest, c.vocab_size, bias=False) if rest else None
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.activation = activation(c.activation)
        self.embedding_size = c.embedding_size

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(
        self, hidden: Float[Tensor, "*rows hidden"], table: Float[Tensor, "vocabulary embedding"]
    ) -> Float[Tensor, "*rows vocabulary"]:
        x = self.norm(self.activation(self.dense(hidden)))  # eq: words
        words = F.linear(  # eq: words
            x[..., : self.embedding_size], table if self.decoder is None else self.decoder.weight, self.bias
        )
        return words if self.extra is None else words + self.extra(x[..., self.embedding_size :])  # eq: words


def block_class(c: MobileBertConfig) -> type[StackedBlock]:
    """Which wiring the config asks for."""
    if not c.bottleneck:
        return StackedBlock
    if c.bottleneck_attention:
        return NarrowAttentionBlock
    return SharedKeyQueryBlock if c.shared_key_query else BottleneckBlock


class MobileBert(TextEncoder):
    Config = MobileBertConfig
    heads = {"masked_lm": SplitMaskedLMHead, "next_sentence": lambda c: nn.Linear(c.hidden_size, 2)}
    pretraining = (MASKED_LM, NEXT_SENTENCE)
    exceptions = {
        "padding": "with the trigram embedding the last real token reads the embedding of the padding behind it",
    }

    def __init__(self, config: MobileBertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = MobileBertEmbeddings(c)
        self.encoder = Stack([block_class(c)(c) for _ in range(c.num_layers)])
        self.pooler = None if not c.pooler else FirstTokenPooler(c.hidden_size) if c.pooler_dense else Pooler()
