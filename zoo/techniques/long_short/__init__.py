"""Long-short range attention (Wu et al., 2020)."""

from zoo.techniques.long_short.technique import LongShortRange

__all__ = ["LongShortRange"]
