"""The shapes in signatures are checked while the suite runs, see `tests.shapes`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from torch import Tensor, nn

import zoo
import zoo.layers
import zoo.models
from tests import shapes
from zoo.errors import InputError
from zoo.layers import FeedForward

pytestmark = pytest.mark.skipif(jaxtyping.config.jaxtyping_disable, reason="the check of shapes is switched off")


class Transposed(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).transpose(0, 1)


def test_a_part_that_transposes_its_result_is_caught():
    part = FeedForward(4, 8)
    part.down = Transposed(part.down)
    with pytest.raises(BeartypeCallHintViolation):
        part(torch.randn(2, 3, 4))


def test_a_model_is_caught_that_mixes_up_batch_and_length(monkeypatch):
    model = zoo.create("bert-base", num_layers=1, hidden_size=4, num_heads=2, intermediate_size=8, vocab_size=9)
    model.embeddings.norm = Transposed(model.embeddings.norm)
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(BeartypeCallHintViolation):
        model(ids)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert model(ids).last_hidden_state.shape == (3, 2, 4)  # nobody else would have noticed


def test_what_is_wrong_with_a_users_tensors_is_said_by_the_library():
    model = zoo.create("bert-base", num_layers=1, hidden_size=4, num_heads=2, intermediate_size=8, vocab_size=9)
    with pytest.raises(InputError, match="input_ids must be"):
        model(torch.ones(3, dtype=torch.long))


def test_no_shape_stands_in_a_signature_unwatched():
    modules = [
        importlib.import_module(info.name)
        for room in (zoo.layers, zoo.models)
        for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
    ]
    owners = [(module, module) for module in modules]
    owners += [(m, c) for m in modules for c in vars(m).values() if inspect.isclass(c) and c.__module__ == m.__name__]
    watched = 0
    for module, owner in owners:
        for name, part in vars(owner).items():
            function = getattr(part, "fget", None) or getattr(part, "__func__", part)
            if not inspect.isfunction(function) or function.__module__ != module.__name__:
                continue
            if any(shapes.has_shape(hint) for _, hint in shapes.hints_of(inspect.unwrap(function))):
                assert hasattr(function, "__wrapped__"), f"{module.__name__}.{name}"
                watched += 1
    assert watched > 150
