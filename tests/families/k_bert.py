"""K-BERT: BERT whose knowledge comes in through positions and a visible matrix, which its own tests show."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.families.bert import inputs
from tests.strategies import encoder_fields
from zoo.models.k_bert import KBertConfig

__all__ = ["inputs", "tiny_config"]


def tiny_config(draw: st.DrawFn) -> KBertConfig:
    fields = encoder_fields(draw)
    if fields["hidden_size"] == 1:  # one number has no standard deviation
        fields["hidden_size"] = 2
    return KBertConfig(**fields)
