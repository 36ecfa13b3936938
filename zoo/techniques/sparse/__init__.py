"""Sparse attention: strided, fixed and windowed patterns (Child et al., 2019; Beltagy et al.,
2020).
"""

from zoo.techniques.sparse.technique import FixedAttention, SlidingWindow, SparseTechnique, StridedAttention

__all__ = ["FixedAttention", "SlidingWindow", "SparseTechnique", "StridedAttention"]
