"""ELECTRA: its small configs, its inputs, and how transformers builds the same. Its replaced-token
head is held in tests/tasks/test_electra.py: transformers computes that loss in single precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.electra import ElectraConfig

LAYOUT = "hf-electra"
CLASSES = {
    None: "ElectraModel",
    "masked-lm": "ElectraForMaskedLM",
    "sequence-classification": "ElectraForSequenceClassification",
    "token-classification": "ElectraForTokenClassification",
    "question-answering": "ElectraForQuestionAnswering",
    "multiple-choice": "ElectraForMultipleChoice",
}


def tiny_config(draw: st.DrawFn) -> ElectraConfig:
    """Without the pooled vector, which transformers' encoder does not hand on."""
    fields = encoder_fields(draw) | {"pooler": False}
    same = draw(st.booleans())
    return ElectraConfig(**fields, embedding_size=fields["hidden_size"] if same else draw(st.integers(1, 9)))


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(text_batches(config, **options))


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
