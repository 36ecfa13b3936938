"""ALBERT: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.albert import AlbertConfig

LAYOUT = "hf-albert"
DEFAULT = "albert-xxlarge"  # the variant whose config transformers' class has of itself
CLASSES = {
    None: "AlbertModel",
    "masked-lm": "AlbertForMaskedLM",
    "pretraining": "AlbertForPreTraining",
    "sequence-classification": "AlbertForSequenceClassification",
    "token-classification": "AlbertForTokenClassification",
    "question-answering": "AlbertForQuestionAnswering",
    "multiple-choice": "AlbertForMultipleChoice",
}
WRONG_GROUPS = (
    (18, 14),
    (27, 21),
)  # (layers, groups) for which transformers 5.23 rounds a float down and runs the wrong group


def tiny_config(draw: st.DrawFn) -> AlbertConfig:
    fields = encoder_fields(draw)
    fields["num_layers"] = draw(st.integers(1, 5))
    return AlbertConfig(
        **fields,
        embedding_size=draw(st.integers(1, 6)),
        num_groups=draw(st.integers(1, fields["num_layers"])),
        num_inner_blocks=draw(st.integers(1, 2)),
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(text_batches(config, **options))


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
