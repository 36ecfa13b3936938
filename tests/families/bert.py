"""BERT: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.bert import BertConfig

LAYOUT = "hf-bert"
DEFAULT = "bert-base"  # the variant whose config transformers' class has of itself
CLASSES = {
    None: "BertModel",
    "masked-lm": "BertForMaskedLM",
    "pretraining": "BertForPreTraining",
    "next-sentence": "BertForNextSentencePrediction",
    "sequence-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
    "multiple-choice": "BertForMultipleChoice",
}


def tiny_config(draw: st.DrawFn) -> BertConfig:
    return BertConfig(**encoder_fields(draw))


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(text_batches(config, **options))


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
