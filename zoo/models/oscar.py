"""Oscar (Li et al., 2020) and Oscar+ (Zhang et al., 2021, VinVL): a BERT over a text, the names of the objects in
its picture, and the picture's regions.

    text_t   = norm(token + position + segment)      [CLS] caption [SEP] tags [SEP], segment 1 from the tags on
    region_r = W f_r + b                             Oscar;   f: the feature, then x1, y1, x2, y2, w, h as shares
    region_r = norm_v(W f_r + b)                     Oscar+
    h        = BERT's blocks over [text ; regions],  pooled = tanh(W_p h_first)
    written  : caption word t attends to the words 1 .. t, to tags and regions; these to each other alone

A tag is an object class that the detector names, as plain words: it ties a region to a word of the
vocabulary. Trained by masked words and tags, and by contrast: do caption, tags and picture belong
together? Oscar tells right (0) from wrong tags (1); Oscar+ right (0) from wrong tags (1) and from a
wrong caption or question (2).

To write a caption, each word is predicted at a [MASK] behind those before it, which the word then
replaces. Tags keep their own positions, from ``tag_position`` on.

Traps: regions have no segment and no position, and in Oscar no norm. Contrast's label 0 is the pair
that belongs together, where other families have 1. [CLS] is a written word too: tags and regions
don't attend to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers import FirstTokenPooler, Stack, Wanted, bert_block_of, text_embeddings_of
from zoo.layers.cache import KeyValueCache
from zoo.layers.embeddings import check_features
from zoo.layers.heads import masked_lm_of
from zoo.models.base.config import Config, free
from zoo.models.base.joint_encoder import JointEncoder, check_joint
from zoo.models.base.outputs import Joint
from zoo.registry.terms import IMAGE_TEXT_MATCHING, MASKED_WORDS
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class OscarConfig(Config):
    vocab_size: int = 30_522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 2
    visual_size: int = 2054  # width of a region's feature, the six numbers of its box at the end
    image_norm: bool = False  # with a norm over regions (Oscar+)
    image_norm_eps: float = 1e-12  # what this norm adds to the variance
    num_contrast_classes: int = 2  # of the contrastive head: 2 (Oscar) or 3 (Oscar+)
    classifier: str = "linear"  # a task's head: "linear", or "mlp" with a layer before
    classifier_scale: int = 2  # width of that layer, in hidden sizes
    activation: str = "gelu"
    norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    pooler: bool = True
    dropout: float = free(0.1)
    attention_dropout: float = free(0.1)
    classifier_dropout: float | None = free(None)  # None: as `dropout`
    initializer_range: float = free(0.02)
    tag_position: int = free(40)  # of the first tag while a caption is written: the longest caption in training
    start_token_id: int | None = free(101)  # [CLS], with which a caption begins
    end_token_id: int | None = free(102)  # [SEP], which ends it
    mask_token_id: int | None = free(103)  # [MASK], in whose place words are written

    tag_segment: ClassVar[int] = 1
    box_in_features: ClassVar[str] = "oscar"  # the code of a box that ends a region's feature, see `Regions`

    def check(self) -> None:
        check_joint(self, "num_contrast_classes", "classifier_scale", "tag_position")
        if self.num_segments <= self.tag_segment:
            raise ConfigError(f"num_segments={self.num_segments} must be 2 or more: tags have segment 1")
        if self.classifier not in ("linear", "mlp"):
            raise ConfigError(f'classifier must be "linear" or "mlp", got {self.classifier!r}')


class ProjectedRegions(nn.Module):
    """``norm(W f + b)``; ``norm`` does nothing in Oscar."""

    def __init__(self, visual_size: int, hidden_size: int, norm: nn.Module, dropout: float) -> None:
        super().__init__()
        self.features = nn.Linear(visual_size, hidden_size)
        self.norm = norm
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Float[Tensor, "batch regions visual_size"]) -> Float[Tensor, "batch regions hidden"]:
        x = self.norm(self.features(features.to(self.features.weight.dtype)))  # eq: region-embedding
        return self.dropout(x)  # type: ignore[no-any-return]


class ReluClassifier(nn.Module):
    """``W_2 norm(relu(W_1 x))``; ``norm`` does nothing but in Oscar+'s head of two pictures."""

    def __init__(self, input_size: int, inner_size: int, num_labels: int, norm: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Linear(input_size, inner_size)
        self.norm = norm
        self.output = nn.Linear(inner_size, num_labels)

    def forward(self, x: Float[Tensor, "*rows input_size"]) -> Float[Tensor, "*rows labels"]:
        return self.output(self.norm(torch.relu(self.inner(x))))  # type: ignore[no-any-return]  # eq: classifier


class PairClassifier(nn.Module):
    """The logit of "they belong together" by a classifier of two classes, of which the second says so."""

    def __init__(self, classes: nn.Module) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows 1"]:
        scores = self.classes(x)
        return scores[..., 1:] - scores[..., :1]  # type: ignore[no-any-return]  # eq: pair


def classifier_of(c: OscarConfig, num_labels: int, pictures: int = 1) -> nn.Module:
    """A task's head over the pooled vectors of so many pictures."""
    size, inner = pictures * c.hidden_size, c.classifier_scale * c.hidden_size
    if c.classifier == "linear":
        return nn.Linear(size, num_labels)
    norm = nn.LayerNorm(inner, c.norm_eps) if pictures > 1 and c.image_norm else nn.Identity()
    return ReluClassifier(size, inner, num_labels, norm)


class Oscar(JointEncoder):
    Config = OscarConfig
    writes = "masked"
    heads = {
        "masked_lm": masked_lm_of,
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, c.num_contrast_classes),
    }
    pretraining = (
        replace(
            MASKED_WORDS,
            loss="smoothed-tokens",
            loss_takes=("label_smoothing", "drop_worst"),
            options={"label_smoothing": 0.0, "drop_worst": 0.0},
        ),
        IMAGE_TEXT_MATCHING,
    )
    task_heads = {
        "sequence_classification": classifier_of,
        "visual_question_answering": classifier_of,
        "visual_entailment": classifier_of,
        "visual_reasoning": lambda c, n: classifier_of(c, n, 2),
        "image_text_retrieval": lambda c, n: PairClassifier(classifier_of(c, 2)),
    }
    inputs = (*TEXT_INPUTS, "visual_features", "visual_mask", "ranks")

    def __init__(self, config: OscarConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = text_embeddings_of(c)
        norm = nn.LayerNorm(c.hidden_size, c.image_norm_eps) if c.image_norm else nn.Identity()
        self.image_embeddings = ProjectedRegions(c.visual_size, c.hidden_size, norm, c.dropout)
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
        visual_mask: Tensor | None = None,
        ranks: Int[Tensor, "batch length"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        visual_lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
        cache: KeyValueCache | None = None,
    ) -> Joint:
        """Encode texts with tags and the regions of their pictures, either of them alone too; the result
        holds the text's positions first, then the regions'.

        input_ids: `zoo.data.tags.TagCollator` joins captions and tags. visual_features:
        `Regions.for_model` puts the boxes behind the features. ranks: 0 for tags, 1, 2, ... for the
        words of a caption that is written, None where all is read. cache: what was read and written
        before these, see `JointEncoder.encode`. The other arguments are BERT's.
        """
        text = regions = None
        if input_ids is not None or inputs_embeds is not None:
            text = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # eq: text-embedding
        if visual_features is not None:
            batch = len(visual_features) if text is None else text.shape[0]
            check_features(visual_features, batch, self.config.visual_size, "visual_features")
            regions = self.image_embeddings(visual_features)  # eq: region-embedding
        real, kept = (attention_mask, visual_mask, lengths, visual_lengths), (output_hidden_states, output_attentions)
        return self.encode(text, regions, real, kept, ranks, cache)  # eq: encoder

    def written_room(self, read: int) -> int:
        """How many words a caption may have: tags stand behind it."""
        return self.config.max_positions if not read else min(self.config.tag_position, self.config.max_positions)

    def read_inputs(self, input_ids: Int[Tensor, "batch length"]) -> dict[str, Tensor]:
        """Where tags stand that are read, and their segment."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None] + self.config.tag_position
        return {"position_ids": places, "token_type_ids": torch.full_like(input_ids, self.config.tag_segment)}

    def written_inputs(self, read: Int[Tensor, "rows"], places: Int[Tensor, "new"]) -> dict[str, Tensor]:
        """Where the written words of these places (0, 1, ...) stand."""
        positions = places.expand(len(read), -1)
        return {"position_ids": positions, "token_type_ids": torch.zeros_like(positions)}
