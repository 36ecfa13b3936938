"""UNIMO: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.unimo import UnimoConfig

SMALL = {"visual_size": 5, "max_positions": 12, "pad_token_id": 1}


def tiny_config(draw: st.DrawFn) -> UnimoConfig:
    fields = {name: value for name, value in encoder_fields(draw).items() if name != "num_segments"}
    if draw(st.booleans()):  # as published
        fields |= {"intermediate_size": 4 * fields["hidden_size"], "activation": "gelu"}
    fields["max_positions"] += 2
    return UnimoConfig(**fields, visual_size=draw(st.integers(1, 5)), fusion=draw(st.sampled_from(["mul", "sum"])))


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(picture_batches(_OneSegment(config), boxes=True, segments=False, alignment=False, **options))
    given = {name: x for name, x in batch.inputs.items() if name != "token_type_ids"}
    ids = given["input_ids"].masked_fill(given["input_ids"] == config.pad_token_id, 2)
    given |= {"input_ids": ids}
    if draw(st.booleans()):
        given["ranks"] = torch.randint(4, ids.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return Batch(given)


def small_batch() -> Batch:
    batch = ragged(boxes=5)
    ids = batch.inputs["input_ids"]
    ranks = torch.tensor([[0, 0, 1, 2, 3, 4]]).expand(4, -1)
    return batch.with_(input_ids=ids.masked_fill(ids == 1, 2), ranks=ranks)


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}


class _OneSegment:
    """A config as `picture_batches` reads it, with one segment."""

    num_segments = 1

    def __init__(self, config: Any) -> None:
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self.max_positions, self.visual_size, self.box_size = config.longest, config.visual_size, config.box_size
