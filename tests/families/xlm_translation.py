"""XLM's encoder-decoder: its small configs and its inputs. No other library has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from torch import Tensor

from tests import strategies
from tests.families import xlm
from tests.families.mbart import labels
from tests.strategies import Batch
from zoo.models.xlm_translation import XlmTranslationConfig

__all__ = ["inputs", "labels", "small_batch", "states", "tiny_config"]


def tiny_config(draw: st.DrawFn) -> XlmTranslationConfig:
    return XlmTranslationConfig(**{**xlm.tiny_config(draw).to_dict(), "causal": False})


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    source, target = (xlm.inputs(draw, config, **{**options, "embeds": False}) for _ in range(2))
    rows = min(source.rows, target.rows)
    given: dict[str, Tensor] = {name: x[:rows] for name, x in source.inputs.items()}
    given |= {f"decoder_{name}": x[:rows] for name, x in target.inputs.items()}
    return Batch(given)


def states(output: Any) -> Mapping[str, Tensor]:
    return {"attention_mask": output.encoder.last_hidden_state, "decoder_attention_mask": output.last_hidden_state}


def small_batch() -> Batch:
    source, target = strategies.small_batch("xlm"), strategies.small_batch("xlm").reordered([3, 2, 1, 0])
    given = {**source.inputs, **{f"decoder_{name}": x[:, :5] for name, x in target.inputs.items()}}
    return Batch(given)
