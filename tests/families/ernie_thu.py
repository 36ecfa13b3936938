"""ERNIE (Tsinghua): its small configs and its inputs, entities among them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.ernie_thu import KINDS, ErnieThuConfig


def tiny_config(draw: st.DrawFn) -> ErnieThuConfig:
    fields = encoder_fields(draw)
    heads = draw(st.integers(1, 2))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=fields["num_layers"]))
    return ErnieThuConfig(
        **fields, entity_heads=heads, entity_size=heads * draw(st.integers(1, 3)), layer_types=tuple(kinds)
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    """Texts, some with vectors of entities beside their tokens."""
    batch: Batch = draw(text_batches(config, **options))
    first = batch.inputs.get("input_ids", batch.inputs.get("inputs_embeds"))
    if options.get("embeds", True) and draw(st.booleans()):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        vectors = torch.randn(*first.shape[:2], config.entity_size, generator=generator, dtype=torch.float64)
        mask = torch.randint(2, first.shape[:2], generator=generator)
        batch = batch.with_(entity_embeds=vectors, entity_mask=mask)
    return batch
