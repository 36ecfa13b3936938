"""UNIMO (Li et al., 2021): one encoder for texts, for pictures and for both, that also writes.

    text_t   = norm(token + position)                          RoBERTa's positions, from 2 on; no segments
    region_r = norm_v(W_f f_r + W_l l_r)                         l: x1, y1, x2, y2, area as shares
    h        = BERT's blocks over [text ; regions]
    pooled   = relu(W_t h_first word) · relu(W_v h_first region)  element by element; or their sum
    writing: regions and what is read attend to each other; word t attends to them and to words 1 .. t,
             and its state predicts word t + 1

Region 0 is the whole picture: the mean of the features, with the box 0, 0, 1, 1 and area 1. Which
tokens are written says ``ranks``, 0 = read, 1, 2, ... = written.

Differs from UNITER: one norm in a region, two poolers (ReLU), no segments; writes without masks.
Trained by masked words, masked regions, writing, and by contrast of pictures with texts that were
rewritten; the code of pre-training is not public. Here are masked words, writing and the contrast
(`zoo.tasks.ranking.several_right_loss`), for rewritten texts that are given.

Traps: norms have eps 1e-5. Texts are lowercased before GPT-2's byte pairs are made. The pooled
vectors are multiplied for retrieval and added for visual entailment (``fusion``). A text-only file
has no image parts (``pictures``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.data.captions import NextWordCollator
from zoo.errors import ConfigError, InputError
from zoo.layers import RegionEmbeddings, ReluPooler, Stack, Wanted, bert_block_of
from zoo.layers.cache import KeyValueCache
from zoo.layers.embeddings import check_boxes
from zoo.layers.heads import ClassificationHead, masked_lm_of
from zoo.layers.padding import Padding, padding_like
from zoo.models.base.config import Config, free
from zoo.models.base.joint_encoder import JointEncoder, check_joint
from zoo.models.base.outputs import Joint
from zoo.models.roberta import RobertaEmbeddings
from zoo.registry.terms import MASKED_WORDS


@dataclass(frozen=True, kw_only=True)
class UnimoConfig(Config):
    vocab_size: int = 50_265
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 514
    pictures: bool = True  # with the parts that read regions
    visual_size: int = 2048  # width of a region's feature
    box_size: int = 5  # numbers that describe a box
    fusion: str = "mul"  # of the pooled vectors of text and picture: "mul" (retrieval) or "sum" (visual entailment)
    activation: str = "gelu"
    norm_eps: float = 1e-5
    pad_token_id: int = 1
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)
    start_token_id: int = free(0)  # <s>, with which a text that is written begins
    end_token_id: int | None = free(2)  # </s>

    num_segments: ClassVar[int] = 0
    whole_image_at: ClassVar[str] = "first"  # where the region of the whole picture stands

    def check(self) -> None:
        check_joint(self, "box_size")
        if self.fusion not in ("mul", "sum"):
            raise ConfigError(f'fusion must be "mul" or "sum", got {self.fusion!r}')
        if not 0 <= self.pad_token_id < self.vocab_size or self.longest < 1:
            raise ConfigError(
                f"pad_token_id={self.pad_token_id} must lie in 0..vocab_size - 1 = {self.vocab_size - 1} and leave "
                f"rows of max_positions={self.max_positions} behind it"
            )

    @property
    def longest(self) -> int:
        """How many tokens a text may have."""
        return self.max_positions - self.pad_token_id - 1


class TwoPoolers(nn.Module):
    """The first word's and the first region's state, each through a layer of its own, and both as one."""

    def __init__(self, c: UnimoConfig) -> None:
        super().__init__()
        self.text = ReluPooler(c.hidden_size)
        self.image = ReluPooler(c.hidden_size) if c.pictures else None
        self.fusion = c.fusion

    def forward(self, joint: Joint, words: Padding, regions: Padding) -> Float[Tensor, "batch hidden"]:
        found: list[Tensor] = []
        if joint.text_length:
            found.append(self.text(joint.text.last_hidden_state, words))
        if self.image is not None and joint.region_length:
            found.append(self.image(joint.image.last_hidden_state, regions))
        if len(found) == 1:
            return found[0]
        text, image = found
        return text * image if self.fusion == "mul" else text + image  # eq: pooled


class Unimo(JointEncoder):
    Config = UnimoConfig
    writes = "joint"
    captions = NextWordCollator
    heads = {"masked_lm": masked_lm_of}
    pretraining = (MASKED_WORDS,)
    ranking_loss = "circle"
    task_heads = {
        "visual_entailment": lambda c, n: ClassificationHead(
            c.hidden_size, n, "identity", c.dropout if c.classifier_dropout is None else c.classifier_dropout, 2048
        )
    }
    inputs = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "visual_features",
        "visual_boxes",
        "visual_mask",
        "ranks",
    )
    embeddings: RobertaEmbeddings

    def __init__(self, config: UnimoConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = RobertaEmbeddings(c, nn.LayerNorm(c.hidden_size, c.norm_eps))  # type: ignore[arg-type]
        self.image_embeddings = (
            RegionEmbeddings(c.visual_size, c.box_size, c.hidden_size, c.norm_eps, c.dropout) if c.pictures else None
        )
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = TwoPoolers(c) if c.pooler else None

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        visual_features: Float[Tensor, "batch regions visual_size"] | None = None,
        visual_boxes: Float[Tensor, "batch regions box_size"] | None = None,
        visual_mask: Tensor | None = None,
        ranks: Int[Tensor, "batch length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
        cache: KeyValueCache | None = None,
    ) -> Joint:
        """Encode texts and the regions of their pictures, either of them alone too; the result holds the
        text's positions first, then the regions'.

        visual_boxes: `Regions.for_model` adds the region of the whole picture. ranks: 0 for what is
        read, 1, 2, ... for words that are written, None where all is read. cache: what was read and
        written before these, see `JointEncoder.encode`; then nothing is pooled. The other arguments are
        those of other models of words and regions.
        """
        text = regions = None
        if input_ids is not None or inputs_embeds is not None:
            text = self.embeddings(input_ids, None, position_ids, inputs_embeds)  # eq: text-embedding
        if visual_features is not None:
            if self.image_embeddings is None:
                raise InputError("this model was built without its parts for pictures (config.pictures = False)")
            batch = visual_features.shape[0] if text is None else text.shape[0]
            boxes = check_boxes(visual_features, visual_boxes, batch, self.config)
            regions = self.image_embeddings(visual_features, boxes)  # eq: region-embedding
        real, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        joint = self.encode(text, regions, real, kept, ranks, cache)  # eq: encoder
        if self.pooler is None or cache is not None:
            return joint
        text_padding = padding_like(joint.text.last_hidden_state, attention_mask, lengths, pack=False)
        image = joint.image.last_hidden_state
        image_padding = padding_like(image, visual_mask, visual_lengths, pack=False, name="visual_mask")
        return replace(joint, pooler_output=self.pooler(joint, text_padding, image_padding))

    @property
    def joint_pooler(self) -> None:
        return None

    def written_room(self, read: int) -> int:
        """How many words may be written behind those that are read."""
        return self.config.longest - read

    def read_inputs(self, input_ids: Int[Tensor, "batch length"]) -> dict[str, Tensor]:
        """Where words that are read stand."""
        return {"position_ids": self.embeddings.places(input_ids)}

    def written_inputs(self, read: Int[Tensor, "rows"], places: Int[Tensor, "new"]) -> dict[str, Tensor]:
        """Where the written words of these places (0, 1, ...) stand behind so many that are read."""
        return {"position_ids": self.config.pad_token_id + 1 + read[:, None] + places}
