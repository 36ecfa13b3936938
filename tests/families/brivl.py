"""BriVL: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.families import align, efficientnet
from tests.strategies import Batch
from zoo.models.brivl import BrivlConfig

TASKS = ()  # those of two towers have tests of their own, in tests/models/test_brivl.py


def tiny_config(draw: st.DrawFn, **fixed: Any) -> BrivlConfig:
    shared = align.tiny_config(draw).to_dict()
    strides = [1] * len(shared["stage_strides"])  # a grid of one cell has no boxes
    heads = draw(st.integers(1, 2))
    own = {
        "stage_strides": tuple(strides),
        "text_added_heads": shared["num_heads"],
        "text_added_layers": draw(st.integers(1, 2)),
        "top_size": heads * draw(st.integers(3, 4)),
        "image_added_heads": heads,
        "image_added_layers": draw(st.integers(1, 2)),
        "added_intermediate_size": draw(st.integers(1, 9)),
        "box_samples": draw(st.integers(1, 4)),
        "box_grid": draw(st.integers(1, 3)),
        "temperature": draw(st.sampled_from([0.07, 1.0])),
    }
    return BrivlConfig(**shared | own | fixed)


def boxes(rows: int, width: int, height: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Some boxes in each picture, and the whole picture last; one picture has a box less."""
    low = torch.rand(rows, 3, 2, generator=generator, dtype=torch.float64) * 0.7
    high = low + (1 - low) * torch.rand(rows, 3, 2, generator=generator, dtype=torch.float64)
    found = torch.cat([low, high], 2) * torch.tensor([width, height, width, height])
    found[:, 2] = torch.tensor([0.0, 0.0, width, height], dtype=torch.float64)
    mask = torch.ones(rows, 3, dtype=torch.long)
    mask[0, 1] = 0
    return {"visual_boxes": found, "visual_mask": mask}


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = align.inputs(draw, config, **options)
    pixels = batch.inputs["pixel_values"]
    if not draw(st.booleans()):
        return batch
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return batch.with_(**boxes(len(pixels), pixels.shape[3], pixels.shape[2], generator))


SMALL = {
    **efficientnet.SMALL,
    "stage_strides": (1, 1),
    "text_added_layers": 1,
    "image_added_layers": 1,
    "image_added_heads": 2,
    "added_intermediate_size": 6,
}


def small_batch() -> Batch:
    batch = align.small_batch()
    return batch.with_(**boxes(4, 14, 14, torch.Generator().manual_seed(6)))


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state}
