"""Inference: generate, fill masks, optimize for a CPU, export."""
