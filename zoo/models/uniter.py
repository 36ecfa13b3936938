"""UNITER (Chen et al., 2020): one BERT over words and regions, with three norms in a region.

    text_t   = norm(token + position + segment)
    region_r = norm(norm_f(W_f f_r) + norm_b(W_b b_r) + segment)     b: x1, y1, x2, y2, w, h, w·h as shares
    masked   : f_r + m in place of f_r, with f_r set to zero by the data
    h        = BERT's blocks over [text ; regions],  pooled = tanh(W_p h_first)

Pre-training terms, one for each batch: masked words; the feature of masked regions, predicted
through W_fᵀ (the head has no matrix of its own for its last step); their class, as the detector's
likeliest or as its distribution; does the picture belong; and a transport of words to regions.

Differs from VisualBERT: boxes are read, three norms in a region, no position for regions.

Traps: a region's segment is row 1 of the *text's* table. m is as wide as the feature; the model adds
it and clears nothing, so the caller sets the feature of a masked region to zero. Row 0 of the mask's
table is never read. Files tuned on VCR have 81 words and 2 segments more, those tuned on
NLVR2 1 segment. VCR's head is ReLU where the others are GELU, and has two outputs, of which the
second is the score. Matching label 1 = the caption belongs to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers import FirstTokenPooler, Stack, Wanted, bert_block_of, text_embeddings_of
from zoo.layers.embeddings import check_boxes, same_shape
from zoo.layers.feed_forward import activation
from zoo.layers.heads import AnswerHead, RegionHead, masked_lm_of
from zoo.layers.padding import as_bool
from zoo.models.base.config import Config, free
from zoo.models.base.joint_encoder import JointEncoder, check_joint
from zoo.models.base.outputs import Joint
from zoo.registry.terms import (
    IMAGE_TEXT_MATCHING,
    MASKED_WORDS,
    REGION_CLASS,
    TIED_REGION_FEATURE,
    WORD_REGION_ALIGNMENT,
)
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class UniterConfig(Config):
    vocab_size: int = 28_996
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    visual_size: int = 2048  # width of a region's feature
    box_size: int = 7  # numbers that describe a box
    region_target_size: int = 1601  # the detector's classes, the first of them the background
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(0.0)  # before heads: none, as the authors have it
    initializer_range: float = free(0.02)

    visual_segment: ClassVar[int] = 1  # of regions whose segment the caller does not give

    def check(self) -> None:
        check_joint(self, "box_size", "region_target_size")
        if self.num_segments <= self.visual_segment:
            raise ConfigError(
                f"num_segments={self.num_segments} must be 2 or more: regions have segment {self.visual_segment}"
            )


class NormedRegionEmbeddings(nn.Module):
    """``norm(norm_f(W_f f) + norm_b(W_b b) + segment)``, with ``m`` added to the feature of masked
    regions.
    """

    def __init__(self, c: UniterConfig) -> None:
        super().__init__()
        self.features = nn.Linear(c.visual_size, c.hidden_size)
        self.features_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.boxes = nn.Linear(c.box_size, c.hidden_size)
        self.boxes_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.mask = nn.Embedding(2, c.visual_size)  # only row 1 is ever used
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        features: Float[Tensor, "batch regions visual_size"],
        boxes: Float[Tensor, "batch regions box_size"],
        segment: Float[Tensor, "*grid hidden"],
        masked: Tensor | None,
    ) -> Float[Tensor, "batch regions hidden"]:
        dtype = self.features.weight.dtype
        features = features.to(dtype)
        if masked is not None:
            features = features + masked.unsqueeze(2) * self.mask.weight[1]  # eq: masked-region
        feature = self.features_norm(self.features(features))  # (batch, regions, hidden)
        box = self.boxes_norm(self.boxes(boxes.to(dtype)))
        return self.dropout(self.norm(feature + box + segment))  # eq: region-embedding


class RegionFeatureHead(nn.Module):
    """``W_fᵀ norm(act(W h + b)) + b'``: the feature behind a mask, through the matrix that embeds
    features.
    """

    def __init__(self, c: UniterConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.bias = nn.Parameter(Tensor(c.visual_size))
        self.activation = activation(c.activation)

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(
        self, hidden: Float[Tensor, "*rows hidden"], table: Float[Tensor, "hidden visual_size"]
    ) -> Float[Tensor, "*rows visual_size"]:
        return self.norm(self.activation(self.dense(hidden))) @ table + self.bias  # eq: region-feature


class Uniter(JointEncoder):
    Config = UniterConfig
    heads = {
        "masked_lm": masked_lm_of,
        "region_feature": RegionFeatureHead,
        "region_class": lambda c: RegionHead(c.hidden_size, c.region_target_size, c.activation, c.norm_eps),
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, 2),
    }
    pretraining = (
        MASKED_WORDS,
        TIED_REGION_FEATURE,
        REGION_CLASS,
        IMAGE_TEXT_MATCHING,
        WORD_REGION_ALIGNMENT,
    )
    task_heads = {
        "visual_question_answering": lambda c, n: AnswerHead(c.hidden_size, 2 * c.hidden_size, n, c.norm_eps),
        "visual_entailment": lambda c, n: AnswerHead(c.hidden_size, 2 * c.hidden_size, n, c.norm_eps),
        "multiple_choice": lambda c, n: AnswerHead(c.hidden_size, 2 * c.hidden_size, 2, c.norm_eps, "relu"),
    }
    inputs = (*TEXT_INPUTS, "visual_features", "visual_boxes", "visual_mask", "visual_token_type_ids", "visual_masked")
    ranking_loss = "hinge"
    head_starts = {"image_text_retrieval": ("image_text_matching", (1,))}  # the logit of "they belong together"

    def __init__(self, config: UniterConfig) -> None:
        super().__init__(config)
        self.embeddings = text_embeddings_of(config)
        self.image_embeddings = NormedRegionEmbeddings(config)
        self.encoder = Stack([bert_block_of(config) for _ in range(config.num_layers)])
        self.pooler = FirstTokenPooler(config.hidden_size) if config.pooler else None

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
        visual_masked: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Joint:
        """Encode texts and the regions of their pictures, either of them alone too; the result holds the
        text's positions first, then the regions'.

        visual_boxes: see `zoo.data.regions.regions`. visual_mask: (batch, regions), 1/True = a real
        region. visual_token_type_ids: rows of the text's table of segments, 1 by default.
        visual_masked: (batch, regions), 1/True = the region is masked, its feature zero. The other
        arguments are BERT's.
        """
        text = regions = None
        if input_ids is not None or inputs_embeds is not None:
            text = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # eq: text-embedding
        if visual_features is not None:
            batch = visual_features.shape[0] if text is None else text.shape[0]
            regions = self.regions(batch, visual_features, visual_boxes, visual_token_type_ids, visual_masked)
        real, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        return self.encode(text, regions, real, kept)  # eq: encoder

    def regions(
        self,
        batch: int,
        features: Float[Tensor, "batch regions visual_size"],
        boxes: Float[Tensor, "batch regions box_size"] | None,
        segments: Int[Tensor, "batch regions"] | None,
        masked: Tensor | None,
    ) -> Float[Tensor, "batch regions hidden"]:
        """Embedded regions; their segments are rows of the text's table."""
        boxes = check_boxes(features, boxes, batch, self.config)
        if masked is not None:
            same_shape(masked, features, "visual_masked", "regions")
            masked = as_bool(masked, "visual_masked")
        return self.image_embeddings(features, boxes, self.region_segments(segments, features), masked)

    @property
    def region_table(self) -> Float[Tensor, "hidden visual_size"]:
        """The matrix that the head of masked features is tied to."""
        return self.image_embeddings.features.weight
