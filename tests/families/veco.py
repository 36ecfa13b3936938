"""VECO: BART's blocks over many languages: its small configs and its inputs."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.families import mbart
from tests.families.mbart import SMALL, inputs, labels, small_batch, states
from zoo.models.veco import VecoConfig

__all__ = ["SMALL", "inputs", "labels", "small_batch", "states", "tiny_config"]


def tiny_config(draw: st.DrawFn) -> VecoConfig:
    return VecoConfig(**{**mbart.tiny_config(draw).to_dict()})
