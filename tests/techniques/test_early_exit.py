"""Early exit: rows leave where the rule says, with what their off-ramp said, and those that stay
are computed as if alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from tests.strategies import randomised, small_batch
from tests.techniques.test_pruning import model_of, run, same
from zoo.errors import InputError, TechniqueError
from zoo.techniques import early_exit


def exiting(family: str = "bert", layers: int = 4) -> Any:
    model = model_of(family, "sequence-classification", num_layers=layers, dropout=0.0)
    zoo.apply(model, zoo.EarlyExit(num_labels=model.options["num_labels"], dropout=0.0))
    return randomised(model, 7)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "electra"])
def test_rows_leave_with_what_their_off_ramp_said_and_the_others_are_not_touched(family, packed):
    model = exiting(family)
    batch = small_batch(family).inputs
    with zoo.packing(packed):
        ramps = early_exit.all_ramps(model, batch)
        spreads = torch.stack([early_exit.entropy(logits) for logits in ramps.logits], 1).detach()
        threshold = float(spreads.flatten().sort().values[spreads.numel() // 3])
        exits = early_exit.classify(model, batch, threshold=threshold)
    for row, spread in enumerate(spreads):
        first = next((layer for layer, value in enumerate(spread) if value < threshold), None)
        assert exits.layers[row] == (len(spread) if first is None else first + 1)
        wanted = ramps.output.logits[row] if first is None else ramps.logits[first][row]
        assert torch.allclose(exits.logits[row], wanted, rtol=0, atol=1e-10)
    assert len(set(exits.layers.tolist())) > 1, "the case shows rows that leave and rows that stay"


@settings(deadline=None, derandomize=True, max_examples=20)
@given(patience=st.integers(1, 4))
def test_patience_waits_for_so_many_agreements(patience):
    model = exiting(layers=4)
    batch = small_batch("bert").inputs
    said = torch.stack([logits.argmax(1) for logits in early_exit.all_ramps(model, batch).logits], 1)
    exits = early_exit.classify(model, batch, patience=patience)
    for row, labels in enumerate(said.tolist()):
        times, leaves = 0, len(labels)
        for layer in range(1, len(labels)):
            times = times + 1 if labels[layer] == labels[layer - 1] else 0
            if times >= patience:
                leaves = layer + 1
                break
        assert exits.layers[row] == leaves


def test_layers_behind_the_exit_are_not_computed_for_rows_that_left():
    model = exiting()
    seen: list[int] = []
    for block in model.model.encoder.blocks:
        block.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[0]))
    early_exit.classify(model, small_batch("bert").inputs, threshold=100.0)
    assert len(seen) == 1, "everyone leaves after the first layer"


def test_the_model_gives_what_it_gave_and_is_saved_with_its_exits(tmp_path):
    model = model_of("bert", "sequence-classification")
    wanted = run(model.model)
    zoo.apply(model, zoo.EarlyExit(num_labels=3))
    assert same(run(model.model), wanted, 0)
    pooler = model.model.pooler.dense.weight
    assert all(torch.equal(ramp.pooler.dense.weight, pooler) for ramp in early_exit.exits_of(model).exits)
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    batch = small_batch("bert").inputs
    mine, theirs = (early_exit.classify(m.eval(), batch, threshold=1.0) for m in (model, loaded))
    assert torch.equal(mine.logits, theirs.logits)
    assert torch.equal(mine.layers, theirs.layers)


def test_the_second_stage_teaches_all_off_ramps_but_the_last():
    model = exiting().train()
    batch = small_batch("bert").inputs
    labels = torch.arange(small_batch("bert").rows) % model.options["num_labels"]
    early_exit.ramp_loss(model, {**batch, "labels": labels}).backward()
    grads = [ramp.classifier.weight.grad is not None for ramp in early_exit.exits_of(model).exits]
    assert grads == [True] * 3 + [False]


def test_what_cannot_leave_is_refused():
    model = exiting()
    batch = small_batch("bert").inputs
    with pytest.raises(InputError, match="either"):
        early_exit.classify(model, batch)
    with pytest.raises(InputError, match="training mode"):
        early_exit.classify(model.train(), batch, patience=1)
    with pytest.raises(InputError, match="for each of the 4 layers"):
        early_exit.classify(model.eval(), batch, threshold=(0.1, 0.2))
    with pytest.raises(TechniqueError, match="no off-ramps"):
        early_exit.exits_of(model_of())
    with pytest.raises(TechniqueError, match="Schedule"):
        zoo.apply(model_of("vilbert"), zoo.EarlyExit())
