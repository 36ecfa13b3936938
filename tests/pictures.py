"""Batches of texts and the regions of their pictures, drawn and fixed."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import MASKS, Batch, attention_masks, text_batches


@st.composite
def picture_batches(
    draw: st.DrawFn,
    config: Any,
    *,
    boxes: bool,
    segments: bool,
    alignment: bool,
    masked: bool = False,
    kinds: tuple[str, ...] = MASKS,
    least: int = 1,
) -> Batch:
    """A batch of texts and the regions of their pictures."""
    if getattr(config, "num_tasks", 0):  # the task's token comes after the first column, where such texts start
        kinds = tuple(kind for kind in kinds if kind not in ("left", "holes"))
    text = draw(text_batches(config, kinds=kinds, least=least, embeds=False))
    batch, length = text.inputs["input_ids"].shape
    regions = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    inputs = dict(text.inputs)
    inputs["visual_features"] = torch.randn(
        batch, regions, config.visual_size, generator=generator, dtype=torch.float64
    )
    mask = draw(attention_masks(batch, regions, kinds, least))
    if mask is not None:
        inputs["visual_mask"] = mask
    if boxes:
        inputs["visual_boxes"] = torch.rand(batch, regions, config.box_size, generator=generator, dtype=torch.float64)
    if segments and draw(st.booleans()):
        inputs["visual_token_type_ids"] = torch.randint(config.num_segments, (batch, regions), generator=generator)
    if masked and draw(st.booleans()):
        inputs["visual_masked"] = torch.randint(2, (batch, regions), generator=generator)
    if alignment and draw(st.booleans()):
        inputs["image_text_alignment"] = torch.randint(-1, length, (batch, regions, 2), generator=generator)
    if getattr(config, "num_tasks", 0):
        inputs["task_type_ids"] = torch.randint(config.num_tasks, (batch,), generator=generator)
    return Batch(inputs)


def ragged(boxes: bool) -> Batch:
    """Ragged texts and pictures: right padding, holes, full, left padding."""
    generator = torch.Generator().manual_seed(4)
    inputs = {
        "input_ids": torch.randint(1, 19, (4, 6), generator=generator),
        "attention_mask": torch.tensor(
            [[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
        ),
        "visual_features": torch.randn(4, 3, 5, generator=generator, dtype=torch.float64),
        "visual_mask": torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0]]),
    }
    if boxes:
        inputs["visual_boxes"] = torch.rand(4, 3, 5, generator=generator, dtype=torch.float64)
    return Batch(inputs)


def for_task(task: str, batch: Batch) -> dict[str, Tensor]:
    """For multiple choice the rows are the choices of one question; for two pictures neighbors
    share a text.
    """
    if task == "multiple-choice":
        return {name: x[None] for name, x in batch.inputs.items()}
    return dict(batch.inputs)


def reasoning(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    if model.task == "visual-reasoning" and model.options["pairs"]:
        return {name: x.unflatten(0, (-1, 2)) for name, x in given.items()}
    return given


def labels_for(task: str, model: Any, batch: Batch) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    rows, length = batch.inputs["input_ids"].shape
    regions = batch.inputs["visual_features"].shape[1]
    words = torch.randint(19, (rows, length), generator=generator).masked_fill(~batch.real(), -100)
    chosen = torch.where(batch.real("visual_mask"), 1, -1)

    def soft(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    matching = torch.tensor([0, 1, 1, 0])[:rows]
    if task == "masked-lm":
        return {"labels": words}
    if task == "image-text-matching":
        return {"labels": matching}
    if task in ("pretraining", "masked-region"):
        own = {} if task == "masked-region" else {"labels": words, "match_labels": matching}
        if "masked_region" in model.heads:
            own |= {"region_labels": chosen, "region_targets": soft(rows, regions, 4).softmax(-1)}
        if "region_class" in model.heads:
            own |= {"region_labels": chosen, "class_targets": soft(rows, regions, 4).softmax(-1)}
        if "region_feature" in model.heads:
            own |= {"region_labels": chosen, "feature_targets": soft(rows, regions, model.config.visual_size)}
        return own
    if task == "visual-question-answering":
        return {"labels": soft(rows, model.options["num_labels"])}
    if task == "grounding":
        return {"labels": soft(rows, regions)}
    if task == "image-text-retrieval":
        return {"labels": matching}
    if task == "multiple-choice":
        return {"labels": torch.tensor([1])}
    if task == "region-to-phrase":
        return {
            "phrase_positions": torch.zeros(rows, 2, dtype=torch.long),
            "labels": soft(rows, 2, regions).softmax(-1),
        }
    if task == "multi-task":
        return {"labels": soft(rows, 3129), "head": "visual_question_answering"}
    if task == "visual-reasoning" and model.options["pairs"]:
        return {"labels": matching[: rows // 2]}
    return {"labels": matching}
