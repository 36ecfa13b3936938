"""ERNIE-ViL: ViLBERT's small configs and inputs, with what it adds."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.families import vilbert
from tests.families.vilbert import inputs, small_batch, states
from zoo.models.ernie_vil import ErnieVilConfig

__all__ = ["SMALL", "inputs", "small_batch", "states", "tiny_config"]


def tiny_config(draw: st.DrawFn, **fixed: Any) -> ErnieVilConfig:
    fields = vilbert.tiny_config(draw, **fixed).to_dict()
    return ErnieVilConfig(**fields | {"answer_hidden_size": draw(st.integers(1, 9)), "answer_dropout": 0.0})


SMALL = {**vilbert.SMALL, "answer_hidden_size": 9, "answer_dropout": 0.0}
