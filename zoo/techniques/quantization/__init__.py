"""Quantization: while training, after training, and with integers alone."""
