"""XNLG: its small configs; its inputs are those of XLM's translator. No other library has it."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.families import xlm_translation
from tests.families.xlm_translation import inputs, labels, small_batch, states
from zoo.models.xnlg import XnlgConfig

__all__ = ["SMALL", "inputs", "labels", "small_batch", "states", "tiny_config"]

SMALL = {"decoder_num_layers": 1}


def tiny_config(draw: st.DrawFn) -> XnlgConfig:
    fields = xlm_translation.tiny_config(draw).to_dict()
    return XnlgConfig(**fields, decoder_num_layers=draw(st.integers(1, 3)))
