"""mBART (Liu et al., 2020): an encoder-decoder for many languages, pre-trained to restore texts
whose sentences were shuffled and cut.

    h_0 = norm(sqrt(d) · token + position[t + 2])           each side with its own positions and norm, one token table E
    encoder:  a = h + MHA(norm(h)),            h' = a + W_2 gelu(W_1 norm(a))          pre-norm, eps 1e-5
    decoder:  a = h + MHA(norm(h); causal),  c = a + MHA(norm(a), m),   h' = c + W_2 gelu(W_1 norm(c))
    m = norm(encoder),   scores = E norm(decoder) + b        a final norm on both sides; b is constant, zero in releases

Differs from BART: the final norms, the norms before the sublayers, the scaled tokens, and that the
language is a token: mBART-cc25 reads ``X </s> [source]`` and writes ``[target] X </s>``; mBART-50
reads ``[source] X </s>`` and writes ``</s> [target] X``.

Traps: the labels' own last token, not a fixed one, is what the decoder begins with
(`shift_right`): the language code for mBART-cc25, </s> for mBART-50. Positions count columns,
padding too, as in the Hugging Face library; fairseq counts tokens, which is the same where padding
stands on the right. The table has two rows that are never read. The padding token's vector is
initialized like any other here; fairseq's is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers import (
    Attention,
    DecoderBlock,
    Encoded,
    EncoderBlock,
    FeedForward,
    Mask,
    Run,
    Stack,
    Trace,
    Wanted,
    causal,
    pre_norm,
)
from zoo.layers.embeddings import check_ids, same_shape
from zoo.layers.feed_forward import check_activation
from zoo.layers.shapes import Rows, SourceRows
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.model import Model, Reading
from zoo.models.base.outputs import Seq2Seq
from zoo.registry.terms import LANGUAGE_MODEL

OFFSET = 2  # rows of a position table before the first that is read


@dataclass(frozen=True, kw_only=True)
class MbartConfig(Config):
    vocab_size: int = 250_027
    hidden_size: int = 1024
    num_layers: int = 12  # of the encoder
    num_heads: int = 16
    intermediate_size: int = 4096
    decoder_num_layers: int = 12  # depth of the decoder
    decoder_num_heads: int = 16  # heads of its attention
    decoder_intermediate_size: int = 4096  # inner width of its feed-forward
    max_positions: int = 1024  # places of a text on either side
    scale_embeddings: bool = True  # tokens times sqrt(hidden_size)
    activation: str = "gelu"
    norm_eps: float = 1e-5
    pad_token_id: int = 1
    tie_word_embeddings: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.0)
    activation_dropout: float = free(0.0)  # behind the activation
    initializer_range: float = free(0.02)
    start_token_id: int | None = free(
        None
    )  # what a text begins with where nobody says; None: its language must be said
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


class PlacedTokens(nn.Module):
    """``dropout(norm(scale · token + position[t + 2]))``: one side's embeddings above the token
    table.
    """

    def __init__(self, c: MbartConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(c.max_positions + OFFSET, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.scale, self.longest = c.token_scale, c.max_positions

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
        return self.dropout(self.norm(self.scale * tokens + self.position(position_ids + OFFSET)))  # eq: embedding


class MbartEmbeddings(PlacedTokens):
    """The token table that both sides read, and the encoder's embeddings."""

    roles = {"token": "token-embedding"}

    def __init__(self, c: MbartConfig) -> None:
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


def encoder_block(c: MbartConfig) -> EncoderBlock:  # eq: encoder-block
    """A block of the encoder."""
    return EncoderBlock(
        Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout),
        FeedForward(c.hidden_size, c.intermediate_size, c.activation, dropout=c.activation_dropout),
        nn.LayerNorm(c.hidden_size, c.norm_eps),
        nn.LayerNorm(c.hidden_size, c.norm_eps),
        dropout=c.dropout,
        residual=pre_norm,
    )


def decoder_block(c: MbartConfig) -> DecoderBlock:  # eq: decoder-block
    """A block of the decoder; the memory it looks at has its norm already."""
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
        residual=pre_norm,
    )


class MbartDecoder(nn.Module):
    """Positions of its own, blocks that look across, the final norm."""

    def __init__(self, c: MbartConfig) -> None:
        super().__init__()
        self.embeddings = PlacedTokens(c)
        self.blocks = nn.ModuleList(decoder_block(c) for _ in range(c.decoder_num_layers))
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)

    def forward(self, x: Rows, memory: SourceRows, mask: Mask, memory_mask: Mask, trace: Trace) -> Rows:
        """The states before the final norm."""
        for block in self.blocks:
            x = block(x, memory, mask, memory_mask, trace)
            trace.hidden(x)
        return x


class LanguageModelHead(nn.Module):
    """``E h + b``: E the token table that is handed over (``tied=False``: a matrix of its own), b a
    constant that is stored, not trained.
    """

    bias: Tensor

    def __init__(self, c: MbartConfig) -> None:
        super().__init__()
        self.decoder = None if c.tie_word_embeddings else nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.register_buffer("bias", torch.empty(c.vocab_size))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(
        self, hidden: Float[Tensor, "*rows hidden"], table: Float[Tensor, "vocabulary hidden"]
    ) -> Float[Tensor, "*rows vocabulary"]:
        return F.linear(hidden, table if self.decoder is None else self.decoder.weight, self.bias)  # eq: words


class Mbart(Model):
    Config = MbartConfig
    inputs: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "decoder_input_ids",
        "decoder_attention_mask",
        "decoder_position_ids",
    )
    heads = {"language_model": LanguageModelHead}
    offers = {"target": Reading(lambda e: e.last_hidden_state, "target length")}
    pretraining = (LANGUAGE_MODEL,)

    def __init__(self, config: MbartConfig) -> None:
        super().__init__(config)
        self.embeddings = MbartEmbeddings(config)
        self.encoder = Stack([encoder_block(config) for _ in range(config.num_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.decoder = MbartDecoder(config)

    @property
    def output_table(self) -> Float[Tensor, "vocabulary hidden"]:
        """The token table that word scores are taken with."""
        return self.embeddings.token.weight

    def decoder_inputs(self, labels: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """What the decoder reads where the labels are to follow: their last token, then all but the
        last place.
        """
        return shift_right(labels, self.config.pad_token_id)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        decoder_input_ids: Int[Tensor, "batch target_length"] | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Int[Tensor, "*#batch target_length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Seq2Seq:
        """Encode a batch of sources, and decode their targets as far as they are given.

        Masks like the ids, 1/True = a real token; positions from 0; lengths: real tokens of each
        source, where they stand first. The result holds the decoder's states, the encoder's under
        ``encoder``; the last of the hidden states is the normalized result.
        """
        shown = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        encoded = self.encode(input_ids, attention_mask, position_ids, lengths=lengths, **shown)
        decoded = self.decode(
            decoder_input_ids,
            encoded.last_hidden_state,
            attention_mask,
            decoder_attention_mask,
            decoder_position_ids,
            lengths=lengths,
            **shown,
        )
        return replace(decoded, encoder=encoded)

    def encode(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """The source's states, normalized."""
        x = self.embeddings(input_ids, position_ids)  # (batch, length, hidden)
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
        return run.encoded(run.through(self.encoder, norm=self.norm))  # eq: memory

    def decode(
        self,
        decoder_input_ids: Int[Tensor, "batch target_length"] | None,
        memory: Float[Tensor, "batch length hidden"],
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Int[Tensor, "*#batch target_length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Seq2Seq:
        """What the decoder makes of ``memory``, the encoder's states; ``attention_mask`` is the source's."""
        tokens = self.embeddings.look_up(decoder_input_ids, "decoder_input_ids")
        x = self.decoder.embeddings.place(tokens, decoder_position_ids, "decoder_position_ids")
        kept = output_hidden_states, output_attentions
        source = Run(memory, attention_mask, lengths, *kept)
        target = Run(x, decoder_attention_mask, None, *kept, name="decoder_attention_mask")
        # (batch, target length, hidden)
        x = target.across(self.decoder, source, causal(), norm=self.decoder.norm)  # eq: decoder
        return Seq2Seq(x, target.hidden_states, target.attentions, target.cross_attentions)


def shift_right(
    labels: Int[Tensor, "batch length"], pad_token_id: int, start_token_id: int | None = None
) -> Int[Tensor, "batch length"]:
    """``[start, labels without the last place]``, with padding where labels are -100.

    start_token_id None: each row's own last token that is no padding comes to the front (mBART: the
    language code, or </s>) and, in a row that is shorter than the longest, stands at its end too.
    """
    if labels.dim() != 2:
        raise InputError(f"labels must be (batch, length), got {tuple(labels.shape)}")
    filled = labels.masked_fill(labels == -100, pad_token_id)
    if start_token_id is None:
        place = torch.arange(labels.shape[1], device=labels.device)
        last = torch.where(filled != pad_token_id, place, 0).amax(1, keepdim=True)  # (batch, 1)  # eq: shift
        start = filled.gather(1, last)  # eq: shift
    else:
        start = filled.new_full((filled.shape[0], 1), start_token_id)
    return torch.cat([start, filled[:, :-1]], 1)  # eq: shift
