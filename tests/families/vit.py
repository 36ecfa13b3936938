"""ViT: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.families import clip
from tests.families.clip_vision import SMALL, TASKS, inputs, labels, small_batch, states
from zoo.models.vit import ViTConfig

__all__ = ["LAYOUT", "SMALL", "TASKS", "inputs", "labels", "small_batch", "states", "tiny_config"]

LAYOUT = "hf-vit"


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ViTConfig:
    fields = {**clip.tower_fields(draw), **clip.picture_fields(draw), "dropout": 0.3}
    del fields["layer_scale"]
    fields["norm_eps"] = draw(st.sampled_from([1e-6, 1e-12, 1e-2]))  # timm's is the first
    return ViTConfig(**fields | {"pooler_size": draw(st.sampled_from([None, 3]))} | fixed)
