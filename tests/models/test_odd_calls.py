"""Odd values at every argument of a call are taken or refused by name, never another error and never numbers
that are not finite without a word. `python -m benchmarks.odd_calls` makes every such call.
"""

from __future__ import annotations

import itertools

import jaxtyping
import pytest
import torch

from benchmarks.odd_calls import calls, outcome, small
from tests.strategies import families, small_batch
from zoo.errors import InputError, TaskError


@pytest.fixture(autouse=True)
def unchecked_shapes():
    """The suite's own check of signatures stays out of the way of the library's."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("name", [name for name in families() if small_batch(name).streams])
def test_odd_calls_are_taken_or_refused(name):
    found = {what: outcome(call) for what, call in itertools.islice(calls(name), families().index(name) % 9, None, 9)}
    assert len(found) > 10
    assert {what: how for what, how in found.items() if how not in ("taken", "refused")} == {}
    assert set(found.values()) == {"taken", "refused"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.to_sparse(), "input_ids is a tensor of the layout torch.sparse_coo"),
        (lambda x: x.to(torch.float8_e5m2), "input_ids is torch.float8_e5m2, in which no layer computes"),
        (lambda x: x.to("meta"), "input_ids is on the device meta"),
    ],
)
def test_a_tensor_that_no_layer_takes_is_refused_by_name(change, says):
    for task in (None, "masked-lm"):
        model, given = small("bert", task)
        with pytest.raises(InputError, match=says):
            model(**{**given, "input_ids": change(given["input_ids"])})
        with pytest.raises(InputError, match=says.replace("input_ids", "argument 0")):
            model(change(given["input_ids"]))
    assert small("bert")[0].to("meta")(given["input_ids"].to("meta")).last_hidden_state.is_meta


def test_labels_that_are_not_finite_are_refused():
    model, given = small("ernie-thu", "entity-typing")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(TaskError, match="labels must be finite"):
            model(**{**given, "labels": given["labels"].float() * 0 + bad})
