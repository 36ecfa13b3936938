"""CLIP: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import ACTIVATIONS, MASKS, Batch, attention_masks
from zoo.models.clip import ClipConfig

LAYOUT = "hf-clip"
TASKS = ()  # those of two towers have tests of their own, in tests/models/test_clip.py


def tower_fields(draw: st.DrawFn, prefix: str = "") -> dict[str, Any]:
    """Sizes of a transformer."""
    heads, size = draw(st.integers(1, 3)), draw(st.integers(3, 5))  # a norm over one or two is all rounding
    return {
        f"{prefix}hidden_size": heads * size,
        f"{prefix}num_layers": draw(st.integers(1, 3)),
        f"{prefix}num_heads": heads,
        f"{prefix}intermediate_size": draw(st.integers(1, 12)),
        f"{prefix}activation": draw(st.sampled_from(ACTIVATIONS)),
        f"{prefix}norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-2])),
        f"{prefix}layer_scale": draw(st.booleans()),
    }


def text_fields(draw: st.DrawFn) -> dict[str, Any]:
    vocab_size = draw(st.integers(5, 20))
    return {
        **tower_fields(draw),
        "vocab_size": vocab_size,
        "max_positions": draw(st.integers(8, 12)),
        "eos_token_id": draw(st.sampled_from([None, 3, vocab_size - 1])),
    }


def picture_fields(draw: st.DrawFn) -> dict[str, Any]:
    patch = draw(st.integers(1, 4))
    return {"patch_size": patch, "image_size": draw(st.integers(patch, 3 * patch))}


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ClipConfig:
    fields = {**text_fields(draw), **tower_fields(draw, "image_"), **picture_fields(draw)}
    own = {"projection_size": draw(st.integers(1, 6)), "logit_bias": draw(st.booleans()), "dropout": 0.3}
    return ClipConfig(**fields | own | fixed)


def pictures(rows: int, size: int, seed: int) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def text_inputs(draw: st.DrawFn, config: Any, kinds: tuple[str, ...] = MASKS, least: int = 1) -> dict[str, Tensor]:
    """Texts with a mask: without one, what follows the largest id would be padding."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, min(7, config.max_positions)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    found = {"input_ids": torch.randint(1, config.vocab_size, (rows, length), generator=generator)}
    mask = draw(attention_masks(rows, length, tuple("full" if kind == "none" else kind for kind in kinds), least))
    found["attention_mask"] = torch.ones(rows, length, dtype=torch.long) if mask is None else mask
    if draw(st.booleans()):
        found["position_ids"] = torch.randint(config.max_positions, (rows, length), generator=generator)
    return found


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    found = text_inputs(draw, config, **options)
    pixels = pictures(len(found["input_ids"]), config.image_size, draw(st.integers(0, 99)))
    return Batch({**found, "pixel_values": pixels})


SMALL = {
    "eos_token_id": None,
    "image_size": 6,
    "patch_size": 3,
    "image_hidden_size": 6,
    "image_num_layers": 2,
    "image_num_heads": 2,
    "image_intermediate_size": 7,
    "projection_size": 5,
}


def small_batch() -> Batch:
    ids = torch.randint(1, 19, (4, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    return Batch({"input_ids": ids, "attention_mask": mask, "pixel_values": pictures(4, 6, 0)})


def states(output: Any) -> dict[str, Tensor]:
    return {"attention_mask": output.text.last_hidden_state}
