"""VisualBERT: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.visualbert import VisualBertConfig

LAYOUT = "hf-visualbert"
CLASSES = {
    None: "VisualBertModel",
    "pretraining": "VisualBertForPreTraining",
    "multiple-choice": "VisualBertForMultipleChoice",
    "visual-question-answering": "VisualBertForQuestionAnswering",
    "visual-reasoning": "VisualBertForVisualReasoning",
    "region-to-phrase": "VisualBertForRegionToPhraseAlignment",
}


def tiny_config(draw: st.DrawFn, **fixed: Any) -> VisualBertConfig:
    fields = encoder_fields(draw)
    return VisualBertConfig(
        **fields
        | {
            "visual_size": draw(st.integers(1, 5)),
            "visual_segment": draw(st.integers(0, fields["num_segments"] - 1)),
            "bypass": draw(st.booleans()),
            **fixed,
        }
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(picture_batches(config, boxes=False, segments=True, alignment=True, **options))


SMALL = {"visual_size": 5}


def small_batch() -> Batch:
    return ragged(boxes=0)


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}


def theirs(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
