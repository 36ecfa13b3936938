"""MASS for translation: its small configs; its inputs are those of XLM's translator, with masked
places in the source. No other library has it.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from tests.families import xlm_translation
from tests.families.xlm_translation import labels, states
from tests.strategies import Batch
from zoo.models.mass import MassConfig

__all__ = ["SMALL", "inputs", "labels", "small_batch", "states", "tiny_config"]

SMALL = {"decoder_num_layers": 1}


def tiny_config(draw: st.DrawFn) -> MassConfig:
    fields = xlm_translation.tiny_config(draw).to_dict()
    mask = draw(st.integers(0, fields["vocab_size"] - 1))
    return MassConfig(**fields, decoder_num_layers=draw(st.integers(1, 3)), mask_token_id=mask)


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    batch = xlm_translation.inputs(draw, config, **options)
    return _masked(batch, config.mask_token_id, draw(st.integers(0, 2**16)))


def small_batch() -> Batch:
    return _masked(xlm_translation.small_batch(), 5, 0)


def _masked(batch: Batch, mask_token_id: int, seed: int) -> Batch:
    """A third of the source's tokens as masks."""
    ids = batch.inputs["input_ids"]
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 1 / 3
    return Batch({**batch.inputs, "input_ids": ids.masked_fill(hidden, mask_token_id)})
