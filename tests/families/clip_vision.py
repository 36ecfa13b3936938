"""CLIP's image tower: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.families import clip
from tests.strategies import Batch
from zoo.models.clip_towers import ClipVisionConfig

LAYOUT = "hf-clip-vision"
TASKS = ("image-classification",)  # those that contrast two views have tests of their own


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ClipVisionConfig:
    fields = {**clip.tower_fields(draw), **clip.picture_fields(draw), "dropout": 0.3}
    return ClipVisionConfig(**fields | {"projection_size": draw(st.sampled_from([None, 3]))} | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    pixels = clip.pictures(draw(st.integers(1, 3)), config.image_size, draw(st.integers(0, 99)))
    return Batch({"pixel_values": pixels})


SMALL = {"image_size": 6, "patch_size": 3}


def small_batch() -> Batch:
    return Batch({"pixel_values": clip.pictures(4, 6, 0)})


def states(output: Any) -> dict[str, Any]:
    return {"image": output.last_hidden_state}


def labels(task: str, model: Any, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"labels": torch.randint(min(model.options["num_labels"], 100), (batch.rows,), generator=generator)}
