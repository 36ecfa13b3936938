"""ALIGN: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.families import efficientnet
from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.align import AlignConfig

__all__ = ["SMALL", "TASKS", "inputs", "small_batch", "states", "tiny_config"]


TASKS = ()  # those of two towers have tests of their own, in tests/models/test_align.py


def tiny_config(draw: st.DrawFn, **fixed: Any) -> AlignConfig:
    names = AlignConfig.field_names()
    text = encoder_fields(draw)
    image = efficientnet.tiny_config(draw).to_dict()
    renamed = {"image_activation": image.pop("activation"), "image_norm_eps": image.pop("norm_eps")}
    fields = {**{name: value for name, value in (image | text).items() if name in names}, **renamed}
    return AlignConfig(**fields | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(text_batches(config, **options))
    pixels = efficientnet.pictures(draw, config)
    return batch.with_(pixel_values=pixels[:1].expand(batch.rows, -1, -1, -1).clone())


SMALL = {name: value for name, value in efficientnet.SMALL.items() if name != "top_size"}


def small_batch() -> Batch:
    ids = torch.randint(1, 19, (4, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    types = torch.arange(24).reshape(4, 6) % 5 % 2
    pixels = efficientnet.small_batch().inputs["pixel_values"]
    return Batch({"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "pixel_values": pixels})


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state}
