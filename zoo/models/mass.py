"""MASS for translation (Song et al., 2019): XLM's encoder-decoder, pre-trained to write the span that
its source lacks.

    x without u..v  ->  x_u .. x_v                        a span of half the tokens, behind [MASK] in the source
    decoder: token[x_(t-1)] + position[t - 1], t in u..v  each word at its place in the whole sentence
    c = norm(a + W_l heads(a, m))                         W_l: of the language l that is written
    m: the encoder's states where the source is no [MASK]

Differs from XLM's translator: the cross-attention has an output matrix per language, and does not see
the places that the source masks; the sides may differ in depth. Before it translates, the model is
tuned by back-translation, or on pairs. The spans: `zoo.data.span_masking`. The model for summaries
is another, `zoo.models.mass_summarization`.

Traps: only [MASK] in the input is hidden; words of the span that stay or become others are seen. One
language alone in a batch is what the reference expects: it takes the matrix of the batch's largest
language id for all, where here each target has its own. The encoder sees its masks. The span is
counted with </s> on both ends, of which the last may be in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers import Attention, Mask, Run, Trace
from zoo.layers.embeddings import Languages, check_ids
from zoo.layers.padding import as_bool, first_columns
from zoo.layers.shapes import Rows, SourceRows
from zoo.models.base.config import check_positive
from zoo.models.base.encoder_decoder import Reader
from zoo.models.xlm import XlmEmbeddings, zero_padding
from zoo.models.xlm_translation import XlmDecoder, XlmDecoderBlock, XlmTranslation, XlmTranslationConfig
from zoo.registry.terms import LANGUAGE_MODEL


@dataclass(frozen=True, kw_only=True)
class MassConfig(XlmTranslationConfig):
    decoder_num_layers: int = 6  # depth of the decoder
    mask_token_id: int = 5  # [MASK], whose places the decoder does not see

    def check(self) -> None:
        super().check()
        check_positive(self, "decoder_num_layers")
        if not 0 <= self.mask_token_id < self.vocab_size:
            raise ConfigError(
                f"mask_token_id={self.mask_token_id} must lie in 0..vocab_size - 1 = {self.vocab_size - 1}"
            )

    @property
    def num_outputs(self) -> int:
        """Output matrices of a cross-attention: one per language, one in all without languages."""
        return self.num_languages if self.language_embeddings else 1


class LanguageOutputs(nn.ModuleList):
    """``W_l x + b_l``, a matrix for each language l."""

    def forward(
        self, x: Float[Tensor, "*rows inner"], languages: Int[Tensor, "*rows"]
    ) -> Float[Tensor, "*rows hidden"]:
        made = torch.stack([linear(x) for linear in self], -2)  # (..., languages, hidden)
        chosen = languages[..., None, None].expand(*made.shape[:-2], 1, made.shape[-1])
        return made.gather(-2, chosen).squeeze(-2)  # eq: outputs


class LanguageAttention(Attention):
    """Multi-head attention whose output matrix is that of the language of each query."""

    output: LanguageOutputs  # type: ignore[assignment]

    def __init__(self, c: MassConfig) -> None:
        super().__init__(c.hidden_size, c.num_heads, dropout=c.attention_dropout)
        self.output = LanguageOutputs(nn.Linear(c.hidden_size, c.hidden_size) for _ in range(c.num_outputs))

    def forward(  # type: ignore[override]
        self, x: Rows, memory: SourceRows, mask: Mask, languages: Int[Tensor, "*rows"], trace: Trace | None = None
    ) -> Rows:
        return self.output(self.context(x, memory, memory, mask, None, trace), languages)  # eq: outputs


class MassDecoderBlock(XlmDecoderBlock):
    """XLM's decoder block, whose cross-attention knows the languages of its queries."""

    def forward(  # type: ignore[override]
        self,
        x: Rows,
        memory: SourceRows,
        mask: Mask,
        memory_mask: Mask,
        trace: Trace | None,
        languages: Int[Tensor, "*rows"],
    ) -> Rows:
        across = None if trace is None else trace.across()
        x = self.residual(x, lambda y: self.attention(y, y, y, mask, None, trace), self.attention_norm, self.dropout)
        x = self.residual(  # eq: cross
            x,
            lambda y: self.cross_attention(y, memory, memory_mask, languages, across),
            self.cross_attention_norm,
            self.dropout,
        )
        return zero_padding(self.residual(x, self.feed_forward, self.feed_forward_norm, self.dropout), mask)


class MassDecoder(XlmDecoder):
    """XLM's decoder, told the language of every token."""

    def forward(  # type: ignore[override]
        self,
        x: Rows,
        memory: SourceRows,
        mask: Mask,
        memory_mask: Mask,
        trace: Trace,
        languages: Int[Tensor, "*rows"],
    ) -> Rows:
        x = zero_padding(x, mask)
        for block in self.blocks:
            x = block(x, memory, mask, memory_mask, trace, languages)
            trace.hidden(x)
        return x


class Mass(XlmTranslation):
    Config = MassConfig
    pretraining = (LANGUAGE_MODEL,)  # of the span
    decoder: MassDecoder

    def __init__(self, config: MassConfig) -> None:
        super().__init__(config)
        blocks = [MassDecoderBlock.of(config, LanguageAttention(config)) for _ in range(config.decoder_num_layers)]
        self.decoder = MassDecoder(XlmEmbeddings(config), blocks)

    def seen_of_source(
        self,
        input_ids: Int[Tensor, "batch length"] | None,
        attention_mask: Tensor | None,
        lengths: Sequence[int] | None,
    ) -> tuple[Tensor | None, Sequence[int] | None]:
        """The real tokens that are no [MASK]; their lengths are not known."""
        if input_ids is None:
            return attention_mask, lengths
        seen = check_ids(input_ids, self.config.vocab_size, "input_ids") != self.config.mask_token_id  # eq: seen
        if attention_mask is not None:
            real = as_bool(attention_mask)
            seen = seen & (real if real.dim() == 2 else real.any(1) | real.any(2))
        elif lengths is not None:
            seen = seen & first_columns(lengths, (seen.shape[0], seen.shape[1])).to(seen.device)
        return seen, None

    def writing_in(self, language_ids: Languages | None, target: Run) -> Reader:
        """The decoder, told the languages of the target's tokens."""
        table = self.decoder.embeddings.language
        if table is None:
            languages = torch.zeros(target.x.shape[:2], dtype=torch.long, device=target.x.device)
        else:
            languages = table.ids(language_ids, target.x)
        decoder = self.decoder
        # packed when called, in the order that the source settled
        return lambda *given: decoder(*given, target.along(languages))
