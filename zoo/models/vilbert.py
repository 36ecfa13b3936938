"""ViLBERT (Lu et al., 2019): two streams, words and regions, that look at each other in
co-attention blocks; 12-in-1 (Lu et al., 2020).

    text_0  = norm(token + position + segment)
    image_0 = norm(W_f f + W_l l)                          l: x1, y1, x2, y2, area, relative
    text'   = norm(text + W MHA(q = text, kv = image))     co-attention, then a feed-forward each;
    image'  = norm(image + W MHA(q = image, kv = text))    between them each stream runs plain blocks of its own
    pooled  = relu(W_t text_first) * relu(W_v image_first)         or their sum: ``fusion``

Connection k stands before text block ``text_connections[k]`` and image block
``image_connections[k]``; its attention works at width ``co_hidden_size``. 12-in-1 puts a task's row
between the first and the second token, behind the sum and before the norm.

Traps: the pooler is ReLU, not tanh. Region 0 is the whole picture (box 0, 0, 1, 1, 1; MMF's
checkpoints have none). The first connection meets the bare region embeddings. Matching label 0 =
the caption belongs to the picture. The region head uses the *text's* activation. With task tokens
all results of the text are one longer than the input, and a text starts in the first column.
``dynamic_attention``: the mean of the text scales queries and keys of image blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError
from zoo.layers import (
    Attention,
    CoAttentionBlock,
    EncoderBlock,
    FeedForward,
    RegionEmbeddings,
    ReluPooler,
    Run,
    Runs,
    Schedule,
    Side,
    Step,
    TextEmbeddings,
    Wanted,
    bert_block,
    bert_block_of,
    interleaved,
    pool,
)
from zoo.layers.embeddings import check_boxes, check_ids
from zoo.layers.feed_forward import check_activation, check_choice
from zoo.layers.heads import AnswerHead, RegionHead, masked_lm_of
from zoo.layers.padding import carried
from zoo.layers.shapes import Rows, SourceRows
from zoo.models.base.config import Config, check_heads, check_positive, free
from zoo.models.base.model import Reading, VisionLanguageModel, need_pooler
from zoo.models.base.outputs import Streams
from zoo.registry.inputs import Input
from zoo.registry.terms import IMAGE_TEXT_MATCHING, MASKED_REGION, MASKED_WORDS
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class ViLBertConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    visual_size: int = 2048  # width of a region's feature
    box_size: int = 5  # numbers that describe a box
    whole_image: bool = free(True)  # region 0 stands for the whole picture; MMF's checkpoints were trained without
    image_hidden_size: int = 1024  # width of the image stream
    image_num_layers: int = 6  # its depth
    image_num_heads: int = 8  # heads of its self-attention
    image_intermediate_size: int = 1024  # inner width of its feed-forward
    image_activation: str = "gelu"  # of its feed-forward
    co_hidden_size: int = 1024  # width of co-attention and of the pooled vectors
    co_num_heads: int = 8  # heads of co-attention
    text_connections: tuple[int, ...] = (6, 7, 8, 9, 10, 11)  # text layers that a connection comes before
    image_connections: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # image layers that it comes before
    co_attention: bool = True  # False: two streams that never meet
    dynamic_attention: bool = False  # the mean of the text scales the image's queries and keys
    fusion: str = "mul"  # of the pooled vectors: "mul" or "sum"
    num_tasks: int = 0  # rows of the task table; 0: no task token
    whole_image_at: ClassVar[str] = "first"  # where `Regions.for_model` puts it
    region_target_size: int = (
        1601  # what a masked region is predicted as: the detector's classes, or the feature's width
    )
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    image_dropout: float = free(0.1)  # in the image stream
    image_attention_dropout: float = free(0.1)  # on its attention probabilities
    classifier_dropout: float | None = free(0.1)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(
            self,
            "vocab_size",
            "hidden_size",
            "num_layers",
            "intermediate_size",
            "max_positions",
            "num_segments",
            "visual_size",
        )
        check_positive(
            self, "box_size", "image_hidden_size", "image_num_layers", "image_intermediate_size", "co_hidden_size"
        )
        check_positive(self, "region_target_size")
        check_heads(self.hidden_size, self.num_heads)
        check_heads(self.image_hidden_size, self.image_num_heads, "image_hidden_size", "image_num_heads")
        check_heads(self.co_hidden_size, self.co_num_heads, "co_hidden_size", "co_num_heads")
        check_activation(self.activation)
        check_activation(self.image_activation, "image_activation")
        check_choice("fusion", self.fusion, ("mul", "sum"))
        if len(self.text_connections) != len(self.image_connections) or not self.text_connections:
            raise ConfigError(
                f"text_connections={self.text_connections} and image_connections={self.image_connections} must be "
                "pairs, and at least one"
            )
        for name, layers in (("text_connections", self.num_layers), ("image_connections", self.image_num_layers)):
            at = getattr(self, name)
            if list(at) != sorted(at) or not at[0] >= 0 or at[-1] > layers:
                raise ConfigError(f"{name}={at} must rise and lie in 0..{layers}, which is behind the last block")

    @property
    def schedule(self) -> tuple[Step, ...]:  # eq: schedule
        """Which block runs when, on which streams."""
        steps = interleaved(
            {
                "text": (self.num_layers, self.text_connections),
                "image": (self.image_num_layers, self.image_connections),
            }
        )
        if not self.co_attention:
            steps = tuple(step for step in steps if step.part != "both")
        gated = ("image", "text") if self.dynamic_attention else ("image",)
        return tuple(replace(step, reads=gated) if step.part == "image" else step for step in steps)


class TaskEmbeddings(TextEmbeddings):
    """``norm`` of the text's sums, with the task's row, which has neither position nor segment,
    after the first token.
    """

    def __init__(self, c: ViLBertConfig) -> None:
        norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        super().__init__(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)
        self.task = nn.Embedding(c.num_tasks, c.hidden_size) if c.num_tasks else None

    def with_task(
        self, x: Float[Tensor, "batch length hidden"], task_type_ids: Int[Tensor, "#batch ..."] | None
    ) -> Float[Tensor, "batch longer hidden"]:
        """The sums, a token longer where the model has task tokens."""
        if self.task is None:
            if task_type_ids is not None:
                raise InputError("this model has no task tokens (config.num_tasks = 0); leave task_type_ids out")
            return self.dropout(self.norm(x))  # eq: text-norm
        if task_type_ids is None:
            raise InputError(
                "this model was trained with task tokens; give task_type_ids (batch,) in "
                f"0..{self.task.num_embeddings - 1}"
            )
        ids = task_type_ids.reshape(-1, 1)
        ids = check_ids(ids, self.task.num_embeddings, "task_type_ids")
        rows = self.task(ids).expand(x.shape[0], -1, -1)  # (batch, 1, hidden)  # eq: task
        return self.dropout(self.norm(torch.cat([x[:, :1], rows, x[:, 1:]], 1)))  # eq: task


class GatedAttention(Attention):
    """Self-attention whose queries and keys another stream scales: ``q · (1 + sigmoid(W s + b))``
    with s a vector for the whole row.
    """

    def __init__(self, hidden_size: int, num_heads: int, gate_size: int, *, dropout: float = 0.0) -> None:
        super().__init__(hidden_size, num_heads, dropout=dropout)
        self.query_gate = nn.Linear(gate_size, hidden_size)
        self.key_gate = nn.Linear(gate_size, hidden_size)

    def gated(
        self, x: Float[Tensor, "*rows hidden"], summary: Float[Tensor, "batch gate_size"], run: Run
    ) -> Float[Tensor, "*rows hidden"]:
        def along_rows(gate: Tensor) -> Tensor:  # eq: gate
            each = (1 + torch.sigmoid(gate)).unsqueeze(1)  # (batch, 1, hidden)
            return carried(each.expand(*run.padding.grid, -1), None, run.padding)

        q = (self.query(x) * along_rows(self.query_gate(summary))).unflatten(-1, (-1, self.head_size))  # eq: gate
        k = (self.key(x) * along_rows(self.key_gate(summary))).unflatten(-1, (-1, self.head_size))  # eq: gate
        v = self.value(x).unflatten(-1, (-1, self.head_size))
        return self.output(self.attend(q, k, v, run.mask, None, run.trace).flatten(-2))


class GatedBlock(EncoderBlock):
    """An encoder block of one stream whose attention the mean of another stream scales (ViLBERT's
    dynamic attention).
    """

    attention: GatedAttention

    def forward(self, x: Rows, other: SourceRows, run: Run, other_run: Run) -> Rows:  # type: ignore[override]
        # (batch, gate size)
        mean = pool(carried(other, other_run.padding, None), other_run.padding.real, "mean")  # eq: gate-mean
        x = self.residual(x, lambda y: self.attention.gated(y, mean, run), self.attention_norm, self.dropout)
        return self.residual(x, self.feed_forward, self.feed_forward_norm, self.dropout)


def both_ways(
    text: tuple[Tensor, ...] | None, image: tuple[Tensor, ...] | None
) -> tuple[tuple[Tensor, Tensor], ...] | None:
    """The maps of each connection together: the text's looks at the image, the image's at the text."""
    return None if text is None or image is None else tuple(zip(text, image, strict=True))


def co_attention_block(c: ViLBertConfig) -> CoAttentionBlock:
    """A connection: queries of one stream, keys and values of the other, at width
    ``co_hidden_size``.
    """
    head = c.co_hidden_size // c.co_num_heads

    def side(own: int, other: int, inner: int, activation: str, attention_dropout: float, dropout: float) -> Side:
        return Side(
            Attention(own, c.co_num_heads, key_size=other, head_size=head, dropout=attention_dropout),
            FeedForward(own, inner, activation),
            nn.LayerNorm(own, c.norm_eps),
            nn.LayerNorm(own, c.norm_eps),
            dropout=dropout,
        )

    text, image = c.hidden_size, c.image_hidden_size
    return CoAttentionBlock(
        {  # each side's attention drops probabilities at the rate of the stream it looks at
            "text": side(text, image, c.intermediate_size, c.activation, c.image_attention_dropout, c.dropout),
            "image": side(
                image, text, c.image_intermediate_size, c.image_activation, c.attention_dropout, c.image_dropout
            ),
        }
    )


def image_block(c: ViLBertConfig) -> nn.Module:
    """An image block; with dynamic attention one whose queries and keys the text scales."""
    size, eps = c.image_hidden_size, c.norm_eps
    if not c.dynamic_attention:
        return bert_block(
            size,
            c.image_num_heads,
            c.image_intermediate_size,
            activation=c.image_activation,
            norm_eps=eps,
            dropout=c.image_dropout,
            attention_dropout=c.image_attention_dropout,
        )
    return GatedBlock(
        GatedAttention(size, c.image_num_heads, c.hidden_size, dropout=c.image_attention_dropout),
        FeedForward(size, c.image_intermediate_size, c.image_activation),
        nn.LayerNorm(size, eps),
        nn.LayerNorm(size, eps),
        dropout=c.image_dropout,
    )


class ViLBert(VisionLanguageModel):
    Config = ViLBertConfig
    heads = {
        "masked_lm": masked_lm_of,
        "masked_region": lambda c: RegionHead(c.image_hidden_size, c.region_target_size, c.activation, c.norm_eps),
        "image_text_matching": lambda c: nn.Linear(c.co_hidden_size, 2),
    }
    pretraining = (MASKED_WORDS, MASKED_REGION, IMAGE_TEXT_MATCHING)
    task_heads = {  # eq: answers
        "visual_question_answering": lambda c, n: AnswerHead(c.co_hidden_size, 2 * c.co_hidden_size, n, c.norm_eps),
        "visual_reasoning": lambda c, n: AnswerHead(2 * c.co_hidden_size, 2 * c.co_hidden_size, n, c.norm_eps),
    }
    offers = {
        **VisionLanguageModel.offers,
        "regions": Reading(
            lambda e: e.image.last_hidden_state, "regions", mask=lambda model, given, e: model.region_mask(given, e)
        ),
    }
    own_inputs = (Input("task_type_ids", ("batch",), "int", "12-in-1: the row of the task's token"),)
    inputs = (*TEXT_INPUTS, "visual_features", "visual_boxes", "visual_mask", "task_type_ids")
    matching_dropout = 0.1
    embeddings: TaskEmbeddings

    def __init__(self, config: ViLBertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = TaskEmbeddings(c)
        self.image_embeddings = RegionEmbeddings(c.visual_size, c.box_size, c.image_hidden_size, c.norm_eps, c.dropout)
        blocks: dict[str, Sequence[nn.Module]] = {
            "text": [bert_block_of(c) for _ in range(c.num_layers)],
            "image": [image_block(c) for _ in range(c.image_num_layers)],
            "both": [co_attention_block(c) for _ in c.text_connections if c.co_attention],
        }
        self.encoder = Schedule(blocks, c.schedule)
        self.text_pooler = ReluPooler(c.hidden_size, c.co_hidden_size)
        self.image_pooler = ReluPooler(c.image_hidden_size, c.co_hidden_size)

    @classmethod
    def widths(cls, config: ViLBertConfig) -> Mapping[str, int]:
        return {"text": config.hidden_size, "image": config.image_hidden_size, "pooled": config.co_hidden_size}

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
        task_type_ids: Int[Tensor, "#batch ..."] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        all_pairs: bool = False,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Streams:
        """Encode texts and the regions of their pictures.

        visual_boxes: see `zoo.data.regions.regions`. visual_mask: (pictures, regions), 1/True = a real
        region. task_type_ids: for models with task tokens. One text with many pictures runs through
        its own first blocks once. all_pairs: every text with every picture, (texts · pictures) rows,
        pictures varying fastest. lengths, visual_lengths: real tokens and regions per row, where
        these stand first.
        """
        if visual_features is None or visual_boxes is None:
            raise InputError("this model reads pictures: give visual_features and visual_boxes")
        text = self.embeddings.tokens(input_ids, inputs_embeds)  # (batch, length, hidden)
        text = (  # eq: text
            text + self.embeddings.segments(token_type_ids, text) + self.embeddings.positions(position_ids, text)
        )
        batch = visual_features.shape[0] if text.shape[0] == 1 or all_pairs else text.shape[0]
        check_boxes(visual_features, visual_boxes, batch, self.config)
        text = self.embeddings.with_task(text, task_type_ids)  # (batch, length, hidden), or a token longer
        image = self.image_embeddings(visual_features, visual_boxes)  # (batch, regions, image hidden)
        mask, lengths = self.with_task(attention_mask, lengths)
        kept = output_hidden_states, output_attentions
        words = Run(text, mask, lengths, *kept)
        regions = Run(image, visual_mask, visual_lengths, *kept, name="visual_mask")
        runs = Runs({"text": words, "image": regions})
        runs, x = self.paired(runs, all_pairs) if all_pairs or runs.apart else (runs, runs.through(self.encoder))
        one = runs["text"].encoded(x["text"], self.text_pooler)
        other = runs["image"].encoded(x["image"], self.image_pooler)
        return Streams(
            text=one,
            image=other,
            pooler_output=self.fused(need_pooler(one), need_pooler(other)),
            cross_attentions=both_ways(runs["text"].cross_attentions, runs["image"].cross_attentions),
        )

    def fused(
        self, text: Float[Tensor, "batch pooled"], image: Float[Tensor, "batch pooled"]
    ) -> Float[Tensor, "batch pooled"]:
        """The product or the sum of the pooled vectors."""
        return text * image if self.config.fusion == "mul" else text + image  # eq: fused

    def paired(self, runs: Runs, all_pairs: bool) -> tuple[Runs, dict[str, Tensor]]:
        """The streams run apart until they first meet; there one text, or with ``all_pairs`` each,
        is repeated for each picture; pictures vary fastest.
        """
        steps = self.encoder.steps
        meet = next((i for i, step in enumerate(steps) if len(step.writes) > 1), len(steps))
        x = runs.through(self.encoder, slice(meet))
        texts, pictures = x["text"].shape[0], x["image"].shape[0]
        change: dict[str, Callable[[Tensor], Tensor]] = {
            "text": lambda y: repeat(y, "texts ... -> (texts pictures) ...", pictures=pictures)
        }
        if all_pairs:
            change["image"] = lambda y: repeat(y, "pictures ... -> (texts pictures) ...", texts=texts)
        runs = runs.repeated(x, change)
        return runs, runs.through(self.encoder, slice(meet, None))

    def with_task(
        self, mask: Tensor | None, lengths: Sequence[int] | None
    ) -> tuple[Tensor | None, Sequence[int] | None]:
        """The text's mask and lengths, a real token longer where the model has task tokens."""
        if not self.config.num_tasks:
            return mask, lengths
        if mask is not None:
            if mask.dim() != 2:
                raise InputError(
                    f"attention_mask must be (batch, length) for a model with task tokens, got {tuple(mask.shape)}"
                )
            mask = torch.cat([mask[:, :1], mask.new_ones(mask.shape[0], 1), mask[:, 1:]], 1)
        return mask, None if lengths is None else [n + 1 for n in lengths]

    def word_mask(self, given: Mapping[str, Any], encoded: Streams) -> tuple[Tensor | None, Sequence[int] | None]:
        assert encoded.text is not None
        rows = encoded.text.last_hidden_state.shape[0]
        mask, lengths = self.with_task(given.get("attention_mask"), given.get("lengths"))
        # one text, or each, may have met many pictures
        mask = None if mask is None else mask.repeat_interleave(rows // mask.shape[0], 0)
        return mask, None if lengths is None else [n for n in lengths for _ in range(rows // len(lengths))]

    def region_mask(self, given: Mapping[str, Any], encoded: Streams) -> tuple[Tensor | None, Sequence[int] | None]:
        """Which regions are real; every picture may have met every text, pictures running fast."""
        assert encoded.image is not None
        rows = encoded.image.last_hidden_state.shape[0]
        mask, lengths = given.get("visual_mask"), given.get("visual_lengths")
        mask = None if mask is None else mask.repeat(rows // mask.shape[0], 1)
        return mask, None if lengths is None else [*lengths] * (rows // len(lengths))
