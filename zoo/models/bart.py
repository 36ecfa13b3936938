"""BART (Lewis et al., 2020): an encoder-decoder, pre-trained to restore texts whose sentences were
shuffled and from which spans were cut.

    h_0 = norm(token + position[t + 2])           each side with its own positions and norm, one token table E
    encoder:  a = norm(h + MHA(h)),            h' = norm(a + W_2 gelu(W_1 a))          post-norm, eps 1e-5
    decoder:  a = norm(h + MHA(h; causal)),  c = norm(a + MHA(a, m)),   h' = norm(c + W_2 gelu(W_1 c))
    scores = E decoder + b                        no final norm; b is constant, zero in releases

Differs from BERT: a decoder, positions that begin at row 2 of their table, no segments, no pooler.
A source is ``<s> X </s>``; the decoder begins with </s> and writes ``<s> X </s>``.

Traps: the decoder's first input is </s> (id 2), not <s>. Released summarizers (large-cnn, large-xsum)
rely on settings of their search: <s> is forced as the first word, </s> as the last. Positions count
columns, padding too, as in the Hugging Face library; fairseq counts tokens, which is the same where
padding stands on the right. The table has two rows that are never read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers import Attention, DecoderBlock, EncoderBlock, FeedForward, Residual, Stack, post_norm
from zoo.layers.embeddings import check_ids, same_shape
from zoo.layers.feed_forward import check_activation
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.encoder_decoder import Decoder, EncoderDecoder, shift_right
from zoo.registry.terms import LANGUAGE_MODEL


@dataclass(frozen=True, kw_only=True)
class BartConfig(Config):
    vocab_size: int = 50_265
    hidden_size: int = 768
    num_layers: int = 6  # of the encoder
    num_heads: int = 12
    intermediate_size: int = 3072
    decoder_num_layers: int = 6  # depth of the decoder
    decoder_num_heads: int = 12  # heads of its attention
    decoder_intermediate_size: int = 3072  # inner width of its feed-forward
    max_positions: int = 1024  # places of a text on either side
    scale_embeddings: bool = False  # tokens times sqrt(hidden_size)
    activation: str = "gelu"
    norm_eps: float = 1e-5
    pad_token_id: int = 1
    tie_word_embeddings: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.0)
    activation_dropout: float = free(0.0)  # behind the activation
    initializer_range: float = free(0.02)
    start_token_id: int | None = free(2)  # what the decoder begins with; None: each text's language must be said
    end_token_id: int = free(2)  # </s>

    def check(self) -> None:
        sizes = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "max_positions")
        check_positive(self, *sizes, "decoder_num_layers", "decoder_num_heads", "decoder_intermediate_size")
        check_heads(self.hidden_size, self.num_heads)
        check_heads(self.hidden_size, self.decoder_num_heads, heads_name="decoder_num_heads")
        check_activation(self.activation)
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id={self.pad_token_id} must lie in 0..vocab_size - 1 = {self.vocab_size - 1}")

    @property
    def token_scale(self) -> float:
        return math.sqrt(self.hidden_size) if self.scale_embeddings else 1.0

    @property
    def first_position(self) -> int:
        """The row of the position table that the first token reads."""
        return 2


class PlacedTokens(nn.Module):
    """``dropout(norm(scale · token + position[t + 2]))``: one side's embeddings above the token
    table.
    """

    def __init__(self, c: BartConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(c.max_positions + c.first_position, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.scale, self.longest, self.first = c.token_scale, c.max_positions, c.first_position

    def place(
        self,
        tokens: Float[Tensor, "batch length hidden"],
        position_ids: Int[Tensor, "*#batch length"] | None,
        name: str,
    ) -> Float[Tensor, "batch length hidden"]:
        """Tokens at their positions, 0, 1, ... where none are given."""
        length = tokens.shape[1]
        if length == 0:
            raise InputError("the text has no token: its length is 0; give one at least, padding if need be")
        if length > self.longest:
            raise InputError(
                f"the text is {length} tokens long; this model has {self.longest} positions: cut it or split it"
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=tokens.device)
        if isinstance(position_ids, Tensor) and position_ids.dim() == 1:
            position_ids = position_ids[None]
        position_ids = check_ids(position_ids, self.longest, name)
        if position_ids.shape[0] != 1 or position_ids.shape[1] != length:
            same_shape(position_ids, tokens, name)
        return self.dropout(self.norm(self.scale * tokens + self.position(position_ids + self.first)))  # eq: embedding


class SharedEmbeddings(PlacedTokens):
    """The token table that both sides read, and the encoder's embeddings."""

    roles = {"token": "token-embedding"}

    def __init__(self, c: BartConfig) -> None:
        super().__init__(c)
        self.token = nn.Embedding(c.vocab_size, c.hidden_size)

    def look_up(self, input_ids: Int[Tensor, "batch length"] | None, name: str) -> Float[Tensor, "batch length hidden"]:
        """The rows of the table, not scaled."""
        if input_ids is None:
            raise InputError(f"{name} is missing")
        return self.token(check_ids(input_ids, self.token.num_embeddings, name))

    def forward(
        self, input_ids: Int[Tensor, "batch length"] | None, position_ids: Int[Tensor, "*#batch length"] | None = None
    ) -> Float[Tensor, "batch length hidden"]:
        return self.place(self.look_up(input_ids, "input_ids"), position_ids, "position_ids")


def encoder_block(c: BartConfig, residual: Residual = post_norm) -> EncoderBlock:  # eq: encoder-block
    """A block of the encoder."""
    return EncoderBlock(
        Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout),
        FeedForward(c.hidden_size, c.intermediate_size, c.activation, dropout=c.activation_dropout),
        nn.LayerNorm(c.hidden_size, c.norm_eps),
        nn.LayerNorm(c.hidden_size, c.norm_eps),
        dropout=c.dropout,
        residual=residual,
    )


def decoder_block(c: BartConfig, residual: Residual = post_norm) -> DecoderBlock:  # eq: decoder-block
    """A block of the decoder."""
    return DecoderBlock(
        Attention(c.hidden_size, c.decoder_num_heads, dropout=c.attention_dropout),
        Attention(c.hidden_size, c.decoder_num_heads, dropout=c.attention_dropout),
        FeedForward(c.hidden_size, c.decoder_intermediate_size, c.activation, dropout=c.activation_dropout),
        (
            nn.LayerNorm(c.hidden_size, c.norm_eps),
            nn.LayerNorm(c.hidden_size, c.norm_eps),
            nn.LayerNorm(c.hidden_size, c.norm_eps),
        ),
        dropout=c.dropout,
        residual=residual,
    )


class LanguageModelHead(nn.Module):
    """``E h + b``: E the token table that is handed over (``tied=False``: a matrix of its own), b a
    constant that is stored, not trained.
    """

    bias: Tensor

    def __init__(self, c: BartConfig) -> None:
        super().__init__()
        self.decoder = None if c.tie_word_embeddings else nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.register_buffer("bias", torch.empty(c.vocab_size))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(
        self, hidden: Float[Tensor, "*rows hidden"], table: Float[Tensor, "vocabulary hidden"]
    ) -> Float[Tensor, "*rows vocabulary"]:
        return F.linear(hidden, table if self.decoder is None else self.decoder.weight, self.bias)  # eq: words


class BartDecoder(Decoder):
    """Positions of its own, above the token table that it shares with the encoder."""

    embeddings: PlacedTokens


class Bart(EncoderDecoder):
    Config = BartConfig
    heads = {"language_model": LanguageModelHead}
    pretraining = (LANGUAGE_MODEL,)
    embeddings: SharedEmbeddings
    decoder: BartDecoder

    def __init__(self, config: BartConfig) -> None:
        super().__init__(config)
        residual = self.residual()
        self.embeddings = SharedEmbeddings(config)
        self.encoder = Stack([encoder_block(config, residual) for _ in range(config.num_layers)])
        blocks = [decoder_block(config, residual) for _ in range(config.decoder_num_layers)]
        self.decoder = BartDecoder(PlacedTokens(config), blocks)

    @staticmethod
    def residual() -> Residual:
        """Where the norms stand."""
        return post_norm

    @property
    def output_table(self) -> Float[Tensor, "vocabulary hidden"]:
        return self.embeddings.token.weight

    def decoder_inputs(self, labels: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """What the decoder reads where the labels are to follow: the start token, or where the config has
        none each row's last, then all labels but the last place.
        """
        return shift_right(labels, self.config.pad_token_id, self.config.start_token_id)

    def embed(
        self, input_ids: Int[Tensor, "batch length"] | None, position_ids: Int[Tensor, "*#batch length"] | None
    ) -> Float[Tensor, "batch length hidden"]:
        return self.embeddings(input_ids, position_ids)

    def embed_target(
        self, input_ids: Int[Tensor, "batch length"] | None, position_ids: Int[Tensor, "*#batch length"] | None
    ) -> Float[Tensor, "batch length hidden"]:
        tokens = self.embeddings.look_up(input_ids, "decoder_input_ids")
        return self.decoder.embeddings.place(tokens, position_ids, "decoder_position_ids")
