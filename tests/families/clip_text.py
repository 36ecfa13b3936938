"""CLIP's text tower: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.families import clip
from tests.strategies import Batch
from zoo.models.clip_towers import ClipTextConfig

LAYOUT = "hf-clip-text"


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ClipTextConfig:
    fields = {**clip.text_fields(draw), "projection_size": draw(st.sampled_from([None, 3])), "dropout": 0.3}
    return ClipTextConfig(**fields | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    options.pop("embeds", None)
    return Batch(clip.text_inputs(draw, config, **options))
