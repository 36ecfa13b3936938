"""M3P (Ni et al., 2021): one XLM for texts of many languages, for pictures, and for both together.

    text alone : norm(token + position + language)
    regions    : r = norm_r(W f + L b + D c),  with the refiner r = refine(r);  alone: r
    both       : norm([r + position_0.. ; token + position_N..])          N regions, which take the first positions
    refine     : x + AoA(norm x),  x + FFN(norm x),  a norm at the end;   AoA = GLU(W [attended ; query])
    h          = XLM's blocks (rows of padding are zeros)
    pooled     = tanh(W_p h_first),  the first *region*, where there is one
    captions   = the same blocks, causal, with a cross-attention over a picture's states

Pre-training: masked words in any language, masked regions (class, feature), does the picture belong,
and is a code-switched sentence the right translation (a second pooler and output). Captions are
code-switched word by word with a dictionary, `zoo.data.code_switching`.

Traps: region vectors are normalized twice where a text is read too, words once. A language vector is
added to a text or a picture alone, never to both together. Positions begin at 0, although XLM-R's
table begins at row 2. Boxes are divided by their own length. The authors' joint mask is a prefix of
(regions + words) places, right only where all regions are real; here each has its own mask, and the
text begins behind the real regions. The cross-attention of each block is in every file, and
nothing but `M3P.decode` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers import Attention, EncoderBlock, FeedForward, FirstTokenPooler, Mask, Run, Stack, Trace, Wanted, causal
from zoo.layers.embeddings import (
    Languages,
    RegionEmbeddings,
    check_boxes,
    check_features,
    ignore_languages,
)
from zoo.layers.heads import RegionHead, TableHead
from zoo.layers.padding import padding_like
from zoo.layers.residual import pre_norm
from zoo.layers.shapes import Bias, Rows, SourceRows
from zoo.models.base.config import check_positive
from zoo.models.base.joint_encoder import JointEncoder
from zoo.models.base.model import Reading
from zoo.models.base.outputs import Joint, Seq2Seq
from zoo.models.xlm import XlmConfig, XlmEmbeddings, zero_padding
from zoo.models.xlm_translation import XlmDecoderBlock
from zoo.registry.inputs import Input
from zoo.registry.terms import MASKED_WORDS, MATCHING_SCORE, REGION_CLASS, REGION_FEATURE


@dataclass(frozen=True, kw_only=True)
class M3PConfig(XlmConfig):
    vocab_size: int = 250_002
    hidden_size: int = 768
    num_heads: int = 12
    max_positions: int = 514
    num_languages: int = 1
    visual_size: int = 2048  # width of a region's feature
    region_target_size: int = 1600  # the detector's classes
    refine_layers: int = 6  # depth of the refiner
    refine_image: bool = False  # send regions through the refiner
    pad_token_id: int | None = 1

    box_size: ClassVar[int] = 5  # x1, y1, x2, y2 and the area as shares, divided by their length
    box_code: ClassVar[str] = "unit"

    def check(self) -> None:
        super().check()
        check_positive(self, "visual_size", "region_target_size", "refine_layers")
        if self.causal:
            raise ConfigError("causal=True is not a kind of M3P: decode() is causal, all else sees both sides")


class M3PEmbeddings(XlmEmbeddings):
    """XLM's, in which a language may be left out."""

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        language_ids: Languages | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """As `XlmEmbeddings`."""
        tokens = self.tokens(input_ids, inputs_embeds)  # (batch, length, hidden)
        x = tokens + self.positions(position_ids, tokens) + self.segments(token_type_ids, tokens)  # eq: text
        return self.dropout(self.norm(self.with_language(x, language_ids)))  # type: ignore[no-any-return]  # eq: text

    def with_language(
        self, x: Float[Tensor, "batch length hidden"], language_ids: Languages | None
    ) -> Float[Tensor, "batch length hidden"]:
        """Words or regions and the vector of their language, where one is said."""
        if self.language is None:
            ignore_languages(language_ids)
        return x if self.language is None or language_ids is None else x + self.language(language_ids, x)

    def placed(
        self, x: Float[Tensor, "batch places hidden"], position_ids: Int[Tensor, "*#batch places"] | None
    ) -> Float[Tensor, "batch places hidden"]:
        """What stands in a text and picture that are read together: position and norm."""
        return self.dropout(self.norm(x + self.positions(position_ids, x)))  # type: ignore[no-any-return]  # eq: joint


class M3PRegions(RegionEmbeddings):
    """``norm(W f + L b + D c)``, c: the detector's distribution over its classes, which may be left out."""

    def __init__(self, c: M3PConfig) -> None:
        super().__init__(c.visual_size, c.box_size, c.hidden_size, c.norm_eps, 0.0)
        self.classes = nn.Linear(c.region_target_size, c.hidden_size)


class AttentionOnAttention(nn.Module):
    """``GLU(W [attended ; query] + b)`` in place of an output projection."""

    def __init__(self, c: M3PConfig) -> None:
        super().__init__()
        self.attention = Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout)
        self.attention.output = nn.Identity()  # type: ignore[assignment]
        self.gate = nn.Linear(2 * c.hidden_size, 2 * c.hidden_size)

    def forward(self, x: Rows, mask: Mask, trace: Trace | None = None) -> Rows:
        attended = self.attention(x, x, x, mask, None, trace)  # (rows, hidden)
        return F.glu(self.gate(torch.cat([attended, x], -1)), -1)  # eq: attention-on-attention


class RefinerBlock(nn.Module):
    """``x + AoA(norm x)``, then ``x + FFN(norm x)``."""

    def __init__(self, c: M3PConfig) -> None:
        super().__init__()
        self.attention = AttentionOnAttention(c)
        self.attention_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.feed_forward = FeedForward(c.hidden_size, c.intermediate_size, c.activation)
        self.feed_forward_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None) -> Rows:
        x = pre_norm(x, lambda y: self.attention(y, mask, trace), self.attention_norm, self.dropout)  # eq: refiner
        return pre_norm(x, self.feed_forward, self.feed_forward_norm, self.dropout)  # eq: refiner


class Refiner(nn.Module):
    """The blocks that a picture's regions pass first, and the norm that they end in."""

    def __init__(self, c: M3PConfig) -> None:
        super().__init__()
        self.stack = Stack([RefinerBlock(c) for _ in range(c.refine_layers)])
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)

    def forward(
        self, x: Float[Tensor, "batch regions hidden"], mask: Tensor | None, lengths: Sequence[int] | None
    ) -> Float[Tensor, "batch regions hidden"]:
        return Run(x, mask, lengths, name="visual_mask").through(self.stack, norm=self.norm)  # eq: refiner


class M3PBlock(XlmDecoderBlock):
    """XLM's block; with a picture's states to look at, XLM's decoder block."""

    def forward(  # type: ignore[override]
        self, x: Rows, mask: Mask, bias: Bias | None = None, trace: Trace | None = None
    ) -> Rows:
        return zero_padding(EncoderBlock.forward(self, x, mask, bias, trace), mask)  # type: ignore[arg-type]  # eq: block

    def looking(self, x: Rows, memory: SourceRows, mask: Mask, memory_mask: Mask, trace: Trace | None = None) -> Rows:
        return super().forward(x, memory, mask, memory_mask, trace)  # eq: decoder-block


class TranslationHead(nn.Module):
    """``w · tanh(W h_first + b) + b'``: is a code-switched sentence the right translation."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, 1)

    def forward(self, first: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch 1"]:
        return self.output(torch.tanh(self.dense(first)))  # type: ignore[no-any-return]  # eq: translation


@dataclass(frozen=True)
class M3PJoint(Joint):
    """A `Joint`, and the state that both poolers read."""

    first_state: Tensor | None = None  # (batch, hidden)


TRANSLATION = replace(
    MATCHING_SCORE, name="translation_matching", reads=("first",), labels="translation_labels", output="", dropout=""
)


class M3P(JointEncoder):
    Config = M3PConfig
    heads = {
        "masked_lm": lambda c: TableHead(c.hidden_size, c.vocab_size, tied=c.tie_word_embeddings),
        "region_class": lambda c: RegionHead(c.hidden_size, c.region_target_size, "gelu", c.norm_eps),
        "region_feature": lambda c: nn.Linear(c.hidden_size, c.visual_size),
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, 1),
        "translation_matching": lambda c: TranslationHead(c.hidden_size),
    }
    pretraining = (MASKED_WORDS, REGION_CLASS, REGION_FEATURE, MATCHING_SCORE, TRANSLATION)
    offers = {**JointEncoder.offers, "first": Reading(lambda e: e.first_state)}
    inputs = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "inputs_embeds",
        "language_ids",
        "visual_features",
        "visual_boxes",
        "visual_mask",
        "visual_distributions",
    )
    own_inputs = (
        Input(
            "visual_distributions",
            ("batch", "regions", "region_target_size"),
            "float",
            "M3P: the detector's distribution over its classes, which may be left out",
        ),
        Input("translation_labels", ("batch",), "int", "M3P: 1 = the code-switched sentence is the right translation"),
    )
    exceptions = {
        "gradients": "the cross-attention of each block is read by decode alone, and the refiner only where it is on",
    }
    embeddings: M3PEmbeddings

    def __init__(self, config: M3PConfig) -> None:
        super().__init__(config)
        self.embeddings = M3PEmbeddings(config)
        self.image_embeddings = M3PRegions(config)
        self.refiner = Refiner(config)
        self.encoder = Stack([M3PBlock.of(config) for _ in range(config.num_layers)])
        self.pooler = FirstTokenPooler(config.hidden_size) if config.pooler else None

    @property
    def joint_pooler(self) -> None:
        """The first region is pooled, and stands behind the text."""
        return None

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        language_ids: Languages | None = None,
        visual_features: Float[Tensor, "batch regions visual_size"] | None = None,
        visual_boxes: Float[Tensor, "batch regions box_size"] | None = None,
        visual_mask: Tensor | None = None,
        visual_distributions: Float[Tensor, "batch regions classes"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> M3PJoint:
        """Encode texts, pictures, or both; the result holds the text's positions first, then the
        regions'.

        position_ids: of the text; with a picture they begin behind its real regions by default.
        language_ids: of a text alone, or of the regions of a picture alone. The rest as `Uniter`.
        """
        x = regions = None
        reads = input_ids is not None or inputs_embeds is not None
        if visual_features is not None:
            given = next(x for x in (inputs_embeds, input_ids, visual_features) if x is not None)
            batch = getattr(given, "shape", visual_features.shape)[0]  # len() would fix the batch of an export
            check_boxes(visual_features, visual_boxes, batch, self.config)
            assert visual_boxes is not None
            regions = self.regions(visual_features, visual_boxes, visual_distributions, visual_mask, visual_lengths)
        if not reads and regions is not None:
            regions = self.embeddings.dropout(self.embeddings.with_language(regions, language_ids))
        elif regions is None:
            x = self.embeddings(input_ids, None, position_ids, inputs_embeds, language_ids)
        else:
            ignore_languages(language_ids)
            x = self.embeddings.tokens(input_ids, inputs_embeds)  # (batch, length, hidden)
            places, after = self.places(x, regions, visual_mask, visual_lengths)
            x = self.embeddings.placed(x, after if position_ids is None else position_ids)
            regions = self.embeddings.placed(regions, places)
        real, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        encoded = self.encode(x, regions, real, kept)  # eq: encoder
        return self.pooled(encoded, regions is not None, real)

    def regions(
        self,
        features: Float[Tensor, "batch regions visual_size"],
        boxes: Float[Tensor, "batch regions box_size"],
        classes: Float[Tensor, "batch regions classes"] | None,
        mask: Tensor | None,
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch regions hidden"]:
        """Embedded regions, refined where the config says so."""
        more: Tensor | float = 0.0
        if classes is not None:
            check_features(classes, features.shape[0], self.config.region_target_size, "visual_distributions")
            more = self.image_embeddings.classes(classes.to(self.dtype))
        x = self.image_embeddings(features, boxes, more)  # eq: regions
        return self.refiner(x, mask, lengths) if self.config.refine_image else x  # type: ignore[no-any-return]

    def places(
        self,
        words: Float[Tensor, "batch length hidden"],
        regions: Float[Tensor, "batch regions hidden"],
        mask: Tensor | None,
        lengths: Sequence[int] | None,
    ) -> tuple[Tensor, Tensor]:
        """The positions of regions, which count the real ones, and those of words behind them."""
        length, count = words.shape[1], regions.shape[1]
        if length + count > self.config.max_positions:
            raise InputError(
                f"{count} regions and {length} tokens need {length + count} positions; this model has "
                f"{self.config.max_positions}: cut the text or give fewer regions"
            )
        real = padding_like(regions, mask, lengths, pack=False, name="visual_mask").real
        counted = torch.arange(1, count + 1, device=words.device)[None] if real is None else real.cumsum(1)
        following = counted[:, -1:] + torch.arange(length, device=words.device)  # eq: behind
        return (counted - 1).clamp(min=0), following

    def pooled(
        self,
        encoded: Joint,
        picture: bool,
        real: tuple[Tensor | None, Tensor | None, Sequence[int] | None, Sequence[int] | None],
    ) -> M3PJoint:
        """The result with the state of the first region, or of the first token of a text alone, and its pooled
        vector.
        """
        part = encoded.image if picture else encoded.text
        mask, lengths = (real[1], real[3]) if picture else (real[0], real[2])
        name = "visual_mask" if picture else "attention_mask"
        first = padding_like(part.last_hidden_state, mask, lengths, pack=False, name=name).first(part.last_hidden_state)
        vector = None if self.pooler is None else self.pooler.transform(first)  # type: ignore[operator]  # eq: pooler
        return M3PJoint(**{**vars(encoded), "pooler_output": vector}, first_state=first)

    def decode(
        self,
        decoder_input_ids: Int[Tensor, "batch target_length"],
        memory: Float[Tensor, "batch regions hidden"],
        visual_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        language_ids: Languages | None = None,
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Seq2Seq:
        """The states of a caption, each word of which sees those before it and ``memory``, the states of a
        picture that was encoded alone.
        """
        kept = output_hidden_states, output_attentions
        x = self.embeddings(decoder_input_ids, language_ids=language_ids)
        target = Run(x, decoder_attention_mask, None, *kept, name="decoder_attention_mask")
        x = target.across(self._blocks, Run(memory, visual_mask, None, *kept, name="visual_mask"), causal())
        return Seq2Seq(x, target.hidden_states, target.attentions, target.cross_attentions)

    def _blocks(self, x: Rows, memory: SourceRows, mask: Mask, memory_mask: Mask, trace: Trace) -> Rows:
        for block in self.encoder.blocks:
            x = block.looking(x, memory, mask, memory_mask, trace)  # type: ignore[operator]  # eq: decoder
            trace.hidden(x)
        return x
