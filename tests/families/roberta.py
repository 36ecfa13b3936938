"""RoBERTa: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st
from torch import nn

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.roberta import RobertaConfig

LAYOUT = "hf-roberta"
CLASSES = {
    None: "RobertaModel",
    "masked-lm": "RobertaForMaskedLM",
    "sequence-classification": "RobertaForSequenceClassification",
    "token-classification": "RobertaForTokenClassification",
    "question-answering": "RobertaForQuestionAnswering",
    "multiple-choice": "RobertaForMultipleChoice",
}
SMALL = {
    "pad_token_id": 5,
    "max_positions": 16,
}  # an id that stands in the tests' texts, and room for ten tokens behind it


def tiny_config(draw: st.DrawFn) -> RobertaConfig:
    """Any padding id: where it stands, positions don't count."""
    return RobertaConfig(**encoder_fields(draw) | {"pad_token_id": draw(st.integers(0, 2))})


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    """The table's first rows are for padding: texts are as much shorter, and leave room for one
    more token.
    """
    fields = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "num_segments": config.num_segments}
    return draw(text_batches(SimpleNamespace(**fields, max_positions=config.longest - 1), **options))


def oracle(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return padding_learns(hugging_face(LAYOUT, CLASSES[task], config, options))


def padding_learns(theirs: nn.Module) -> nn.Module:
    """transformers gives the padding id's rows no gradient; ours do get one where a text holds that
    id.
    """
    for part in theirs.modules():
        if isinstance(part, nn.Embedding):
            part.padding_idx = None
    return theirs
