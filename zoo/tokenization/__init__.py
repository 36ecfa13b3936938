"""Tokenizers: a declared pre-step (text to text), then a ``tokenizers.Tokenizer``; built from any
of the files that checkpoints bring.

Importing this package does not import torch; only calling a tokenizer for a batch of tensors does.
"""

from __future__ import annotations

from zoo.tokenization.load import load_tokenizer
from zoo.tokenization.tokenizer import PreStep, SpecialTokens, Tokenizer

__all__ = ["PreStep", "SpecialTokens", "Tokenizer", "load_tokenizer"]
