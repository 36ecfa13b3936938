"""SpanBERT: BERT's class, whose equivalence is proven there, with a head for spans."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.families.bert import inputs
from tests.strategies import encoder_fields
from zoo.models.spanbert import SpanBertConfig

__all__ = ["inputs", "tiny_config"]


def tiny_config(draw: st.DrawFn) -> SpanBertConfig:
    fields = encoder_fields(draw)
    return SpanBertConfig(
        **fields,
        max_span_targets=draw(st.integers(1, 4)),
        span_position_size=draw(st.integers(1, 4)),
        span_layer=draw(st.integers(-1, fields["num_layers"] - 1)),
    )
