"""Dual encoders: small pairs of towers of drawn families, and their inputs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.families import albert, bert, clip_vision, efficientnet
from tests.strategies import Batch
from zoo.models.dual_encoder import DualEncoderConfig

TEXTS = {"bert": bert, "albert": albert}
IMAGES = {"clip-vision": clip_vision, "efficientnet": efficientnet}
TASKS = ()  # those of two towers have tests of their own, in tests/models/test_dual_encoder.py


def tiny_config(draw: st.DrawFn, **fixed: Any) -> DualEncoderConfig:
    pooling = draw(st.sampled_from(["pooler", "mean", "cls"]))
    text_family = fixed.get("text_family") or draw(st.sampled_from(list(TEXTS)))
    image_family = fixed.get("image_family") or draw(st.sampled_from(list(IMAGES)))
    text = TEXTS[text_family].tiny_config(draw).replace(pooler=True, classifier_dropout=0.2)
    own = (
        {"num_channels": 3} if image_family == "efficientnet" else {"dropout": 0.0, "layer_scale": draw(st.booleans())}
    )
    fields = {
        "text_family": text_family,
        "text": text,
        "image_family": image_family,
        "image": IMAGES[image_family].tiny_config(draw, **own),
        "text_pooling": pooling,
        "projection_size": draw(st.integers(1, 6)),
        "projection_bias": draw(st.booleans()),
        "logit_bias": draw(st.booleans()),
        "dropout": 0.3,
    }
    return DualEncoderConfig(**fields | fixed)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = TEXTS[config.text_family].inputs(draw, config.text, **options)
    side = config.image_size if config.image_family == "clip-vision" else draw(st.integers(16, 23))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return batch.with_(pixel_values=torch.randn(batch.rows, 3, side, side, generator=generator, dtype=torch.float64))


SIZES = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 11}
SMALL = {"image": {"image_size": 6, "patch_size": 3, **SIZES}, "text_pooling": "mean", "projection_size": 5}


def small_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """What a text model has by itself belongs to the text tower."""
    own = DualEncoderConfig.field_names()
    text = {name: value for name, value in fields.items() if name in bert.BertConfig.field_names()}
    return {"text": text, **{name: value for name, value in fields.items() if name in own}}


def small_batch() -> Batch:
    ids = torch.randint(1, 19, (4, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    types = torch.arange(24).reshape(4, 6) % 5 % 2
    pixels = clip_vision.small_batch().inputs["pixel_values"]
    return Batch({"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "pixel_values": pixels})


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state}
