"""Batches of texts and the regions of their pictures, drawn and fixed."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tests.strategies import MASKS, TEXT_INPUTS, Batch, attention_masks, text_batches

VISUAL_INPUTS = ("visual_features", "visual_boxes", "visual_token_type_ids", "image_text_alignment")
STREAMS = {"attention_mask": TEXT_INPUTS, "visual_mask": VISUAL_INPUTS}


@st.composite
def picture_batches(
    draw: st.DrawFn,
    config: Any,
    *,
    boxes: bool,
    segments: bool,
    alignment: bool,
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
    if alignment and draw(st.booleans()):
        inputs["image_text_alignment"] = torch.randint(-1, length, (batch, regions, 2), generator=generator)
    if getattr(config, "num_tasks", 0):
        inputs["task_type_ids"] = torch.randint(config.num_tasks, (batch,), generator=generator)
    return Batch(inputs, STREAMS)


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
    return Batch(inputs, STREAMS)
