"""Unicoder-VL: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.unicoder_vl import UnicoderVLConfig


def tiny_config(draw: st.DrawFn, **fixed: Any) -> UnicoderVLConfig:
    fields = encoder_fields(draw)
    fields["num_segments"] = draw(st.integers(2, 4))
    return UnicoderVLConfig(**fields | {"visual_size": draw(st.integers(1, 5)), "region_target_size": 4} | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(picture_batches(config, boxes=True, segments=True, alignment=False, **options))


SMALL = {"visual_size": 5, "region_target_size": 4}


def small_batch() -> Batch:
    return ragged(boxes=True)


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}
