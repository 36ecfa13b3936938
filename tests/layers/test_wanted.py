"""Asked for some layers by number, a model gives those, as they stand among all of them."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests import strategies as st
from zoo.errors import InputError
from zoo.layers.outputs import Output


def streams(name, output):
    """Every part of a result that has hidden states."""
    if isinstance(output, Output):
        if getattr(output, "hidden_states", None) is not None and hasattr(output, "attentions"):
            yield "", output
        for field, value in output.present():
            if isinstance(value, Output):
                yield from ((f"{field}.{inner}", part) for inner, part in streams(name, value))


@pytest.mark.parametrize("name", st.families())
def test_layers_are_given_by_number(name):
    model, batch = st.build(name, st.small_config(name)), st.small_batch(name).inputs
    every = dict(streams(name, model(**batch, output_hidden_states=True, output_attentions=True)))
    some = dict(streams(name, model(**batch, output_hidden_states=[1, 0], output_attentions=[-1])))
    assert set(every) == set(some) != set()
    for where, whole in every.items():
        part = some[where]
        assert len(part.hidden_states) == 2
        assert torch.equal(part.hidden_states[0], whole.hidden_states[1])
        assert torch.equal(part.hidden_states[1], whole.hidden_states[0])
        assert len(part.attentions) == min(1, len(whole.attentions))  # a convolution has none
        for mine, theirs in zip(part.attentions, whole.attentions[-1:], strict=True):
            assert torch.equal(mine, theirs)
        assert torch.equal(part.last_hidden_state, whole.last_hidden_state)
    with pytest.raises(InputError, match="output_hidden_states names 99"):
        model(**batch, output_hidden_states=[99])


def test_with_knowledge_adapters_too():
    model, batch = st.build("bert", st.small_config("bert")), st.small_batch("bert").inputs
    zoo.apply(model, zoo.KAdapter(names=("facts",), size=4, num_heads=2, intermediate_size=6, num_layers=1))
    whole = model.eval()(**batch, output_hidden_states=True).hidden_states
    (part,) = model(**batch, output_hidden_states=[1]).hidden_states
    assert torch.equal(part, whole[1])
    assert model(**batch).hidden_states is None
