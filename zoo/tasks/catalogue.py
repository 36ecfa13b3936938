"""Which tasks there are, what each reads, and so which fit a model. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zoo.errors import TaskError, unknown
from zoo.registry import Variant


@dataclass(frozen=True)
class TaskSpec:
    """A task: what it ``reads`` of a model ("text": token states, "pooled": the pooled vector), the pre-training ``heads`` it needs of the
    family's, ``one_of`` which it needs at least one, the options it takes with their defaults, and the class that builds it.
    """

    name: str
    reads: frozenset[str]
    class_path: str
    heads: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""

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

TASKS: dict[str, TaskSpec] = _specs(
    TaskSpec("masked-lm", _TEXT, "zoo.tasks.text:MaskedLM", heads=("masked_lm",), summary="the words behind the masks"),
    TaskSpec(
        "replaced-token-detection",
        _TEXT,
        "zoo.tasks.electra:ReplacedTokenDetection",
        heads=("replaced_token",),
        summary="which tokens are not the original ones",
    ),
    TaskSpec("next-sentence", _POOLED, "zoo.tasks.text:NextSentence", heads=("next_sentence",), summary="does B follow A (0 = it does)"),
    TaskSpec("sentence-order", _POOLED, "zoo.tasks.text:SentenceOrder", heads=("sentence_order",), summary="were A and B swapped (0 = no)"),
    TaskSpec(
        "pretraining",
        _TEXT | _POOLED,
        "zoo.tasks.text:Pretraining",
        heads=("masked_lm",),
        one_of=("next_sentence", "sentence_order"),
        summary="masked words and the family's sentence objective together",
    ),
    TaskSpec(
        "sequence-classification", _POOLED, "zoo.tasks.text:SequenceClassification", options=_LABELS, summary="a label for a text or pair"
    ),
    TaskSpec(
        "token-classification", _TEXT, "zoo.tasks.text:TokenClassification", options={"num_labels": 2}, summary="a label for each token"
    ),
    TaskSpec("question-answering", _TEXT, "zoo.tasks.text:QuestionAnswering", summary="the span that answers a question"),
    TaskSpec("multiple-choice", _POOLED, "zoo.tasks.text:MultipleChoice", summary="the right one of several texts"),
    TaskSpec(
        "sentence-embedding",
        _TEXT,
        "zoo.tasks.text:SentenceEmbedding",
        options={"pooling": "mean", "normalize": True},
        summary="one vector for a text, for search and similarity",
    ),
)


def task_spec(name: str) -> TaskSpec:
    """The task of that name; an unknown name is an UnknownNameError with the three closest."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def offers_of(model: Variant) -> frozenset[str]:
    """What a registered model offers to tasks."""
    return frozenset({"text", *(("pooled",) if model.pooler else ()), *model.heads})


def fits(task: str, model: Variant) -> bool:
    """Whether the task fits the model."""
    return not task_spec(task).missing(offers_of(model))


def fitting(offers: frozenset[str]) -> list[str]:
    """The names of the tasks that fit."""
    return [name for name, spec in TASKS.items() if not spec.missing(offers)]


def require_fit(task: str, offers: frozenset[str], model: str) -> TaskSpec:
    """The task's spec, or a TaskError that says what the model lacks and which tasks fit it."""
    spec = task_spec(task)
    if lacks := spec.missing(offers):
        raise TaskError(f"{task!r} does not fit {model}: it lacks {', '.join(lacks)}; tasks that fit: {', '.join(fitting(offers))}")
    return spec
