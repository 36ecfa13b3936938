"""CLIP with a ResNet: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from tests.families import clip
from tests.strategies import Batch
from zoo.models.clip_resnet import ClipResNetConfig

TASKS = clip.TASKS


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ClipResNetConfig:
    own = {
        "image_size": draw(st.sampled_from([32, 64])),
        "image_stem_channels": 2,
        "image_stage_blocks": draw(st.sampled_from([(1, 1, 1, 1), (1, 2, 1, 1)])),
        "image_num_heads": draw(st.sampled_from([1, 4])),
        "projection_size": draw(st.integers(1, 6)),
        "logit_bias": draw(st.booleans()),
        "dropout": 0.3,
    }
    return ClipResNetConfig(**clip.text_fields(draw) | own | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return clip.inputs(draw, config, **options)


SMALL = {
    "eos_token_id": None,
    "image_size": 32,
    "image_stem_channels": 2,
    "image_stage_blocks": (1, 1, 1, 1),
    "image_num_heads": 2,
    "projection_size": 5,
}


def small_batch() -> Batch:
    return clip.small_batch().with_(pixel_values=clip.pictures(4, 32, 0))


def states(output: Any) -> dict[str, Tensor]:
    return clip.states(output)
