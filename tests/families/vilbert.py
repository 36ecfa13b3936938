"""ViLBERT: its small configs and its inputs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from tests.pictures import picture_batches, ragged
from tests.strategies import ACTIVATIONS, Batch, encoder_fields
from zoo.models.vilbert import ViLBertConfig


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ViLBertConfig:
    fields = encoder_fields(draw)
    fields.pop("pooler")
    fields["num_layers"] = draw(st.integers(1, 4))
    layers, heads, co_heads = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    count = draw(st.integers(1, 3))

    def places(most: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.lists(st.integers(0, most), min_size=count, max_size=count))))

    return ViLBertConfig(
        **fields
        | {
            "visual_size": draw(st.integers(1, 5)),
            "image_hidden_size": heads * draw(st.integers(1, 4)),
            "image_num_layers": layers,
            "image_num_heads": heads,
            "image_intermediate_size": draw(st.integers(1, 9)),
            "image_activation": draw(st.sampled_from(ACTIVATIONS)),
            "co_hidden_size": co_heads * draw(st.integers(1, 4)),
            "co_num_heads": co_heads,
            "text_connections": places(fields["num_layers"]),
            "image_connections": places(layers),
            "co_attention": draw(st.integers(0, 5)) > 0,
            "dynamic_attention": draw(st.booleans()),
            "fusion": draw(st.sampled_from(["mul", "sum"])),
            "region_target_size": 4,
            "image_dropout": 0.3,
            "image_attention_dropout": 0.3,
            **fixed,
        }
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(picture_batches(config, boxes=True, segments=False, alignment=False, **options))


SMALL = {
    "visual_size": 5,
    "image_hidden_size": 6,
    "image_num_layers": 2,
    "image_num_heads": 3,
    "image_intermediate_size": 7,
    "co_hidden_size": 4,
    "co_num_heads": 2,
    "text_connections": (0, 1),
    "image_connections": (0, 1),
    "region_target_size": 4,
    "image_dropout": 0.0,
    "image_attention_dropout": 0.0,
}


def small_batch() -> Batch:
    return ragged(boxes=5)


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state, "visual_mask": output.image.last_hidden_state}
