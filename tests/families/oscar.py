"""Oscar: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.oscar import OscarConfig

SMALL = {"visual_size": 5, "image_norm": True, "num_contrast_classes": 3, "tag_position": 6}


def tiny_config(draw: st.DrawFn, **fixed: Any) -> OscarConfig:
    fields = encoder_fields(draw)
    fields["num_segments"] = draw(st.integers(2, 3))
    own = {
        "visual_size": draw(st.integers(1, 5)),
        "image_norm": draw(st.booleans()),
        "num_contrast_classes": draw(st.integers(2, 3)),
        "classifier": draw(st.sampled_from(["linear", "mlp"])),
        "classifier_scale": draw(st.integers(1, 3)),
        "tag_position": draw(st.integers(1, 6)),
    }
    return OscarConfig(**fields | own | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(picture_batches(config, boxes=False, segments=False, alignment=False, **options))
    if draw(st.booleans()):
        ids = batch.inputs["input_ids"]
        seed = draw(st.integers(0, 99))
        batch = batch.with_(ranks=torch.randint(4, ids.shape, generator=torch.Generator().manual_seed(seed)))
    return batch


def small_batch() -> Batch:
    return ragged(boxes=0).with_(ranks=torch.tensor([[1, 2, 3, 4, 0, 0]]).expand(4, -1))


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}
