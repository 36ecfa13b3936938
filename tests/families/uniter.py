"""UNITER: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.uniter import UniterConfig


def tiny_config(draw: st.DrawFn, **fixed: Any) -> UniterConfig:
    fields = encoder_fields(draw)
    fields["num_segments"] = draw(st.integers(2, 4))
    own = {"visual_size": draw(st.integers(1, 5)), "box_size": draw(st.sampled_from([5, 7])), "region_target_size": 4}
    return UniterConfig(**fields | own | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(picture_batches(config, boxes=True, segments=True, alignment=False, masked=True, **options))


SMALL = {"visual_size": 5, "box_size": 5, "region_target_size": 4}


def small_batch() -> Batch:
    return ragged(boxes=True).with_(visual_masked=torch.tensor([[0, 1, 0], [1, 1, 0], [1, 0, 0], [0, 1, 1]]).bool())


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}
