"""VisualBERT (Li et al., 2019): one BERT over words and image regions.

    text_t   = token + segment + position            region_r = W f_r + b + visual segment + visual position_0
    h_0      = norm([text ; regions])                           one norm over both, text first
    h        = BERT's blocks over the joint sequence,           pooled = tanh(W_p h_first)

With words aligned to regions (VCR): region_r += mean of the *text* positions of its words.
``bypass``: the blocks read the text alone, then one more block reads [encoded text ; regions].

Differs from BERT: regions are further tokens; boxes are not used (Flickr30k's files append them to
the features).

Traps: every region takes visual position 0. The authors' loaders give regions segment 0, the
Hugging Face port gives 1 where the caller says nothing: ``visual_segment`` keeps what a layout
means. Matching label 1 = the caption belongs to the image. The answer to a question is read at the
word before the last [SEP], where the authors put a [MASK], not at the pooled vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError
from zoo.layers import (
    FirstTokenPooler,
    Run,
    Stack,
    TextEmbeddings,
    Wanted,
    bert_block_of,
)
from zoo.layers.embeddings import check_features, check_ids, same_shape
from zoo.layers.heads import RegionToPhraseHead, masked_lm_of
from zoo.models.base.config import Config, free
from zoo.models.base.joint_encoder import JointEncoder, check_joint
from zoo.models.base.model import before_last
from zoo.models.base.outputs import Joint
from zoo.registry.terms import IMAGE_TEXT_MATCHING, MASKED_WORDS
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class VisualBertConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    visual_size: int = 2048  # width of a region's feature
    visual_segment: int = 0  # of regions whose segment the caller does not give
    bypass: bool = False  # the blocks read the text alone; one more block joins the regions
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_joint(self, "num_segments")
        if not 0 <= self.visual_segment < self.num_segments:
            raise ConfigError(
                f"visual_segment={self.visual_segment} must lie in 0..{self.num_segments - 1} (num_segments)"
            )


class JointEmbeddings(TextEmbeddings):
    """``norm([token + segment + position ; W f + visual segment + visual position_0])``: one norm for both."""

    def __init__(self, c: VisualBertConfig) -> None:
        norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        super().__init__(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)
        self.visual_projection = nn.Linear(c.visual_size, c.hidden_size)
        self.visual_segment = nn.Embedding(c.num_segments, c.hidden_size)
        self.visual_position = nn.Embedding(c.max_positions, c.hidden_size)  # only row 0 is ever used
        self.default_segment = c.visual_segment

    def regions(
        self,
        features: Float[Tensor, "batch regions visual_size"],
        segments: Int[Tensor, "batch regions"] | None,
        alignment: Int[Tensor, "batch regions words"] | None,
    ) -> Float[Tensor, "batch regions hidden"]:
        x = (  # eq: regions
            self.visual_projection(features.to(self.visual_projection.weight.dtype)) + self.visual_position.weight[0]
        )  # (batch, regions, hidden)
        if segments is None:  # eq: regions
            x = x + self.visual_segment.weight[self.default_segment]
        else:
            same_shape(segments, x, "visual_token_type_ids", "regions")
            x = x + self.visual_segment(
                check_ids(segments, self.visual_segment.num_embeddings, "visual_token_type_ids")
            )
        return self.dropout(self.norm(x if alignment is None else x + self.aligned(alignment)))  # eq: joint

    def aligned(self, alignment: Int[Tensor, "batch regions words"]) -> Float[Tensor, "batch regions hidden"]:
        """Mean of the positions of each region's words, -1 = no word."""
        name = "image_text_alignment"
        if not isinstance(alignment, Tensor) or alignment.dim() != 3:
            got = tuple(alignment.shape) if isinstance(alignment, Tensor) else type(alignment).__name__
            raise InputError(f"{name} must be a tensor of (batch, regions, words), got {got}")
        real = alignment >= 0
        words = check_ids(alignment.clamp(min=0).flatten(1), self.position.num_embeddings, name)
        positions = self.position(words.unflatten(1, alignment.shape[1:]))  # (batch, regions, words, hidden)  # eq: vcr
        positions = positions.masked_fill(~real.unsqueeze(3), 0)  # eq: vcr
        return positions.sum(2) / real.sum(2, keepdim=True).clamp(min=1)  # eq: vcr


class VisualBert(JointEncoder):
    Config = VisualBertConfig
    heads = {
        "masked_lm": masked_lm_of,
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, 2),
        "region_to_phrase": lambda c: RegionToPhraseHead(c.hidden_size, c.hidden_size // c.num_heads),
    }
    pretraining = (MASKED_WORDS, IMAGE_TEXT_MATCHING)
    inputs = (*TEXT_INPUTS, "visual_features", "visual_mask", "visual_token_type_ids", "image_text_alignment")
    pairs_of_pictures = False
    answer_loss = "kl"

    embeddings: JointEmbeddings

    def __init__(self, config: VisualBertConfig) -> None:
        super().__init__(config)
        self.embeddings = JointEmbeddings(config)
        self.encoder = Stack([bert_block_of(config) for _ in range(config.num_layers)])
        self.joining = bert_block_of(config) if config.bypass else None
        self.pooler = FirstTokenPooler(config.hidden_size) if config.pooler else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        visual_features: Float[Tensor, "batch regions visual_size"] | None = None,
        visual_mask: Tensor | None = None,
        visual_token_type_ids: Int[Tensor, "batch regions"] | None = None,
        image_text_alignment: Int[Tensor, "batch regions words"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Joint:
        """Encode texts and the regions of their pictures; the result holds the text's positions
        first, then the regions'.

        visual_features: None for text alone. visual_mask: (batch, regions), 1/True = a real region.
        visual_token_type_ids: None means ``config.visual_segment``. image_text_alignment: the places
        of a region's words in the text, -1 = none. visual_lengths: real regions per row, where these
        stand first. The other arguments are BERT's.
        """
        text = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        regions = None
        if visual_features is not None:
            check_features(visual_features, text.shape[0], self.config.visual_size, "visual_features")
            regions = self.embeddings.regions(visual_features, visual_token_type_ids, image_text_alignment)
        real, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        if self.joining is None:
            return self.encode(text, regions, real, kept)
        words = Run(text, attention_mask, lengths, *kept)  # eq: bypass
        x, length = words.through(self.encoder), text.shape[1]  # eq: bypass
        x = x if regions is None else torch.cat([x, regions], 1)  # (batch, length + regions, hidden)  # eq: bypass
        mask = self.joint_mask(len(x), length, None if regions is None else regions.shape[1], real)
        joint = Run(x, mask, None, *kept)
        encoded = joint.encoded(joint.through(self.joining), self.pooler)  # eq: bypass
        states, maps = encoded.hidden_states, encoded.attentions
        states = None if states is None else (*(words.hidden_states or ()), *states[1:])
        maps = None if maps is None else (*(words.attentions or ()), *maps)
        return Joint(encoded.last_hidden_state, encoded.pooler_output, states, maps, length)

    def answer_vector(self, given: Mapping[str, Any], encoded: Joint) -> Float[Tensor, "batch hidden"]:
        """The word before the closing [SEP], where the authors put a [MASK]."""
        real = self.padding_of("words", given, encoded).real  # eq: answer
        return before_last(  # eq: answer
            encoded.text.last_hidden_state, None if real is None else real[:, : encoded.text_length]
        )
