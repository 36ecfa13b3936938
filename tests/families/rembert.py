"""RemBERT: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.rembert import RemBertConfig

LAYOUT = "hf-rembert"
CLASSES = {
    None: "RemBertModel",
    "masked-lm": "RemBertForMaskedLM",
    "sequence-classification": "RemBertForSequenceClassification",
    "token-classification": "RemBertForTokenClassification",
    "question-answering": "RemBertForQuestionAnswering",
    "multiple-choice": "RemBertForMultipleChoice",
}


def tiny_config(draw: st.DrawFn) -> RemBertConfig:
    fields = {name: value for name, value in encoder_fields(draw).items() if name != "tie_word_embeddings"} | {
        "classifier_dropout": 0.2
    }
    return RemBertConfig(
        **fields, embedding_size=draw(st.integers(1, 6)), output_embedding_size=draw(st.integers(1, 9))
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(text_batches(config, **options))


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
