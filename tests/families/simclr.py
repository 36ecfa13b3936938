"""SimCLR's networks: ResNets, most of them with selective kernels."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.families import resnet
from tests.families.resnet import TASKS, inputs, labels, small_batch, states
from zoo.models.resnet import ResNetConfig

__all__ = ["SMALL", "TASKS", "inputs", "labels", "small_batch", "states", "tiny_config"]

SMALL = {**resnet.SMALL, "selective_ratio": 0.0625, "pool_padding": "same"}


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ResNetConfig:
    return resnet.tiny_config(draw, **{"bottleneck": True, "pool_padding": "same"} | fixed)
