"""One seed, one base: techniques don't change what is drawn for the rest of the model."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests import strategies as st
from zoo.registry.techniques import TECHNIQUES
from zoo.tasks.base import canonical_state
from zoo.techniques.base import technique_class

TAKEN = [name for name, declared in TECHNIQUES.items() if declared.example is not None and not declared.after]
CHANGED = {
    "LayerPruning",  # what was block 2 of the plain model is block 1
    "WidthPruning",  # columns go by their size
    "WeightPruning",  # zeros in the place of the smallest
    "Int8",  # stored as integers
}


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in CHANGED])
def test_the_base_is_drawn_alike_with_and_without(name):
    config = st.small_config("bert").to_dict()

    def drawn(*techniques):
        generator = torch.Generator().manual_seed(3)
        return canonical_state(zoo.create("bert-base", generator=generator, techniques=techniques, **config))

    plain, changed = drawn(), drawn(technique_class(name)(**TECHNIQUES[name].example))
    shared = [key for key in plain if key in changed and plain[key].shape == changed[key].shape]
    assert shared
    differ = [key for key in shared if not torch.equal(plain[key], changed[key])]
    assert not differ
