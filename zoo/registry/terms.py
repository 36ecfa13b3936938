"""The terms of pre-training objectives, as families declare them. Imports no torch.

    loss = sum over the terms of  weight · loss(head(what is read), labels)

Heads are named as in `Model.heads`, what is read as in `Model.offers`, losses as in `zoo.tasks.losses.LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PretrainingTerm:
    """One term. ``name`` stands in ``losses``; the head is called the same unless ``head`` says otherwise, "" = the
    model itself gives the scores.

    reads: what the head scores, each a key of the family's `offers`. labels: the call's argument, "" = the batch
    itself tells. takes: what the head reads besides: arguments of the call, or tables of the model. loss: a key, or
    ``"module:function"``. loss_takes: what the loss reads besides. weight: a number, or the task option that holds
    it. output: the field of the result that the scores stand in, "" = ``scores[name]``. dropout: the rate, or the
    layer, that is applied to what is read. layer: the config field with the block whose states are read. grid: the
    head takes (batch, length, ...) and not rows of real tokens. only_where: (labels, value) of the rows that count:
    matched pairs only. optional: left out where the config builds no pooler. needs: config fields that must be true,
    or the term is left out. part: the name of the scores, where the head gives several by name. options: the task's,
    with defaults.
    """

    name: str
    reads: tuple[str, ...]
    loss: str
    labels: str = ""
    head: str | None = None
    takes: tuple[str, ...] = ()
    loss_takes: tuple[str, ...] = ()
    weight: float | str = 1.0
    output: str = ""
    dropout: str = ""
    layer: str = ""
    grid: bool = False
    only_where: tuple[str, int] | None = None
    optional: bool = False
    needs: tuple[str, ...] = ()
    part: str = ""
    scorer: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def head_name(self) -> str:
        return self.name if self.head is None else self.head

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a call may hand over for it."""
        return tuple(n for n in (self.labels, *self.takes, *self.loss_takes) if n)


def masked_words(reads: str) -> PretrainingTerm:
    """The words behind the masks."""
    return PretrainingTerm(
        name="masked_lm",
        reads=(reads,),
        labels="labels",
        takes=("token_table",),
        loss="tokens",
        output="prediction_logits",
    )


MASKED_LM = masked_words("text")
MASKED_WORDS = masked_words("words")
NEXT_SENTENCE = PretrainingTerm(
    name="next_sentence",
    reads=("pooled",),
    labels="next_sentence_label",
    loss="rows",
    output="seq_relationship_logits",
)
SENTENCE_ORDER = PretrainingTerm(
    name="sentence_order",
    reads=("pooled",),
    labels="sentence_order_label",
    loss="rows",
    output="sop_logits",
    dropout="dropout",
)
REPLACED_TOKEN = PretrainingTerm(name="replaced_token", reads=("text",), labels="labels", loss="binary-tokens")
SPAN_BOUNDARY = PretrainingTerm(
    name="span_boundary",
    reads=("text",),
    labels="pair_labels",
    takes=("pairs", "token_table"),
    loss="spans",
    loss_takes=("pairs",),
    weight="span_loss_weight",
    layer="span_layer",
    grid=True,
    options={"span_loss_weight": 1.0},
)
MASKED_ENTITY = PretrainingTerm(
    name="masked_entity",
    reads=("text",),
    labels="entity_labels",
    takes=("entity_candidates",),
    loss="tokens",
)
ENTITY_LINKING = PretrainingTerm(
    name="entity_linking",
    reads=("mentions",),
    head="",
    labels="gold_entities",
    loss="linking",
    loss_takes=("entity_candidates", "knowledge"),
)
MASKED_REGION = PretrainingTerm(
    name="masked_region",
    reads=("regions",),
    labels="region_labels",
    loss="regions",
    loss_takes=("region_targets", "negatives", "region_target", "num_negatives"),
    output="region_logits",
    options={"region_target": "classes", "num_negatives": 128},
)
IMAGE_TEXT_MATCHING = PretrainingTerm(
    name="image_text_matching",
    reads=("fused",),
    labels="match_labels",
    loss="rows",
    output="seq_relationship_logits",
    dropout="matching_dropout",
)
REGION_FEATURE = PretrainingTerm(
    name="region_feature",
    reads=("regions",),
    labels="feature_targets",
    loss="region-feature",
    loss_takes=("region_labels",),
)
TIED_REGION_FEATURE = replace(REGION_FEATURE, takes=("region_table",))  # through the matrix that embeds features
REGION_CLASS = PretrainingTerm(
    name="region_class",
    reads=("regions",),
    labels="class_targets",
    loss="region-class",
    loss_takes=("region_labels", "class_loss"),
    output="region_logits",
    options={"class_loss": "distribution"},
)
WORD_REGION_ALIGNMENT = PretrainingTerm(
    name="word_region_alignment",
    reads=("tokens", "regions"),
    head="",
    scorer="zoo.tasks.transport:distances",
    labels="match_labels",
    loss="pairs-apart",
    weight="alignment_weight",
    options={"alignment_weight": 0.1},
)
MATCHING_SCORE = replace(IMAGE_TEXT_MATCHING, loss="binary-rows")  # one output: the logit of "they belong together"
LANGUAGE_MODEL = PretrainingTerm(
    name="language_model",
    reads=("target",),
    labels="labels",
    takes=("output_table",),
    loss="tokens",
    output="prediction_logits",
)


NEXT_TOKEN = replace(LANGUAGE_MODEL, reads=("text",), takes=("token_table",), loss="next-tokens")  # labels: the ids


def where_matched(term: PretrainingTerm, **options: Any) -> PretrainingTerm:
    """The same for the pairs of words and picture alone that belong together (match label 1)."""
    return replace(term, only_where=("match_labels", 1), options={**term.options, **options})


TERMS: tuple[PretrainingTerm, ...] = (
    MASKED_LM,
    MASKED_WORDS,
    NEXT_SENTENCE,
    SENTENCE_ORDER,
    REPLACED_TOKEN,
    SPAN_BOUNDARY,
    MASKED_ENTITY,
    ENTITY_LINKING,
    MASKED_REGION,
    IMAGE_TEXT_MATCHING,
    LANGUAGE_MODEL,
    NEXT_TOKEN,
)
"""Those that tasks of their own name train alone; a family's own terms stand in its file."""
