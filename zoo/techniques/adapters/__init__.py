"""Bottleneck adapters (Houlsby et al., 2019; Pfeiffer et al., 2020) and their compositions."""

from zoo.techniques.adapters.technique import (
    ActiveAdapters,
    AdapterFusion,
    BottleneckAdapter,
    InvertibleAdapter,
    adapted,
    norm_weight,
    repeated,
)

__all__ = [
    "ActiveAdapters",
    "AdapterFusion",
    "BottleneckAdapter",
    "InvertibleAdapter",
    "adapted",
    "norm_weight",
    "repeated",
]
