"""BART: its small configs and its inputs, which are mBART's; tests/models/test_mbart.py asks
transformers about them.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tests.families import mbart
from tests.families.mbart import SMALL, inputs, labels, small_batch, states
from zoo.models.bart import BartConfig

__all__ = ["SMALL", "inputs", "labels", "small_batch", "states", "tiny_config"]


def tiny_config(draw: st.DrawFn) -> BartConfig:
    return BartConfig(**{**mbart.tiny_config(draw).to_dict(), "start_token_id": 2})
