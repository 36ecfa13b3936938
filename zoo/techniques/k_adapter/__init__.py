"""K-Adapter (Wang et al., 2020)."""

from zoo.techniques.k_adapter.technique import KAdapter

__all__ = ["KAdapter"]
