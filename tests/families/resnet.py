"""ResNet: its small configs and its pictures."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tests.families.efficientnet import TASKS, labels, pictures, states
from tests.strategies import ACTIVATIONS, Batch
from zoo.models.resnet import ResNetConfig

__all__ = ["TASKS", "inputs", "labels", "small_batch", "states", "tiny_config"]


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ResNetConfig:
    stages = draw(st.integers(1, 3))

    def each(most: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(1, most), min_size=stages, max_size=stages)))

    fields = {
        "num_channels": draw(st.integers(1, 4)),
        "width_multiplier": draw(st.integers(1, 2)),
        "stem_channels": draw(st.integers(2, 6)),
        "stage_channels": each(4),
        "stage_blocks": each(2),
        "bottleneck": draw(st.booleans()),
        "pool_padding": draw(st.sampled_from(["even", "same"])),
        "activation": draw(st.sampled_from([*ACTIVATIONS, "relu6"])),
        "norm_eps": draw(st.sampled_from([1e-3, 1e-5, 1e-2])),
    }
    if fields["bottleneck"]:
        fields["selective_ratio"] = draw(st.sampled_from([0.0, 0.0625]))
    return ResNetConfig(**fields | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return Batch({"pixel_values": pictures(draw, config)})


SMALL = {"stem_channels": 4, "stage_channels": (2, 3), "stage_blocks": (1, 2), "image_size": 14}


def small_batch() -> Batch:
    pixels = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Batch({"pixel_values": pixels})
