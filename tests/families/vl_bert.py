"""VL-BERT: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import Batch, encoder_fields
from zoo.models.vl_bert import CLASSIFIERS, VlBertConfig

SMALL = {
    "visual_size": 5,
    "box_size": 5,
    "region_size": 8,
    "num_segments": 3,
    "max_positions": 13,
    "region_target_size": 4,
    "classifier_size": 6,
    "matching": True,
    "head_dropout": 0.0,
}


def tiny_config(draw: st.DrawFn, **fixed: Any) -> VlBertConfig:
    fields = encoder_fields(draw)
    del fields["classifier_dropout"]
    offset = draw(st.integers(0, 2))
    fields["num_segments"] = draw(st.integers(3, 4))
    fields["max_positions"] += 2 + offset
    own: dict[str, Any] = {
        "visual_size": draw(st.integers(1, 5)),
        "box_size": draw(st.integers(1, 5)),
        "region_size": draw(st.sampled_from([fields["hidden_size"], 3])),
        "visual_norm": draw(st.booleans()),
        "masked_regions": draw(st.booleans()),
        "matching": draw(st.booleans()) and fields["pooler"],
        "region_target_size": 4,
        "position_offset": offset,
        "classifier": draw(st.sampled_from(CLASSIFIERS)),
        "classifier_size": 6,
        "head_dropout": 0.3,
    }
    own["masked_features"] = own["masked_regions"] and draw(st.booleans())
    own["text_only"] = own["region_size"] == fields["hidden_size"]
    return VlBertConfig(**fields | own | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = draw(
        picture_batches(config, boxes=True, segments=False, alignment=False, masked=config.masked_regions, **options)
    )
    regions = batch.inputs["visual_features"].shape[1]
    if "visual_mask" not in batch.inputs and draw(st.booleans()):
        shape = batch.inputs["input_ids"].shape
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        batch = batch.with_(word_regions=torch.randint(regions, shape, generator=generator))
    return batch


def small_batch() -> Batch:
    masked = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]).bool()
    return ragged(boxes=5).with_(visual_masked=masked)


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}
