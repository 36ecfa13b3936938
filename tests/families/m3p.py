"""M3P: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.m3p import M3PConfig

SMALL = {
    "visual_size": 5,
    "region_target_size": 4,
    "refine_layers": 1,
    "refine_image": True,
    "max_positions": 20,
    "pad_token_id": 0,
    "embedding_range": 0.05,
}


def tiny_config(draw: st.DrawFn, **fixed: Any) -> M3PConfig:
    drawn = encoder_fields(draw)
    fields = {name: value for name, value in drawn.items() if name in M3PConfig.field_names()}
    fields["max_positions"] = draw(st.integers(26, 30))
    own = {
        "activation": draw(st.sampled_from(["gelu", "relu"])),
        "num_languages": draw(st.integers(1, 3)),
        "visual_size": draw(st.integers(1, 5)),
        "region_target_size": 4,
        "refine_layers": draw(st.integers(1, 2)),
        "refine_image": draw(st.booleans()),
        "sinusoidal_positions": draw(st.booleans()),
        "norm_eps": 1e-12,
        "pad_token_id": 0,
        "embedding_range": 0.05,
    }
    return M3PConfig(**fields | own | fixed)


class _Segmentless:
    """A config as `picture_batches` reads it, with one segment."""

    num_segments = 1

    def __init__(self, config: Any) -> None:
        self.config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(picture_batches(_Segmentless(config), boxes=True, segments=False, alignment=False, **options))
    batch.inputs.pop("token_type_ids", None)
    return batch


def small_batch() -> Batch:
    batch = ragged(boxes=5)
    generator = torch.Generator().manual_seed(6)
    return batch.with_(visual_distributions=torch.rand(4, 3, 4, generator=generator, dtype=torch.float64))


def pretraining_labels(model: Any, batch: Batch) -> dict[str, Tensor]:
    return {"translation_labels": torch.tensor([1, 0, 1, 1])[: len(batch.inputs["input_ids"])]}


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}
