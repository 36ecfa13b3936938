"""An encoder, and a decoder that looks at what it made of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.layers.cache import KeyValueCache
from zoo.layers.masks import Mask, causal
from zoo.layers.outputs import Encoded
from zoo.layers.run import Run
from zoo.layers.shapes import Rows, SourceRows
from zoo.layers.stack import Stack
from zoo.layers.trace import Trace, Wanted
from zoo.models.base.model import Model, Reading
from zoo.models.base.outputs import Seq2Seq

Reader = Callable[[Tensor, Tensor, Mask, Mask, Trace], Tensor]  # called as a `Decoder` is


class Decoder(nn.Module):
    """Embeddings of its own, blocks that look across, and the norm that they end in, if any."""

    def __init__(self, embeddings: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.embeddings, self.blocks, self.norm = embeddings, nn.ModuleList(blocks), norm

    def forward(self, x: Rows, memory: SourceRows, mask: Mask, memory_mask: Mask, trace: Trace) -> Rows:
        """The states before the norm."""
        for block in self.blocks:
            x = block(x, memory, mask, memory_mask, trace)
            trace.hidden(x)
        return x


class EncoderDecoder(Model):
    """A model that reads a source and writes a target.

        m = encoder(source),   states = decoder(target; causal; m),   scores of the next word = head(states)

    A family defines `embed` and `embed_target`, and whatever else it reads by its own ``encode`` and
    ``decode``. A decoder that is handed a `KeyValueCache` reads the tokens that are new.
    """

    inputs: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "decoder_input_ids",
        "decoder_attention_mask",
        "decoder_position_ids",
    )
    writes = "encoder-decoder"
    offers = {"target": Reading(lambda e: e.last_hidden_state, "target length")}
    embeddings: nn.Module
    encoder: Stack
    norm: nn.Module | None  # that the encoder ends in, where its blocks leave their states unnormalized
    decoder: Decoder

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.norm = None

    @property
    def output_table(self) -> Float[Tensor, "vocabulary hidden"]:
        """The token table that word scores are taken with."""
        raise NotImplementedError

    def embed(
        self, input_ids: Int[Tensor, "batch length"] | None, position_ids: Int[Tensor, "*#batch length"] | None
    ) -> Float[Tensor, "batch length hidden"]:
        """What enters the encoder."""
        raise NotImplementedError

    def embed_target(
        self, input_ids: Int[Tensor, "batch length"] | None, position_ids: Int[Tensor, "*#batch length"] | None
    ) -> Float[Tensor, "batch length hidden"]:
        """What enters the decoder."""
        raise NotImplementedError

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
        ``encoder``; where a stack ends in a norm, the last of the hidden states is normalized.
        """
        shown: Any = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        encoded = self.encode(input_ids, attention_mask, position_ids, lengths=lengths, **shown)
        source_mask, lengths = self.seen_of_source(input_ids, attention_mask, lengths)
        decoded = self.decode(
            decoder_input_ids,
            encoded.last_hidden_state,
            source_mask,
            decoder_attention_mask,
            decoder_position_ids,
            lengths=lengths,
            **shown,
        )
        return replace(decoded, encoder=encoded)

    def seen_of_source(
        self,
        input_ids: Int[Tensor, "batch length"] | None,
        attention_mask: Tensor | None,
        lengths: Sequence[int] | None,
    ) -> tuple[Tensor | None, Sequence[int] | None]:
        """The mask and the lengths by which the decoder looks at a source: those of the encoder."""
        return attention_mask, lengths

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
        """The source's states."""
        run = Run(self.embed(input_ids, position_ids), attention_mask, lengths, output_hidden_states, output_attentions)
        return run.encoded(run.through(self.encoder, norm=self.norm))  # (batch, length, hidden)  # eq: memory

    def decode(
        self,
        decoder_input_ids: Int[Tensor, "rows target_length"] | None,
        memory: Float[Tensor, "batch length hidden"] | None = None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_position_ids: Int[Tensor, "*#rows target_length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
        cache: KeyValueCache | None = None,
    ) -> Seq2Seq:
        """What the decoder makes of ``memory``, the encoder's states; ``attention_mask`` is the source's.

        With a cache the target is what is new of it, at the positions behind the columns before, and
        ``memory`` is needed the first time alone.
        """
        positions = following(decoder_position_ids, decoder_input_ids, cache)
        kept = output_hidden_states, output_attentions
        target = Run(
            self.embed_target(decoder_input_ids, positions),
            decoder_attention_mask,
            None,
            *kept,
            name="decoder_attention_mask",
            cache=cache,
        )
        return self.looking(target, None if memory is None else Run(memory, attention_mask, lengths, *kept))

    def looking(self, target: Run, source: Run | None, decoder: Reader | None = None) -> Seq2Seq:
        """What the decoder, or ``decoder`` in its place, makes of a target while it looks at a source."""
        if source is None and target.cache is None:
            raise InputError("memory is missing: the encoder's states, as encode gives them")
        # (batch, target length, hidden)
        x = target.across(decoder or self.decoder, source, causal(), norm=self.decoder.norm)  # eq: decoder
        return Seq2Seq(x, target.hidden_states, target.attentions, target.cross_attentions)


def following(position_ids: Any, input_ids: Any, cache: KeyValueCache | None) -> Any:
    """Positions, with a cache those behind its columns where none are given."""
    if cache is None or position_ids is not None or not isinstance(input_ids, Tensor):
        return position_ids
    return torch.arange(cache.length, cache.length + input_ids.shape[-1], device=input_ids.device)


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
