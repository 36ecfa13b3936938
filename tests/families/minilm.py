"""MiniLM: BERT's class, whose equivalence is proven there."""

from tests.families.bert import inputs, tiny_config

__all__ = ["inputs", "tiny_config"]
