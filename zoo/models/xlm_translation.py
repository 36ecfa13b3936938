"""XLM's encoder-decoder (Lample and Conneau, 2019): two XLMs, of which the second also attends
to the first.

    m   = Xlm(source)                                                       its own embeddings, languages, blocks
    a   = norm(h + MHA(h; causal)),   c = norm(a + MHA(a, m)),   h' = 1[real] · norm(c + W_2 gelu(W_1 c))
    scores = E h + b                                                        E: the decoder's own token table

Each side has its full set of tables, so that both can start from one pre-trained XLM; nothing is
shared between them. A translation begins with </s> in the target language and ends with the next
</s> (`zoo.generate`).

Traps: the encoder's file holds a prediction layer too, which translating never uses (the head
``masked_lm``). Labels are the words that follow: at place t the word at t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers import Attention, DecoderBlock, Encoded, FeedForward, Mask, Pooler, Run, Stack, Trace, Wanted
from zoo.layers.cache import KeyValueCache
from zoo.layers.embeddings import Languages
from zoo.layers.heads import TableHead
from zoo.layers.shapes import Rows, SourceRows
from zoo.models.base.config import free
from zoo.models.base.encoder_decoder import Decoder, EncoderDecoder, Reader, following
from zoo.models.base.outputs import Seq2Seq
from zoo.models.xlm import XlmConfig, XlmEmbeddings, xlm_block, zero_padding
from zoo.registry.terms import PretrainingTerm


@dataclass(frozen=True, kw_only=True)
class XlmTranslationConfig(XlmConfig):
    vocab_size: int = 64_139
    num_layers: int = 6  # of each side
    num_languages: int = 2
    pooler: bool = False
    end_token_id: int = free(1)  # </s>, on both ends of a sentence

    @property
    def start_token_id(self) -> int:
        return self.end_token_id

    @property
    def decoder_num_layers(self) -> int:  # a field where the sides may differ
        return self.num_layers


class XlmDecoderBlock(DecoderBlock):
    """The original Transformer's decoder block, after which rows of padding are zeros."""

    @classmethod
    def of(cls, c: XlmConfig, across: Attention | None = None) -> Self:
        """From a config; ``across``: the cross-attention, where it is of another kind."""
        return cls(
            Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout),
            across or Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout),
            FeedForward(c.hidden_size, c.intermediate_size, c.activation),
            (
                nn.LayerNorm(c.hidden_size, c.norm_eps),
                nn.LayerNorm(c.hidden_size, c.norm_eps),
                nn.LayerNorm(c.hidden_size, c.norm_eps),
            ),
            dropout=c.dropout,
        )

    def forward(self, x: Rows, memory: SourceRows, mask: Mask, memory_mask: Mask, trace: Trace | None = None) -> Rows:
        return zero_padding(super().forward(x, memory, mask, memory_mask, trace), mask)  # eq: decoder-block


class XlmDecoder(Decoder):
    """The second XLM: embeddings of its own and blocks that look across."""

    embeddings: XlmEmbeddings

    def forward(self, x: Rows, memory: SourceRows, mask: Mask, memory_mask: Mask, trace: Trace) -> Rows:
        return super().forward(zero_padding(x, mask), memory, mask, memory_mask, trace)


class XlmTranslation(EncoderDecoder):
    Config = XlmTranslationConfig
    inputs: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "language_ids",
        "position_ids",
        "decoder_input_ids",
        "decoder_attention_mask",
        "decoder_language_ids",
        "decoder_position_ids",
    )
    heads = {
        "language_model": lambda c: TableHead(c.hidden_size, c.vocab_size, tied=c.tie_word_embeddings),
        "masked_lm": lambda c: TableHead(c.hidden_size, c.vocab_size, tied=c.tie_word_embeddings),
    }
    pretraining: ClassVar[tuple[PretrainingTerm, ...]] = ()  # two pre-trained models start it
    embeddings: XlmEmbeddings
    decoder: XlmDecoder

    def __init__(self, config: XlmTranslationConfig) -> None:
        super().__init__(config)
        self.embeddings = XlmEmbeddings(config)
        self.encoder = Stack([xlm_block(config) for _ in range(config.num_layers)])
        self.pooler = Pooler() if config.pooler else None
        blocks = [XlmDecoderBlock.of(config) for _ in range(config.decoder_num_layers)]
        self.decoder = XlmDecoder(XlmEmbeddings(config), blocks)

    @property
    def output_table(self) -> Float[Tensor, "vocabulary hidden"]:  # eq: words
        """The token table that word scores are taken with."""
        return self.decoder.embeddings.token.weight

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        language_ids: Languages | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        decoder_input_ids: Int[Tensor, "batch target_length"] | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_language_ids: Languages | None = None,
        decoder_position_ids: Int[Tensor, "*#batch target_length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Seq2Seq:
        """Encode a batch of sources, and decode their translations as far as they are given.

        Masks like the ids, 1/True = a real token; languages as `Xlm` takes them. The result holds the
        decoder's states, the encoder's under ``encoder``.
        """
        shown: Any = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        encoded = self.encode(input_ids, attention_mask, language_ids, position_ids, lengths=lengths, **shown)
        source_mask, lengths = self.seen_of_source(input_ids, attention_mask, lengths)
        decoded = self.decode(
            decoder_input_ids,
            encoded.last_hidden_state,
            source_mask,
            decoder_attention_mask,
            decoder_language_ids,
            decoder_position_ids,
            lengths=lengths,
            **shown,
        )
        return replace(decoded, encoder=encoded)

    def encode(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        language_ids: Languages | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """What the first XLM makes of the source."""
        x = self.embeddings(input_ids, position_ids=position_ids, language_ids=language_ids)  # eq: memory
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
        run.x = zero_padding(run.x, run.mask)
        return run.encoded(run.through(self.encoder), self.pooler)  # (batch, length, hidden)  # eq: memory

    def decode(  # type: ignore[override]
        self,
        decoder_input_ids: Int[Tensor, "rows target_length"] | None,
        memory: Float[Tensor, "batch length hidden"] | None = None,
        attention_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_language_ids: Languages | None = None,
        decoder_position_ids: Int[Tensor, "*#rows target_length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
        cache: KeyValueCache | None = None,
    ) -> Seq2Seq:
        """What the second makes of ``memory``, the encoder's states; ``attention_mask`` is the source's."""
        positions = following(decoder_position_ids, decoder_input_ids, cache)
        x = self.decoder.embeddings(decoder_input_ids, position_ids=positions, language_ids=decoder_language_ids)
        kept = output_hidden_states, output_attentions
        target = Run(x, decoder_attention_mask, None, *kept, name="decoder_attention_mask", cache=cache)
        source = None if memory is None else Run(memory, attention_mask, lengths, *kept)
        return self.looking(target, source, self.writing_in(decoder_language_ids, target))

    def writing_in(self, language_ids: Languages | None, target: Run) -> Reader:
        """The decoder of a target in these languages; here one for all."""
        return self.decoder
