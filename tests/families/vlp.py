"""VLP: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.vlp import VlpConfig

SMALL = {"visual_size": 5, "box_size": 5, "num_regions": 3, "max_positions": 13}


def tiny_config(draw: st.DrawFn) -> VlpConfig:
    fields, regions = encoder_fields(draw), draw(st.integers(1, 5))
    fields["max_positions"] += regions
    own = {"visual_size": draw(st.integers(1, 5)), "box_size": draw(st.integers(1, 9)), "num_regions": regions}
    return VlpConfig(**fields | own)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(picture_batches(config, boxes=True, segments=True, alignment=False, **options))
    if draw(st.booleans()):
        seed = draw(st.integers(0, 99))
        ids = batch.inputs["input_ids"]
        ranks = torch.randint(4, ids.shape, generator=torch.Generator().manual_seed(seed))
        batch = batch.with_(ranks=ranks)
    return batch


def small_batch() -> Batch:
    return ragged(boxes=5).with_(ranks=torch.tensor([[0, 0, 1, 2, 3, 4]]).expand(4, -1))


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}
