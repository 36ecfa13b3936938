"""Which tasks there are, what each reads, and so which fit a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import TaskError, unknown


@dataclass(frozen=True)
class TaskSpec:
    """A task: what it ``reads`` of a model, the pre-training ``heads`` it needs of the family's,
    ``one_of`` which it needs at least one, the options it takes with their defaults, and the class
    that builds it.

    Read are "text": the states of a text, "pooled": its pooled vector, "entities": what it knows
    beside the text; of an encoder-decoder "source and target"; of a model of pictures and words
    "words", "regions" and "fused", the pooled vector of both. ``may_read``: what is read where the
    config has it. One name may stand for several specs, one for each kind of model: `spec_for`
    chooses.
    """

    name: str
    reads: frozenset[str]
    class_path: str
    heads: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    may_read: frozenset[str] = frozenset()

    def missing(self, offers: frozenset[str]) -> list[str]:
        """What a model lacks for this task, in words."""
        lacks = sorted(self.reads - offers) + [f"a {head} head" for head in self.heads if head not in offers]
        if self.one_of and not offers & set(self.one_of):
            lacks.append(" or ".join(f"a {head} head" for head in self.one_of))
        return lacks


def _specs(*specs: TaskSpec) -> dict[str, TaskSpec]:
    return {spec.name: spec for spec in specs}


_TEXT, _POOLED = frozenset({"text"}), frozenset({"pooled"})
_LABELS = {"num_labels": 2, "problem_type": None}
_BOTH = frozenset({"source and target"})

TASKS: dict[str, TaskSpec] = _specs(
    TaskSpec("masked-lm", _TEXT, "zoo.tasks.text:MaskedLM", heads=("masked_lm",), summary="the words behind the masks"),
    TaskSpec(
        "replaced-token-detection",
        _TEXT,
        "zoo.tasks.electra:ReplacedTokenDetection",
        heads=("replaced_token",),
        summary="which tokens are not the original ones",
    ),
    TaskSpec(
        "next-sentence",
        _POOLED,
        "zoo.tasks.text:NextSentence",
        heads=("next_sentence",),
        summary="does B follow A (0 = it does)",
    ),
    TaskSpec(
        "sentence-order",
        _POOLED,
        "zoo.tasks.text:SentenceOrder",
        heads=("sentence_order",),
        summary="were A and B swapped (0 = no)",
    ),
    TaskSpec(
        "pretraining",
        _TEXT | _POOLED,
        "zoo.tasks.text:Pretraining",
        heads=("masked_lm",),
        one_of=("next_sentence", "sentence_order"),
        summary="masked words and the family's sentence objective together",
    ),
    TaskSpec(
        "sequence-classification",
        _POOLED,
        "zoo.tasks.text:SequenceClassification",
        options=_LABELS,
        summary="a label for a text or pair",
    ),
    TaskSpec(
        "token-classification",
        _TEXT,
        "zoo.tasks.text:TokenClassification",
        options={"num_labels": 2},
        summary="a label for each token",
    ),
    TaskSpec(
        "question-answering", _TEXT, "zoo.tasks.text:QuestionAnswering", summary="the span that answers a question"
    ),
    TaskSpec("multiple-choice", _POOLED, "zoo.tasks.text:MultipleChoice", summary="the right one of several texts"),
    TaskSpec(
        "conditional-generation",
        _BOTH,
        "zoo.tasks.seq2seq:ConditionalGeneration",
        heads=("language_model",),
        summary="the next word of a target text, given a source",
    ),
    TaskSpec(
        "sentence-embedding",
        _TEXT,
        "zoo.tasks.text:SentenceEmbedding",
        options={"pooling": "mean", "normalize": True},
        summary="one vector for a text, for search and similarity",
    ),
)


_WORDS, _REGIONS, _FUSED = frozenset({"words"}), frozenset({"regions"}), frozenset({"fused"})
_HEAD = {"head": None}  # the head's form, None: the family's own; see zoo.tasks.vision

VISION: dict[str, TaskSpec] = _specs(
    TaskSpec(
        "masked-lm", _WORDS, "zoo.tasks.vision:MaskedLM", heads=("masked_lm",), summary="the words behind the masks"
    ),
    TaskSpec(
        "masked-region",
        _REGIONS,
        "zoo.tasks.vision:MaskedRegion",
        heads=("masked_region",),
        options={"region_target": "classes", "num_negatives": 128},
        summary="the regions behind the masks",
    ),
    TaskSpec(
        "image-text-matching",
        _FUSED,
        "zoo.tasks.vision:ImageTextMatching",
        heads=("image_text_matching",),
        summary="do the words belong to the picture",
    ),
    TaskSpec(
        "pretraining",
        _WORDS | _REGIONS | _FUSED,
        "zoo.tasks.vision:Pretraining",
        heads=("masked_lm", "image_text_matching"),
        options={"region_target": "classes", "num_negatives": 128},
        summary="masked words, image-text matching and, where the family has it, masked regions together",
    ),
    TaskSpec(
        "visual-question-answering",
        _WORDS | _FUSED,
        "zoo.tasks.vision:VisualQuestionAnswering",
        options={"num_labels": 3129, **_HEAD},
        summary="an answer to a question about a picture, with soft scores",
    ),
    TaskSpec(
        "visual-reasoning",
        _FUSED,
        "zoo.tasks.vision:VisualReasoning",
        options={"num_labels": 2, "pairs": None, **_HEAD},
        summary="is a sentence true of two pictures (NLVR2)",
    ),
    TaskSpec(
        "visual-entailment",
        _FUSED,
        "zoo.tasks.vision:VisualEntailment",
        options={"num_labels": 3, **_HEAD},
        summary="does a picture entail a sentence (SNLI-VE)",
    ),
    TaskSpec(
        "sequence-classification",
        _FUSED,
        "zoo.tasks.vision:Classification",
        options={**_LABELS, **_HEAD},
        summary="a label for a picture and its words",
    ),
    TaskSpec(
        "multiple-choice",
        _FUSED,
        "zoo.tasks.vision:MultipleChoice",
        summary="the right one of several texts or pictures (VCR)",
    ),
    TaskSpec(
        "image-text-retrieval",
        _FUSED,
        "zoo.tasks.vision:Retrieval",
        summary="a score for how well words and picture match, for ranking",
    ),
    TaskSpec(
        "grounding", _REGIONS, "zoo.tasks.vision:Grounding", summary="the region that an expression means (RefCOCO)"
    ),
    TaskSpec(
        "region-to-phrase",
        _WORDS | _REGIONS,
        "zoo.tasks.vision:RegionToPhrase",
        heads=("region_to_phrase",),
        summary="the regions that phrases mean",
    ),
    TaskSpec(
        "multi-task",
        _WORDS | _REGIONS | _FUSED,
        "zoo.tasks.multi_task:MultiTask",
        heads=("masked_lm", "masked_region", "image_text_matching"),
        options={"num_answers": 3129, "num_gqa_answers": 1533, "only": None, **_HEAD},
        summary="every head of a 12-in-1 checkpoint over one pass",
    ),
)
TASKS |= {name: spec for name, spec in VISION.items() if name not in TASKS}

TASKS["entity-typing"] = TaskSpec(
    "entity-typing",
    _POOLED | {"entities"},
    "zoo.tasks.knowledge:EntityTyping",
    options={"num_labels": 2},
    summary="all the types of a marked mention",
)
TASKS["entity-linking"] = TaskSpec(
    "entity-linking",
    frozenset({"mentions"}),
    "zoo.tasks.knowledge:EntityLinking",
    summary="which entity each candidate span means, if any",
)
PRETRAINING: dict[str, TaskSpec] = {  # by the head, or what else is offered, that asks for a pre-training of its own
    "span_boundary": TaskSpec(
        "pretraining",
        _TEXT,
        "zoo.tasks.knowledge:SpanPretraining",
        heads=("masked_lm", "span_boundary"),
        options={"span_loss_weight": 1.0},
        summary="masked spans, from their own places and from their boundaries",
        may_read=_POOLED,
    ),
    "masked_entity": TaskSpec(
        "pretraining",
        _TEXT | _POOLED,
        "zoo.tasks.knowledge:EntityPretraining",
        heads=("masked_lm", "next_sentence", "masked_entity"),
        summary="masked words, next sentence, and which entity a mention means",
    ),
    "mentions": TaskSpec(
        "pretraining",
        _TEXT | _POOLED | {"mentions"},
        "zoo.tasks.knowledge:LinkedPretraining",
        heads=("masked_lm", "next_sentence"),
        summary="masked words, next sentence, and the linking of mentions",
    ),
}


def task_spec(name: str) -> TaskSpec:
    """The task of that name; an unknown name is an UnknownNameError with the three closest."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def spec_for(name: str, offers: frozenset[str]) -> TaskSpec:
    """The task of that name as it is for a model with these ``offers``."""
    spec = task_spec(name)
    if name == "pretraining":
        for head, own in PRETRAINING.items():
            if head in offers:
                return own
    return VISION[name] if "words" in offers and name in VISION else spec


def offered(inputs: Collection[str], pooler: bool, heads: Iterable[str]) -> frozenset[str]:
    """What a model offers to tasks, from what it reads, whether it pools, and its pre-training
    heads.
    """
    if "decoder_input_ids" in inputs:
        return frozenset({"source and target", *heads})
    if "visual_features" in inputs:
        return frozenset({"words", "regions", "fused", *heads})
    entities = {"entity_embeds": ("entities",), "entity_candidates": ("entities", "mentions")}
    known = next((words for name, words in entities.items() if name in inputs), ())
    return frozenset({"text", *(("pooled",) if pooler else ()), *known, *heads})


def fitting(offers: frozenset[str]) -> list[str]:
    """The names of the tasks that fit."""
    return [name for name in TASKS if not spec_for(name, offers).missing(offers)]


def require_fit(task: str, offers: frozenset[str], model: str) -> TaskSpec:
    """The task's spec, or a TaskError that says what the model lacks and which tasks fit it."""
    spec = spec_for(task, offers)
    if lacks := spec.missing(offers):
        raise TaskError(
            f"{task!r} does not fit {model}: it lacks {', '.join(lacks)}; tasks that fit: {', '.join(fitting(offers))}"
        )
    return spec
