"""CPM: GPT-2's class: its small configs, its inputs, and how transformers builds the same."""

from __future__ import annotations

from tests.families.gpt2 import CLASSES, LAYOUT, SMALL, inputs, oracle, tiny_config

__all__ = ["CLASSES", "LAYOUT", "SMALL", "inputs", "oracle", "tiny_config"]
