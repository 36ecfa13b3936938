"""VL-BERT (Su et al., 2020): one BERT in which each element, word or region, has a linguistic and a visual part.

    v_r      = relu(W [box code ; feature] + b)                          the vector of region r, r = 0: the picture
    text_t   = norm(token + f_t(v_0) + position_t + segment)             VCR: v of the region that the word names
    region_r = norm(object + f_o(v_r) + position_n + segment_2)          n: real words of the text; one for all
    end      = norm(END + position_n+1 + segment_2)
    h        = BERT's blocks over [text ; regions ; end],  pooled = tanh(W_p h_first)

f_t and f_o are norms (or one factor each), behind a projection where v is not as wide as h. A masked region
has a learned vector in place of its feature, and another in place of ``object``. A text without a
picture has a learned vector in place of f_t's input.

Trained by masked words of captions, masked words of texts without pictures, which is a second batch,
and the classes of masked regions; not by matching, which the paper found harmful.

Differs from BERT: a visual part for each word, three segments, an element at the end.

Traps: the norms f_t and f_o start at weight 0: at first no picture is seen. A region's position counts the
*real* words of its text. Region 0 is the whole picture and never masked. An answer is read at the
[MASK] before the last [SEP].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError
from zoo.layers import FirstTokenPooler, Stack, Wanted, bert_block_of, text_embeddings_of
from zoo.layers.embeddings import check_boxes, check_ids, same_shape
from zoo.layers.feed_forward import activation
from zoo.layers.heads import ClassificationHead, masked_lm_of
from zoo.layers.padding import as_bool, padding_like
from zoo.models.base.config import Config, free
from zoo.models.base.joint_encoder import JointEncoder, check_joint
from zoo.models.base.model import before_last
from zoo.models.base.outputs import Joint
from zoo.registry.inputs import Input
from zoo.registry.terms import IMAGE_TEXT_MATCHING, MASKED_REGION, MASKED_WORDS
from zoo.registry.variants import TEXT_INPUTS

CLASSIFIERS = ("transform", "2fc", "1fc")
AVERAGE = {"loss_average": "labels"}


@dataclass(frozen=True, kw_only=True)
class VlBertConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 3
    position_offset: int = 0  # the first word's position; more for RoBERTa's table
    visual_size: int = 2048  # width of a region's feature
    box_size: int = 2048  # numbers of a box's code
    region_size: int = 768  # width of a region's vector, made of both
    visual_norm: bool = True  # a norm over vectors of regions, False: one factor
    masked_regions: bool = True  # with the vectors that stand for masked regions
    masked_features: bool = True  # of these that for the feature; where pixels are masked there is none
    text_only: bool = True  # with the vector that stands for a picture where there is none
    matching: bool = False  # with the head that tells whether caption and picture belong together
    region_target_size: int = 1601  # the detector's classes
    classifier: str = "transform"  # a task's head: "transform" as before masked words, "2fc" or "1fc": that many layers
    classifier_size: int = 1024  # width of the first of two layers
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    head_dropout: float = free(0.1)  # inside the heads of tasks
    initializer_range: float = free(0.02)

    object_segment: ClassVar[int] = 2  # of regions and of the end
    classifier_dropout: ClassVar[float] = 0.0  # ahead of heads, which have their own
    whole_image_at: ClassVar[str] = "first"
    box_code: ClassVar[str] = "vl_bert"  # how `Regions` writes boxes

    def check(self) -> None:
        check_joint(self, "box_size", "region_size", "region_target_size", "classifier_size")
        if self.num_segments <= self.object_segment:
            raise ConfigError(f"num_segments={self.num_segments} must be 3 or more: regions have segment 2")
        if self.position_offset < 0 or self.longest < 1:
            raise ConfigError(
                f"max_positions={self.max_positions} must leave positions for a word, regions and the end behind "
                f"position_offset={self.position_offset}"
            )
        if self.text_only and self.region_size != self.hidden_size:
            raise ConfigError(
                f"text_only needs region_size={self.region_size} to be hidden_size={self.hidden_size}; say "
                "text_only=False"
            )
        if self.masked_features and not self.masked_regions:
            raise ConfigError("masked_features are of masked_regions=True; say masked_features=False")
        if self.classifier not in CLASSIFIERS:
            raise ConfigError(f"classifier must be one of {', '.join(CLASSIFIERS)}, got {self.classifier!r}")

    @property
    def longest(self) -> int:
        """The most tokens that a text may have: two positions behind them are of regions and the end."""
        return self.max_positions - self.position_offset - 2


class Factor(nn.Module):
    """``s x``, with one number s, at first 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(()))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.weight.zero_()

    def forward(self, x: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        return self.weight * x


class SilentNorm(nn.LayerNorm):
    """A norm whose weight is 0 at first."""

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.weight.zero_()
        self.bias.zero_()


class VisualPart(nn.Module):
    """``f(W v)``, what a region's vector adds to an element: ``W`` where widths differ."""

    def __init__(self, c: VlBertConfig) -> None:
        super().__init__()
        self.projection = None if c.region_size == c.hidden_size else nn.Linear(c.region_size, c.hidden_size)
        self.scaling = SilentNorm(c.hidden_size, c.norm_eps) if c.visual_norm else Factor()

    def forward(self, vectors: Float[Tensor, "batch _places region_size"]) -> Float[Tensor, "batch _places hidden"]:
        x = vectors if self.projection is None else self.projection(vectors)  # eq: visual-part
        return self.scaling(x)  # type: ignore[no-any-return]  # eq: visual-part


class RegionVectors(nn.Module):
    """``relu(W dropout([box ; feature]) + b)``, with a learned vector for the feature of masked regions."""

    def __init__(self, c: VlBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.box_size + c.visual_size, c.region_size)
        self.object = nn.Embedding(1, c.hidden_size)  # the linguistic part of all regions
        self.mask_word = nn.Embedding(1, c.hidden_size) if c.masked_regions else None
        self.mask_feature = nn.Embedding(1, c.visual_size) if c.masked_features else None
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        features: Float[Tensor, "batch regions visual_size"],
        boxes: Float[Tensor, "batch regions box_size"],
        masked: Bool[Tensor, "batch regions"] | None,
    ) -> Float[Tensor, "batch regions region_size"]:
        dtype = self.dense.weight.dtype
        features = features.to(dtype)
        if masked is not None and self.mask_feature is not None:
            features = torch.where(masked.unsqueeze(2), self.mask_feature.weight[0], features)  # eq: masked-region
        return torch.relu(self.dense(self.dropout(torch.cat([boxes.to(dtype), features], 2))))  # eq: region-vector

    def words(self, masked: Bool[Tensor, "batch regions"] | None) -> Float[Tensor, "*grid hidden"]:
        """The linguistic part of each region, or of all."""
        if masked is None:
            return self.object.weight[0]
        if self.mask_word is None:
            raise InputError("this model was built without its vectors of masked regions; leave visual_masked out")
        return torch.where(masked.unsqueeze(2), self.mask_word.weight[0], self.object.weight[0])  # eq: masked-region


class Transform(nn.Module):
    """``norm(act(W x + b))``, as before the prediction of words."""

    def __init__(self, c: VlBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.activation = activation(c.activation)

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        return self.norm(self.activation(self.dense(x)))  # type: ignore[no-any-return]


class VlBertClassifier(nn.Module):
    """``W dropout(body(x))``: ``body`` is BERT's transform, a layer, or nothing."""

    def __init__(self, body: nn.Module, input_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(input_size, num_labels)

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows labels"]:
        return self.output(self.dropout(self.body(x)))  # type: ignore[no-any-return]  # eq: classifier


def classifier_of(c: VlBertConfig, num_labels: int) -> VlBertClassifier:
    """A task's head."""
    size, rate = c.hidden_size, c.head_dropout
    body: nn.Module = nn.Identity()
    if c.classifier == "transform":
        body = Transform(c)
    elif c.classifier == "2fc":
        body = nn.Sequential(nn.Dropout(rate), nn.Linear(size, c.classifier_size), nn.ReLU())
        size = c.classifier_size
    return VlBertClassifier(body, size, num_labels, rate)


class VlBert(JointEncoder):
    Config = VlBertConfig
    heads = {
        "masked_lm": masked_lm_of,
        "masked_region": lambda c: ClassificationHead(c.hidden_size, c.region_target_size, c.activation),
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, 2),
    }
    pretraining = (
        replace(MASKED_WORDS, loss="averaged-tokens", loss_takes=("loss_average",), options=AVERAGE),
        replace(MASKED_REGION, loss="soft-classes", loss_takes=("region_targets", "loss_average"), options=AVERAGE),
        replace(IMAGE_TEXT_MATCHING, needs=("matching",), optional=True),
    )
    task_heads = {
        "visual_question_answering": classifier_of,
        "multiple_choice": lambda c, n: classifier_of(c, 1),
        "grounding": lambda c, n: classifier_of(c, 1),
    }
    inputs = (*TEXT_INPUTS, "visual_features", "visual_boxes", "visual_mask", "visual_masked", "word_regions")
    own_inputs = (
        Input(
            "word_regions",
            ("batch", "length"),
            "int",
            "VL-BERT: the region whose vector each token sees; the first real one, the whole picture, by default",
        ),
    )
    grounding_loss = "mean"

    def __init__(self, config: VlBertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = text_embeddings_of(c)
        self.embeddings.first_position = c.position_offset
        self.image_embeddings = RegionVectors(c)
        self.visual_text_embeddings, self.visual_object_embeddings = VisualPart(c), VisualPart(c)
        self.end_embeddings = nn.Embedding(1, c.hidden_size)
        self.text_only_embeddings = nn.Embedding(1, c.region_size) if c.text_only else None
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
        visual_masked: Tensor | None = None,
        word_regions: Int[Tensor, "batch length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Joint:
        """Encode texts and the regions of their pictures, texts alone too; the result holds the text's
        positions first, then the regions', then the end.

        visual_boxes: `Regions.vl_bert`; `Regions.for_model` adds the region of the whole picture.
        visual_masked: (batch, regions), 1/True = a masked region. word_regions: the region whose vector
        each token sees. The other arguments are BERT's.
        """
        tokens = self.embeddings.tokens(input_ids, inputs_embeds)  # (batch, length, hidden)
        if tokens.shape[1] > self.config.longest:
            raise InputError(
                f"the text is {tokens.shape[1]} tokens long; this model reads {self.config.longest}, behind which "
                "regions and the end have positions"
            )
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 3:
            raise InputError("attention_mask must be (batch, length) here: a matrix doesn't say who sees the end")
        batch = tokens.shape[0]
        real = padding_like(tokens, attention_mask, lengths, pack=False).real
        words = (torch.ones_like(tokens[:, :, 0], dtype=torch.bool) if real is None else real).sum(1)
        vectors = regions = None
        if visual_features is not None:
            boxes = check_boxes(visual_features, visual_boxes, batch, self.config)
            if visual_masked is not None:
                same_shape(visual_masked, visual_features, "visual_masked", "regions")
                visual_masked = as_bool(visual_masked, "visual_masked")
            vectors = self.image_embeddings(visual_features, boxes, visual_masked)
            regions = self.objects(vectors, self.image_embeddings.words(visual_masked), words)
        elif visual_boxes is not None or visual_masked is not None:
            raise InputError("visual_boxes and visual_masked say something of regions: give visual_features too")
        seen = self.seen(vectors, tokens, word_regions, (visual_mask, visual_lengths))
        text = self.words(tokens, token_type_ids, position_ids, seen)
        given, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        return self.encode(text, regions, given, kept, behind=self.closing(words))  # eq: encoder

    def words(
        self,
        tokens: Float[Tensor, "batch length hidden"],
        token_type_ids: Int[Tensor, "batch length"] | None,
        position_ids: Int[Tensor, "*#batch length"] | None,
        seen: Float[Tensor, "batch _places region_size"],
    ) -> Float[Tensor, "batch length hidden"]:
        """Embedded words; ``seen``: the vector of the region that each sees, or all."""
        x = tokens + self.visual_text_embeddings(seen)  # eq: text
        return self.embeddings(None, token_type_ids, position_ids, x)  # eq: text

    def objects(
        self,
        vectors: Float[Tensor, "batch regions region_size"],
        linguistic: Float[Tensor, "*grid hidden"],
        words: Int[Tensor, "batch"],
    ) -> Float[Tensor, "batch regions hidden"]:
        """Embedded regions behind so many words."""
        x = linguistic + self.visual_object_embeddings(vectors) + self._placed(words)  # eq: region
        return self.embeddings.dropout(self.embeddings.norm(x))  # type: ignore[no-any-return]  # eq: region

    def closing(self, words: Int[Tensor, "batch"]) -> Float[Tensor, "batch 1 hidden"]:
        """The embedded end."""
        x = self.end_embeddings.weight + self._placed(words + 1)  # eq: end
        return self.embeddings.dropout(self.embeddings.norm(x))  # type: ignore[no-any-return]  # eq: end

    def _placed(self, words: Int[Tensor, "batch"]) -> Float[Tensor, "batch 1 hidden"]:
        """Position and segment of what stands behind so many words."""
        segment = self.embeddings.segment
        assert segment is not None
        position = self.embeddings.position(words + self.config.position_offset)
        return (position + segment.weight[self.config.object_segment]).unsqueeze(1)  # type: ignore[no-any-return]

    def seen(
        self,
        vectors: Float[Tensor, "batch regions region_size"] | None,
        tokens: Float[Tensor, "batch length hidden"],
        word_regions: Int[Tensor, "batch length"] | None,
        real: tuple[Tensor | None, Sequence[int] | None],
    ) -> Float[Tensor, "batch _places region_size"]:
        """The vector that each word sees, or one for all words of a text."""
        if vectors is None:
            if self.text_only_embeddings is None or word_regions is not None:
                lacks = "this model was built without the vector that stands for a picture (config.text_only = False)"
                raise InputError(
                    "word_regions without visual_features" if self.text_only_embeddings is not None else lacks
                )
            return self.text_only_embeddings.weight[0].expand(len(tokens), 1, -1)
        if word_regions is not None:
            same_shape(word_regions, tokens, "word_regions")
            index = check_ids(word_regions, vectors.shape[1], "word_regions").long()
            return vectors.gather(1, index.unsqueeze(2).expand(-1, -1, vectors.shape[2]))
        there = padding_like(vectors, *real, pack=False, name="visual_mask").real
        if there is None:
            return vectors[:, :1]
        first = there & (there.cumsum(1) == 1)
        return torch.where(first.unsqueeze(2), vectors, 0).sum(1, keepdim=True)

    def answer_vector(self, given: Mapping[str, Any], encoded: Joint) -> Float[Tensor, "batch hidden"]:
        """The [MASK] before the closing [SEP]."""
        states = encoded.text.last_hidden_state
        real = self.padding_of("tokens", given, encoded).real
        return before_last(states, real)  # eq: answer
