"""KnowBert: its small configs, with sources of knowledge, and texts that mention nothing;
test_knowledge_models.py has the rest.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tests.families.bert import inputs
from tests.strategies import encoder_fields
from zoo.models.knowbert import KnowBertConfig

__all__ = ["inputs", "tiny_config"]


def tiny_config(draw: st.DrawFn) -> KnowBertConfig:
    fields = encoder_fields(draw)
    for name, loss in (("wiki", "margin"), ("wordnet", "softmax")):
        heads = draw(st.integers(1, 2))
        fields |= {
            f"{name}_layer": draw(st.one_of(st.none(), st.integers(0, fields["num_layers"] - 1))),
            f"{name}_entities": draw(st.integers(4, 9)),
            f"{name}_entity_size": heads * draw(st.integers(1, 3)),
            f"{name}_vector_size": 0 if name == "wiki" else draw(st.integers(0, 3)),
            f"{name}_pos_size": 2,
            f"{name}_span_layers": draw(st.integers(1, 2)),
            f"{name}_span_heads": heads,
            f"{name}_word_heads": heads,
            f"{name}_span_intermediate": 5,
            f"{name}_word_intermediate": 4,
            f"{name}_linking_hidden": 3,
            f"{name}_loss": draw(st.sampled_from([loss, "softmax", "margin"])),
        }
    return KnowBertConfig(**fields)
