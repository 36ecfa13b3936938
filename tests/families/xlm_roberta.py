"""XLM-R: RoBERTa's class: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.families.roberta import SMALL, inputs, padding_learns, tiny_config

__all__ = ["CLASSES", "LAYOUT", "SMALL", "inputs", "oracle", "tiny_config"]

LAYOUT = "hf-xlm-roberta"
CLASSES = {
    None: "XLMRobertaModel",
    "masked-lm": "XLMRobertaForMaskedLM",
    "sequence-classification": "XLMRobertaForSequenceClassification",
    "token-classification": "XLMRobertaForTokenClassification",
    "question-answering": "XLMRobertaForQuestionAnswering",
    "multiple-choice": "XLMRobertaForMultipleChoice",
}


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return padding_learns(hugging_face(LAYOUT, CLASSES[task], config, options))
