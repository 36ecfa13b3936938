"""LXMERT: its small configs, its inputs, its labels, and how transformers builds the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.lxmert import LxmertConfig

LAYOUT = "hf-lxmert"
CLASSES = {
    None: "LxmertModel",
    "pretraining": "LxmertForPreTraining",
    "visual-question-answering": "LxmertForQuestionAnswering",
}


def tiny_config(draw: st.DrawFn, **fixed: Any) -> LxmertConfig:
    fields = encoder_fields(draw)
    for name in ("pooler", "classifier_dropout"):
        fields.pop(name)
    return LxmertConfig(
        **fields
        | {
            "image_num_layers": draw(st.integers(1, 3)),
            "cross_num_layers": draw(st.integers(1, 3)),
            "visual_size": draw(st.integers(1, 5)),
            "box_size": draw(st.sampled_from([4, 4, 5, 7])),
            "fixed_first_rows": draw(st.booleans()),
            "num_objects": draw(st.integers(1, 5)),
            "num_attributes": draw(st.integers(1, 5)),
            "num_answers": draw(st.integers(1, 5)),
            "predict_regions": draw(st.integers(0, 5)) > 0,
            "predict_objects": draw(st.integers(0, 5)) > 0,
            "predict_attributes": draw(st.integers(0, 5)) > 0,
            "predict_features": True,
            "predict_answers": draw(st.integers(0, 5)) > 0,
            **fixed,
        }
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(picture_batches(config, boxes=True, segments=False, alignment=False, **options))


SMALL = {
    "visual_size": 5,
    "image_num_layers": 1,
    "cross_num_layers": 2,
    "num_objects": 6,
    "num_attributes": 3,
    "num_answers": 7,
    "fixed_first_rows": False,  # so that every parameter is reached by the gradient
}


def small_batch() -> Batch:
    return ragged(boxes=4)


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}


def region_labels(config: LxmertConfig, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """Labels of what the detector said, with its confidence at some regions, zero at others."""
    generator = torch.Generator().manual_seed(seed)
    real = batch.real("visual_mask")
    labels: dict[str, Tensor] = {}
    for name, count in (("object", config.num_objects), ("attribute", config.num_attributes)):
        labels[f"{name}_labels"] = torch.randint(count, real.shape, generator=generator)
        kept = torch.rand(real.shape, generator=generator, dtype=torch.float64)
        labels[f"{name}_confidence"] = kept * (kept > 0.3) * real
    labels["region_labels"] = ((torch.rand(real.shape, generator=generator) < 0.6) & real).long()
    labels["region_targets"] = torch.randn(*real.shape, config.visual_size, generator=generator, dtype=torch.float64)
    return labels


def pretraining_labels(model: Any, batch: Batch) -> dict[str, Tensor]:
    """Labels for every term that a model of this config trains, those of words and of matching excepted."""
    names = {name for term in model.terms for name in (term.labels, *term.loss_takes)}
    answers = torch.arange(batch.rows) % model.config.num_answers
    answers[1:2] = -100  # a caption, not a question
    found = {**region_labels(model.config, batch), "answer_labels": answers}
    return {name: value for name, value in found.items() if name in names}


def theirs(config: Any, task: str | None, options: Mapping[str, Any]) -> Any:
    from tests.oracle import hugging_face

    return hugging_face(LAYOUT, CLASSES[task], config, options)
