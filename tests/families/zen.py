"""ZEN: its small configs and its inputs, n-grams among them."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tests.strategies import Batch, attention_masks, encoder_fields, text_batches
from zoo.models.zen import ZenConfig


def tiny_config(draw: st.DrawFn) -> ZenConfig:
    fields = encoder_fields(draw)
    return ZenConfig(
        **fields, num_ngrams=draw(st.integers(2, 9)), num_ngram_layers=draw(st.integers(0, fields["num_layers"]))
    )


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    """Texts, some with n-grams."""
    batch: Batch = draw(text_batches(config, **options))
    first = batch.inputs.get("input_ids", batch.inputs.get("inputs_embeds"))
    if not (options.get("embeds", True) and draw(st.booleans())):
        return batch
    rows, length = first.shape[:2]
    count = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    more = {
        "ngram_ids": torch.randint(config.num_ngrams, (rows, count), generator=generator),
        "ngram_positions": torch.randint(2, (rows, length, count), generator=generator),
    }
    if draw(st.booleans()):
        more["ngram_token_type_ids"] = torch.randint(config.num_segments, (rows, count), generator=generator)
    mask = draw(attention_masks(rows, count, least=0))
    if mask is not None:
        more["ngram_mask"] = mask
    return batch.with_(**more)
