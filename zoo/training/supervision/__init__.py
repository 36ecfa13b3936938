"""What each task learns from rows of a table, one class a task."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from zoo.errors import TaskError
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
    "conditional-generation": "words:Generation",
}
"""By task, the module and the class in this folder."""


def supervision_of(task: str) -> type[Supervision]:
    """The class that reads rows for a task."""
    if task not in SUPERVISIONS:
        raise TaskError(
            f"{task or 'a model without a task'} learns from batches, not from rows of a table; tasks that do: "
            f"{', '.join(SUPERVISIONS)}"
        )
    module, _, name = SUPERVISIONS[task].partition(":")
    found: type[Supervision] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return found
