"""EfficientNet: its small configs and its pictures."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import ACTIVATIONS, Batch
from zoo.models.efficientnet import EfficientNetConfig

TASKS = ("image-classification",)  # those that contrast two views have tests of their own


def tiny_config(draw: st.DrawFn, **fixed: Any) -> EfficientNetConfig:
    stages = draw(st.integers(1, 3))

    def each(values: Any) -> tuple[int, ...]:
        return tuple(draw(st.lists(values, min_size=stages, max_size=stages)))

    fields = {
        "num_channels": draw(st.integers(1, 4)),
        "width_multiplier": draw(st.sampled_from([0.1, 0.25, 0.3])),
        "depth_multiplier": draw(st.sampled_from([0.3, 1.0, 1.4])),
        "channel_multiple": draw(st.sampled_from([1, 2, 3, 4])),
        "stem_channels": draw(st.sampled_from([8, 20])),
        "stage_channels": each(st.integers(8, 24)),
        "stage_blocks": each(st.integers(1, 2)),
        "stage_kernels": each(st.sampled_from([3, 5])),
        "stage_strides": each(st.integers(1, 2)),
        "stage_expansions": each(st.integers(1, 3)),
        "top_size": draw(st.sampled_from([0, 1, 5])),
        "fixed_ends": draw(st.booleans()),
        "squeeze_ratio": draw(st.sampled_from([0.0, 0.25, 0.6])),
        "activation": draw(st.sampled_from([*ACTIVATIONS, "relu6"])),
        "padding": draw(st.sampled_from(["same", "fixed"])),
        "first_residual": draw(st.booleans()),
        "norm_eps": draw(st.sampled_from([1e-3, 1e-5, 1e-2])),
    }
    if fields["padding"] == "fixed" and "padding" not in fixed:
        fields["symmetric_blocks"] = tuple(draw(st.lists(st.integers(0, 5), max_size=2, unique=True)))
    return EfficientNetConfig(**fields | fixed)


def pictures(draw: st.DrawFn, config: Any) -> Tensor:
    """Pictures of some size, odd ones too."""
    shape = draw(st.integers(1, 3)), config.num_channels, draw(st.integers(16, 23)), draw(st.integers(16, 23))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return Batch({"pixel_values": pictures(draw, config)})


SMALL = {
    "stem_channels": 8,
    "stage_channels": (8, 12),
    "stage_blocks": (1, 2),
    "stage_kernels": (3, 5),
    "stage_strides": (1, 2),
    "stage_expansions": (1, 2),
    "width_multiplier": 0.5,
    "channel_multiple": 4,
    "top_size": 10,
    "image_size": 14,
    "path_dropout": 0.0,
}


def small_batch() -> Batch:
    pixels = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Batch({"pixel_values": pixels})


def states(output: Any) -> dict[str, Tensor]:
    return {"pixel_values": output.last_hidden_state}


def labels(task: str, model: Any, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"labels": torch.randint(model.options["num_labels"], (batch.rows,), generator=generator)}
