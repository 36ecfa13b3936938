"""LXMERT (Tan and Bansal, 2019): a stream of words, a stream of objects, and layers in which they
look at each other through one shared attention.

    text_0   = norm(token + position + segment)
    image_0  = (norm(W_f f + b) + norm(W_b box + b)) / 2           box: x1, y1, x2, y2 as shares of the picture
    first    : BERT blocks over each stream alone
    text'    = norm(text + W MHA(q = text, kv = image))            the cross layer: the same MHA and norm
    image'   = norm(image + W MHA(q = image, kv = text))           both ways, then a BERT block over each stream
    pooled   = tanh(W_p text_first)
    regions  : t = norm(act(W h + b)); class W_c t, attribute W_a t, feature W_f t

Differs from ViLBERT: one width for both streams, one cross-attention for both directions, a norm for
feature and box each, self-attention inside each cross layer, and only the text is pooled.

Traps: in a cross layer the attention across comes first, then self-attention, then the feed-forward.
The authors' tables have a padding row 0, also those of positions and segments: position 0, which is
[CLS]'s, and segment 0 never get a gradient (``fixed_first_rows``). No region for the whole picture.
Matching label 1 = the sentence belongs to the picture. The answer head's activation is always GELU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers import (
    Attention,
    FirstTokenPooler,
    Run,
    Runs,
    Schedule,
    Step,
    TextEmbeddings,
    Wanted,
    bert_block_of,
    post_norm,
)
from zoo.layers.feed_forward import activation, check_activation
from zoo.layers.heads import AnswerHead, masked_lm_of
from zoo.layers.shapes import Rows, SourceRows
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.outputs import Streams
from zoo.models.base.two_streams import TwoStreamModel, both_ways
from zoo.registry.terms import IMAGE_TEXT_MATCHING, MASKED_WORDS, PretrainingTerm
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class LxmertConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768  # of both streams
    num_layers: int = 9  # over the text alone
    image_num_layers: int = 5  # over the regions alone
    cross_num_layers: int = 5  # cross layers, behind both
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    visual_size: int = 2048  # width of a region's feature
    box_size: int = 4  # numbers that describe a box
    fixed_first_rows: bool = free(True)  # row 0 of positions and of segments gets no gradient, as in the authors' code
    num_objects: int = 1600  # classes of the detector
    num_attributes: int = 400  # attributes of the detector
    num_answers: int = free(9500)  # answers that pre-training knows
    predict_regions: bool = True  # whether a pre-trained model has a head for masked regions
    predict_objects: bool = True  # whether that head tells their classes
    predict_attributes: bool = True  # whether it tells their attributes
    predict_features: bool = True  # whether it tells their features
    predict_answers: bool = True  # whether a pre-trained model answers questions
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(0.0)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(self, "vocab_size", "hidden_size", "num_layers", "image_num_layers", "cross_num_layers")
        check_positive(self, "intermediate_size", "max_positions", "num_segments", "visual_size", "box_size")
        check_positive(self, "num_objects", "num_attributes", "num_answers")
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)
        if self.predict_regions and not (self.predict_objects or self.predict_attributes or self.predict_features):
            raise ConfigError(
                "predict_regions=True needs one of predict_objects, predict_attributes and predict_features; set "
                "predict_regions=False for a model without heads of regions"
            )

    @property
    def schedule(self) -> tuple[Step, ...]:
        """Which block runs when, on which streams."""
        crossing = [
            (Step.of("cross", k, "text", "image"), Step.of("cross_text", k, "text"), Step.of("cross_image", k, "image"))
            for k in range(self.cross_num_layers)
        ]
        return (
            *(Step.of("text", i) for i in range(self.num_layers)),
            *(Step.of("image", i) for i in range(self.image_num_layers)),
            *(step for steps in crossing for step in steps),
        )


class WordEmbeddings(TextEmbeddings):
    """``norm(token + position + segment)``, where row 0 of positions and of segments may stay as it is."""

    def __init__(self, c: LxmertConfig) -> None:
        norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        super().__init__(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)
        if c.fixed_first_rows:
            assert self.segment is not None
            self.position.padding_idx = self.segment.padding_idx = 0  # what a look-up gives no gradient

    def segments(
        self, token_type_ids: Int[Tensor, "batch length"] | None, tokens: Float[Tensor, "batch length size"]
    ) -> Float[Tensor, "*grid hidden"] | float:
        if token_type_ids is None:
            token_type_ids = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        return super().segments(token_type_ids, tokens)

    def positions(
        self, position_ids: Int[Tensor, "*#batch length"] | None, tokens: Float[Tensor, "batch length size"]
    ) -> Float[Tensor, "*#batch length hidden"]:
        if position_ids is None:
            first = self.first_position
            position_ids = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        return super().positions(position_ids, tokens)


class ObjectEmbeddings(nn.Module):
    """``(norm(W_f f) + norm(W_b box)) / 2``: the mean of a region's feature and its box, at one scale."""

    def __init__(self, c: LxmertConfig) -> None:
        super().__init__()
        self.features = nn.Linear(c.visual_size, c.hidden_size)
        self.boxes = nn.Linear(c.box_size, c.hidden_size)
        self.features_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.boxes_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, features: Float[Tensor, "batch regions visual_size"], boxes: Float[Tensor, "batch regions box_size"]
    ) -> Float[Tensor, "batch regions hidden"]:
        dtype = self.features.weight.dtype
        x = self.features_norm(self.features(features.to(dtype)))
        y = self.boxes_norm(self.boxes(boxes.to(dtype)))
        return self.dropout((x + y) / 2)  # eq: object-embedding


class SharedCrossBlock(nn.Module):
    """Two streams of one width look at each other through one attention and one norm, both as they came in."""

    roles = {"attention": "cross-attention", "attention_norm": "cross-attention-norm"}

    def __init__(self, c: LxmertConfig) -> None:
        super().__init__()
        self.attention = Attention(c.hidden_size, c.num_heads, dropout=c.attention_dropout)
        self.attention_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        self.residual = post_norm

    def forward(self, text: Rows, image: SourceRows, text_run: Run, image_run: Run) -> tuple[Rows, SourceRows]:
        def look(x: Tensor, other: Tensor, run: Run, other_run: Run) -> Tensor:
            mask, trace = run.looking_at(other_run), run.trace.across()
            return self.residual(
                x, lambda y: self.attention(y, other, other, mask, None, trace), self.attention_norm, self.dropout
            )

        return look(text, image, text_run, image_run), look(image, text, image_run, text_run)  # eq: cross-layer


class ObjectHead(nn.Module):
    """What a region was: one transform, then its class, its attribute and its feature, by name."""

    def __init__(self, c: LxmertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.activation = activation(c.activation)
        self.objects = nn.Linear(c.hidden_size, c.num_objects) if c.predict_objects else None
        self.attributes = nn.Linear(c.hidden_size, c.num_attributes) if c.predict_attributes else None
        self.features = nn.Linear(c.hidden_size, c.visual_size) if c.predict_features else None

    def forward(self, hidden: Float[Tensor, "*rows hidden"]) -> dict[str, Tensor]:
        x = self.norm(self.activation(self.dense(hidden)))
        decoders = {"objects": self.objects, "attributes": self.attributes, "features": self.features}
        return {name: decoder(x) for name, decoder in decoders.items() if decoder is not None}  # eq: object-heads


def _object_term(part: str, loss: str, labels: str, beside: str) -> PretrainingTerm:
    return PretrainingTerm(
        name=f"masked_{part}",
        head="masked_object",
        part=part,
        reads=("regions",),
        labels=labels,
        loss=loss,
        loss_takes=(beside,),
        weight="region_loss_weight",
        needs=("predict_regions", f"predict_{part}"),
        options={"region_loss_weight": 1 / 0.15},
    )


MASKED_OBJECTS = (
    _object_term("objects", "weighted-classes", "object_labels", "object_confidence"),
    _object_term("attributes", "weighted-classes", "attribute_labels", "attribute_confidence"),
    _object_term("features", "masked-features", "region_labels", "region_targets"),
)
IMAGE_QUESTIONS = PretrainingTerm(
    name="image_question_answering",
    head="visual_question_answering",
    reads=("fused",),
    labels="answer_labels",
    loss="rows",
    needs=("predict_answers",),
)


class Lxmert(TwoStreamModel):
    Config = LxmertConfig
    heads = {
        "masked_lm": masked_lm_of,
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, 2),
        "masked_object": ObjectHead,
        "visual_question_answering": lambda c: answer_head(c, c.num_answers),
    }
    pretraining = (MASKED_WORDS, IMAGE_TEXT_MATCHING, *MASKED_OBJECTS, IMAGE_QUESTIONS)  # eq: five-losses
    task_heads = {
        "visual_question_answering": lambda c, n: answer_head(c, n),
        "visual_reasoning": lambda c, n: answer_head(c, n, 2),
    }
    label_fields = {"visual_question_answering": "num_answers"}
    inputs = (*TEXT_INPUTS, "visual_features", "visual_boxes", "visual_mask")

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = WordEmbeddings(c)
        self.image_embeddings = ObjectEmbeddings(c)
        blocks: dict[str, Sequence[nn.Module]] = {
            "text": [bert_block_of(c) for _ in range(c.num_layers)],
            "image": [bert_block_of(c) for _ in range(c.image_num_layers)],
            "cross": [SharedCrossBlock(c) for _ in range(c.cross_num_layers)],
            "cross_text": [bert_block_of(c) for _ in range(c.cross_num_layers)],
            "cross_image": [bert_block_of(c) for _ in range(c.cross_num_layers)],
        }
        self.encoder = Schedule(blocks, c.schedule)
        self.pooler = FirstTokenPooler(c.hidden_size)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        visual_features: Float[Tensor, "pictures regions visual_size"] | None = None,
        visual_boxes: Float[Tensor, "pictures regions box_size"] | None = None,
        visual_mask: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        all_pairs: bool = False,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Streams:
        """Encode texts and the regions of their pictures.

        visual_boxes: four shares of the picture, see `zoo.data.regions.regions`. visual_mask: (pictures,
        regions), 1/True = a real region. One text with many pictures runs through its own first blocks
        once. all_pairs: every text with every picture, (texts · pictures) rows, pictures varying fastest.
        lengths, visual_lengths: real tokens and regions per row, where these stand first.
        """
        text = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        self.check_regions(visual_features, visual_boxes, text.shape[0], all_pairs)
        image = self.image_embeddings(visual_features, visual_boxes)  # (pictures, regions, hidden)
        kept = output_hidden_states, output_attentions
        words = Run(text, attention_mask, lengths, *kept)
        regions = Run(image, visual_mask, visual_lengths, *kept, name="visual_mask")
        runs, x = self.through(Runs({"text": words, "image": regions}), all_pairs)
        one, other = runs["text"].encoded(x["text"], self.pooler), runs["image"].encoded(x["image"])
        return Streams(text=one, image=other, pooler_output=one.pooler_output, cross_attentions=both_ways(runs))


def answer_head(c: LxmertConfig, num_labels: int, pictures: int = 1) -> AnswerHead:
    """``W_2 norm(gelu(W_1 pooled + b)) + b'`` over one pooled vector or two, 2 · hidden_size wide in the middle."""
    return AnswerHead(pictures * c.hidden_size, 2 * c.hidden_size, num_labels, c.norm_eps)
