"""VLP (Zhou et al., 2020): one BERT that reads a picture and a sentence, or reads the picture and writes the sentence.

    v = relu(W_2 relu(W_1 f)),   g = relu(W_g [norm(box) ; norm(class probabilities)])     no affine in these norms
    h_0 = norm([word_CLS, v_1 .. v_N, word_SEP, ...] + [position_0, g_1 .. g_N, position_N+1, ...] + segment)
    reading: every token attends to every token
    writing: [CLS], regions and the first [SEP] attend to each other; word t attends to them and to words 1 .. t
    answer  = W'' relu(W' (h_CLS · h_SEP))           the first [SEP], element by element

A region's feature stands in the place of the word's embedding, its box and class in the place of the
position's; positions of words go on behind all N regions. Here words come first and regions behind
them: attention is blind to the order. Which tokens are written says ``ranks``, 0 = read, 1, 2, ... =
written. Segments: reading 0 (picture, first [SEP]) and 1, writing 4 and 5.

A word is written by a [MASK] behind those before it, which the word then replaces: inputs at step t
are word t - 1 and a [MASK], the scores are those at the [MASK].

Differs from BERT: eps 1e-5, six segments, cased words. Loss: see `zoo.tasks.losses.kept_token_loss`.

Traps: N counts all regions of the original, always 100; another number shifts the words' positions.
Boxes are divided by the largest x and y of a picture's boxes, not by its size. v and g are never
negative. Answer 0 stands for an unknown answer, and the authors never choose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.data.captions import CaptionCollator
from zoo.errors import ConfigError
from zoo.layers import FirstTokenPooler, Stack, TextEmbeddings, Wanted, bert_block_of
from zoo.layers.cache import KeyValueCache
from zoo.layers.embeddings import check_boxes
from zoo.layers.heads import ClassificationHead, masked_lm_of
from zoo.models.base.config import Config, free
from zoo.models.base.joint_encoder import JointEncoder, check_joint
from zoo.models.base.outputs import Joint
from zoo.registry.terms import MASKED_WORDS
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class VlpConfig(Config):
    vocab_size: int = 28_996
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 6
    visual_size: int = 2048  # width of a region's feature
    box_size: int = 1607  # six numbers of a box, and the detector's class probabilities
    num_regions: int = 100  # regions of a picture, behind which the positions of words go on
    activation: str = "gelu"
    norm_eps: float = 1e-5
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(0.0)  # before heads: none, as the authors have it
    initializer_range: float = free(0.02)
    end_token_id: int | None = free(102)  # [SEP], which ends what is written
    mask_token_id: int | None = free(103)  # [MASK], in whose place words are written

    written_segment: ClassVar[int] = 5  # of words that are written
    visual_segment: ClassVar[int] = 0  # of regions whose segment the caller does not give
    box_code: ClassVar[str] = "vlp"  # how `Regions` writes boxes

    def check(self) -> None:
        check_joint(self, "box_size", "num_regions", "num_segments")
        if self.longest < 1:
            raise ConfigError(
                f"max_positions={self.max_positions} must be more than num_regions={self.num_regions}: words stand "
                "behind the regions"
            )

    @property
    def longest(self) -> int:
        """The most tokens that a text may have."""
        return self.max_positions - self.num_regions


class VlpEmbeddings(TextEmbeddings):
    """BERT's, with the positions 0, N+1, N+2, ..."""

    def __init__(self, c: VlpConfig) -> None:
        norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        super().__init__(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)
        self.first_position = c.num_regions  # of the words but the first

    def positions(
        self, position_ids: Int[Tensor, "*#batch length"] | None, tokens: Float[Tensor, "batch length size"]
    ) -> Float[Tensor, "*#batch length hidden"]:
        return super().positions(self.places_of(tokens) if position_ids is None else position_ids, tokens)

    def places_of(self, tokens: Tensor) -> Int[Tensor, "1 length"]:
        """The positions of a text."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return torch.where(places > 0, places + self.first_position, 0)[None]  # eq: place


class PlacedRegions(nn.Module):
    """``v`` and ``g``: what stands for a region in the place of a word's embedding and of its position."""

    def __init__(self, c: VlpConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(c.visual_size, c.visual_size)  # starts as the detector's last layer
        self.features = nn.Linear(c.visual_size, c.hidden_size)
        self.boxes = nn.Linear(c.box_size, c.hidden_size)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, features: Float[Tensor, "batch regions visual_size"], boxes: Float[Tensor, "batch regions box_size"]
    ) -> tuple[Float[Tensor, "batch regions hidden"], Float[Tensor, "batch regions hidden"]]:
        dtype = self.features.weight.dtype
        v = torch.relu(self.features(torch.relu(self.dense(features.to(dtype)))))  # eq: regions
        g = torch.relu(self.boxes(boxes.to(dtype)))  # eq: regions
        return self.dropout(v), self.dropout(g)


class Vlp(JointEncoder):
    Config = VlpConfig
    writes = "masked"
    captions = CaptionCollator
    heads = {"masked_lm": masked_lm_of}
    pretraining = (
        replace(
            MASKED_WORDS,
            loss="kept-tokens",
            loss_takes=("drop_worst", "label_smoothing"),
            options={"drop_worst": 0.0, "label_smoothing": 0.0},
        ),
    )
    task_heads = {
        "visual_question_answering": lambda c, n: ClassificationHead(
            c.hidden_size, n, "relu", inner_size=2 * c.hidden_size
        )
    }
    inputs = (*TEXT_INPUTS, "visual_features", "visual_boxes", "visual_mask", "visual_token_type_ids", "ranks")
    embeddings: VlpEmbeddings

    def __init__(self, config: VlpConfig) -> None:
        super().__init__(config)
        self.embeddings = VlpEmbeddings(config)
        self.image_embeddings = PlacedRegions(config)
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

        input_ids: [CLS], [SEP], words, [SEP]; the regions belong between the first two. visual_boxes:
        `Regions.vlp`. ranks: 0 for what is read, 1, 2, ... for words that are written, None where all
        is read. cache: what was read and written before these, see `JointEncoder.encode`. The other
        arguments are those of other models of words and regions.
        """
        text = regions = None
        if input_ids is not None or inputs_embeds is not None:
            text = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # eq: text-embedding
        if visual_features is not None:
            batch = visual_features.shape[0] if text is None else text.shape[0]
            v, g = self.image_embeddings(
                visual_features, check_boxes(visual_features, visual_boxes, batch, self.config)
            )
            x = v + g + self.region_segments(visual_token_type_ids, visual_features)  # eq: region-embedding
            regions = self.embeddings.dropout(self.embeddings.norm(x))  # eq: region-embedding
        real, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        return self.encode(text, regions, real, kept, ranks, cache)  # eq: encoder

    def written_room(self, read: int) -> int:
        """How many words may be written behind those that are read."""
        return self.config.longest - read

    def read_inputs(self, input_ids: Int[Tensor, "batch length"]) -> dict[str, Tensor]:
        """Where words that are read stand, and their segment."""
        return {"position_ids": self.embeddings.places_of(input_ids), "token_type_ids": torch.zeros_like(input_ids)}

    def written_inputs(self, read: Int[Tensor, "rows"], places: Int[Tensor, "new"]) -> dict[str, Tensor]:
        """Where the written words of these places (0, 1, ...) stand behind so many that are read."""
        positions = self.config.num_regions + read[:, None] + places
        return {"position_ids": positions, "token_type_ids": torch.full_like(positions, self.config.written_segment)}

    def answer_vector(self, given: Mapping[str, Any], encoded: Joint) -> Float[Tensor, "batch hidden"]:
        """The states of [CLS] and of the first [SEP], element by element."""
        states, real = encoded.text.last_hidden_state, self.padding_of("tokens", given, encoded).real
        if real is None:
            return states[:, 0] * states[:, 1]  # eq: answer
        counted = real.cumsum(1)[:, :, None]  # a text has two tokens at least
        first, second = (((counted == n) & real[:, :, None]) * states for n in (1, 2))  # eq: answer
        return first.sum(1) * second.sum(1)  # eq: answer
