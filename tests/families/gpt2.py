"""GPT-2: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.gpt2 import Gpt2Config

LAYOUT = "hf-gpt2"
CLASSES = {
    None: "GPT2Model",
    "causal-lm": "GPT2LMHeadModel",
    "token-classification": "GPT2ForTokenClassification",
    "question-answering": "GPT2ForQuestionAnswering",
}
SMALL = {"embedding_dropout": 0.0}


def tiny_config(draw: st.DrawFn) -> Gpt2Config:
    fields = encoder_fields(draw) | {"pooler": False, "classifier_dropout": 0.2}
    if draw(st.booleans()):  # as published
        fields["intermediate_size"] = 4 * fields["hidden_size"]
    own = {name: value for name, value in fields.items() if name in Gpt2Config.field_names()}
    return Gpt2Config(**own, embedding_dropout=0.3, end_token_id=None)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(text_batches(_OneSegment(config), **options))
    return Batch({name: x for name, x in batch.inputs.items() if name != "token_type_ids"})


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face, in_float64

    return in_float64(hugging_face(LAYOUT, CLASSES[task], config, options))


class _OneSegment:
    """A config as `text_batches` reads it, with one segment."""

    num_segments = 1

    def __init__(self, config: Any) -> None:
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.max_positions = config.max_positions
