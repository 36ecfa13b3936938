"""DistilBERT: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.distilbert import DistilBertConfig

LAYOUT = "hf-distilbert"
SMALL = {"norm_eps": 1e-12}  # which transformers has fixed
CLASSES = {
    None: "DistilBertModel",
    "masked-lm": "DistilBertForMaskedLM",
    "sequence-classification": "DistilBertForSequenceClassification",
    "token-classification": "DistilBertForTokenClassification",
    "question-answering": "DistilBertForQuestionAnswering",
    "multiple-choice": "DistilBertForMultipleChoice",
}


class _OneSegment:
    """A config as `text_batches` reads it."""

    num_segments = 1

    def __init__(self, config: DistilBertConfig) -> None:
        self.hidden_size, self.vocab_size, self.max_positions = (
            config.hidden_size,
            config.vocab_size,
            config.max_positions,
        )


def tiny_config(draw: st.DrawFn) -> DistilBertConfig:
    """Without a pooler, which only a task brings."""
    fields = encoder_fields(draw)
    del fields["num_segments"], fields["pooler"]
    return DistilBertConfig(**fields | {"norm_eps": 1e-12})


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(text_batches(_OneSegment(config), **options))
    return replace(batch, inputs={name: x for name, x in batch.inputs.items() if name != "token_type_ids"})


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
