"""Results answer as mappings and as tuples, and stay frozen."""

import dataclasses

import pytest
import torch

from tests import strategies as st
from zoo.errors import UnknownNameError


@pytest.fixture(scope="module")
def results():
    torch.manual_seed(0)
    model = st.build("bert", st.small_config("bert"), "sequence-classification", num_labels=3)
    batch = st.small_batch("bert").inputs
    return model(**batch), model(**batch, labels=torch.tensor([0, 1, 2, 0]))


def test_names_and_numbers_give_the_same_values_loss_first(results):
    plain, taught = results
    assert taught.keys() == list(taught) == ["loss", "logits", "losses", "encoded"]
    assert plain.keys() == ["logits", "encoded"]
    assert taught[0] is taught["loss"] is taught.loss
    assert torch.equal(taught[1], plain["logits"])
    assert taught[:2] == (taught.loss, taught.logits)
    assert taught.to_tuple() == tuple(taught.values()) == tuple(dict(taught).values())
    assert len(taught) == 4
    assert dict(taught.items())["encoded"] is taught.encoded


def test_what_is_not_there_is_said(results):
    plain, _ = results
    assert "loss" not in plain
    assert "logits" in plain
    assert plain.get("loss") is None
    with pytest.raises(UnknownNameError, match="'logits'"):
        plain["logit"]
    with pytest.raises(IndexError):
        plain[2]


def test_results_stay_frozen(results):
    with pytest.raises(dataclasses.FrozenInstanceError):
        results[0].loss = None
    with pytest.raises(TypeError):
        results[0]["loss"] = None
