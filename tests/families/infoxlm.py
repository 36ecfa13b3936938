"""InfoXLM: XLM-R's class and layouts."""

from tests.families.xlm_roberta import CLASSES, LAYOUT, SMALL, inputs, oracle, tiny_config

__all__ = ["CLASSES", "LAYOUT", "SMALL", "inputs", "oracle", "tiny_config"]
