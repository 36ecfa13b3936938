"""Sparse attention: strided, fixed and windowed patterns (Child et al., 2019; Beltagy et al.,
2020).
"""
