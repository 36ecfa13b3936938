"""What each task learns from rows of a table, one class a task."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from zoo.errors import TaskError, unknown
from zoo.registry.tasks import TASKS
from zoo.training.supervision.base import Supervision as Supervision

SUPERVISIONS: Mapping[str, str] = {
    "sequence-classification": "classification:TextClassification",
    "token-classification": "tagging:Tagging",
    "question-answering": "answers:Answers",
    "multiple-choice": "choices:Choices",
    "masked-lm": "words:MaskedWords",
    "next-sentence": "pairs:NextSentence",
    "sentence-order": "pairs:SentenceOrder",
    "sentence-embedding": "embedding:Similarity",
    "cross-lingual-contrast": "embedding:Translations",
    "conditional-generation": "words:Generation",
    "causal-lm": "words:NextWords",
}
PICTURED: Mapping[str, str] = {
    "sequence-classification": "pictures:Pictured",
    "masked-lm": "captions:Captions",
    "image-text-retrieval": "rewritten:Rewritten",
    "visual-entailment": "pictures:Pictured",
    "visual-reasoning": "pictures:PairsOfPictures",
    "visual-question-answering": "pictures:Questions",
}
"""By task, the module and the class in this folder: over texts, and over pictures with their texts."""


def supervision_of(task: str, pictured: bool = False) -> type[Supervision]:
    """The class that reads rows for a task; ``pictured``: of a model that reads regions."""
    known, other = (PICTURED, SUPERVISIONS) if pictured else (SUPERVISIONS, PICTURED)
    if task and task not in TASKS:
        raise unknown("task", task, [*SUPERVISIONS, *PICTURED])
    if task in other and task not in known:
        hint = "leave the regions out" if pictured else "give the dump that its pictures stand in (regions, --regions)"
        raise TaskError(f"{task} learns from {'texts alone' if pictured else 'pictures'}; {hint}")
    if task not in known:
        raise TaskError(
            f"{task or 'a model without a task'} learns from batches, not from rows of a table; tasks that do: "
            f"{', '.join(known)}"
        )
    module, _, name = known[task].partition(":")
    found: type[Supervision] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
