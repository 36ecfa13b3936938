"""ImageBERT: Unicoder-VL's configs and inputs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.families import unicoder_vl
from tests.families.unicoder_vl import SMALL, inputs, small_batch, states
from zoo.models.imagebert import ImageBertConfig

__all__ = ["SMALL", "inputs", "small_batch", "states", "tiny_config"]


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ImageBertConfig:
    return ImageBertConfig(**unicoder_vl.tiny_config(draw, **fixed).to_dict())
