"""XLM-R XL: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.families import roberta
from tests.families.roberta import SMALL, inputs, padding_learns
from zoo.models.xlm_roberta_xl import XlmRobertaXlConfig

__all__ = ["CLASSES", "LAYOUT", "SMALL", "inputs", "oracle", "tiny_config"]

LAYOUT = "hf-xlm-roberta-xl"
CLASSES = {
    None: "XLMRobertaXLModel",
    "masked-lm": "XLMRobertaXLForMaskedLM",
    "sequence-classification": "XLMRobertaXLForSequenceClassification",
    "token-classification": "XLMRobertaXLForTokenClassification",
    "question-answering": "XLMRobertaXLForQuestionAnswering",
    "multiple-choice": "XLMRobertaXLForMultipleChoice",
}


def tiny_config(draw: st.DrawFn) -> XlmRobertaXlConfig:
    return XlmRobertaXlConfig(**roberta.tiny_config(draw).to_dict())


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return padding_learns(hugging_face(LAYOUT, CLASSES[task], config, options))
