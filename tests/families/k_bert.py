"""K-BERT: its small configs and inputs, visible matrices among them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.strategies import Batch, encoder_fields, text_batches
from zoo.models.k_bert import POOLER_INPUTS, KBertConfig


def tiny_config(draw: st.DrawFn) -> KBertConfig:
    """One number has no standard deviation, so there are at least two."""
    fields = encoder_fields(draw)
    if fields["hidden_size"] == 1:
        fields["hidden_size"] = 2
    return KBertConfig(**fields, pooler_input=draw(st.sampled_from(POOLER_INPUTS)))


def inputs(draw: st.DrawFn, config: Any, **options: Any) -> Batch:
    return draw(text_batches(config, **options))
