"""Pruning: single weights, heads and units, whole layers, the hidden width."""
