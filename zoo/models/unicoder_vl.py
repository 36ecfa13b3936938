"""Unicoder-VL (Li et al., 2020): one BERT over words and regions, from the paper.

    text_t   = norm(token + position + segment)
    region_r = norm(W_f f_r + W_l l_r + segment + position_0)        l: x1, y1, x2, y2, area as shares
    h        = BERT's blocks over [text ; regions],  pooled = tanh(W_p h_first)
    loss     = [matched] (masked words + masked classes) + matching

Nobody has published code or weights: this is written from the paper and not verified against any
other. The segment of regions (1) and their one common position (0) are our reading of it.

Differs from UNITER: five numbers for a box, one norm in a region, a position, no vector of masks
(nine in ten masked regions have feature zero, one keeps it), one logit for matching, and words and
regions that count on matched pairs alone. From VisualBERT: boxes are read, regions are masked.

Traps: the paper writes the picture before the text. Attention is blind to that; only positions
count, and regions share one. Hard classes: the detector's likeliest but the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers import FirstTokenPooler, RegionEmbeddings, Stack, Wanted, bert_block_of, text_embeddings_of
from zoo.layers.embeddings import check_boxes
from zoo.layers.heads import RegionHead, masked_lm_of
from zoo.models.base.config import Config, free
from zoo.models.base.joint_encoder import JointEncoder, check_joint
from zoo.models.base.outputs import Joint
from zoo.registry.terms import MASKED_WORDS, MATCHING_SCORE, REGION_CLASS, PretrainingTerm, where_matched
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class UnicoderVLConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    visual_size: int = 2048  # width of a region's feature
    box_size: int = 5  # numbers that describe a box
    region_target_size: int = 1601  # the detector's classes, the first of them the background
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)

    visual_segment: ClassVar[int] = 1  # of regions whose segment the caller does not give

    def check(self) -> None:
        check_joint(self, "box_size", "region_target_size")
        if self.num_segments <= self.visual_segment:
            raise ConfigError(
                f"num_segments={self.num_segments} must be 2 or more: regions have segment {self.visual_segment}"
            )


class UnicoderVL(JointEncoder):
    Config = UnicoderVLConfig
    heads = {
        "masked_lm": masked_lm_of,
        "region_class": lambda c: RegionHead(c.hidden_size, c.region_target_size, c.activation, c.norm_eps),
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, 1),
    }
    pretraining: ClassVar[tuple[PretrainingTerm, ...]] = (
        where_matched(MASKED_WORDS),
        where_matched(REGION_CLASS, class_loss="likeliest"),
        MATCHING_SCORE,
    )
    inputs = (*TEXT_INPUTS, "visual_features", "visual_boxes", "visual_mask", "visual_token_type_ids")
    ranking_loss = "hinge"

    def __init__(self, config: UnicoderVLConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = text_embeddings_of(c)
        self.image_embeddings = RegionEmbeddings(c.visual_size, c.box_size, c.hidden_size, c.norm_eps, c.dropout)
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        visual_features: Float[Tensor, "batch regions visual_size"] | None = None,
        visual_boxes: Float[Tensor, "batch regions box_size"] | None = None,
        visual_mask: Tensor | None = None,
        visual_token_type_ids: Int[Tensor, "batch regions"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Joint:
        """Encode texts and the regions of their pictures, either of them alone too; the result holds the
        text's positions first, then the regions'.

        visual_boxes: see `zoo.data.regions.regions`. visual_mask: (batch, regions), 1/True = a real
        region. visual_token_type_ids: rows of the text's table of segments, 1 by default. The other
        arguments are BERT's.
        """
        text = regions = None
        if input_ids is not None or inputs_embeds is not None:
            text = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # eq: text-embedding
        if visual_features is not None:
            batch = visual_features.shape[0] if text is None else text.shape[0]
            boxes = check_boxes(visual_features, visual_boxes, batch, self.config)
            place = self.region_segments(visual_token_type_ids, visual_features) + self.embeddings.position.weight[0]
            regions = self.image_embeddings(visual_features, boxes, place)  # eq: region-embedding
        real, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        return self.encode(text, regions, real, kept)  # eq: encoder
