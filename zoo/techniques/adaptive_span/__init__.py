"""Adaptive attention spans (Sukhbaatar et al., 2019)."""
