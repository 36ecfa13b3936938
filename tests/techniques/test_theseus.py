"""BERT-of-Theseus: which layers run for which draws, what learns, and the smaller model that is
left.
"""

from __future__ import annotations

import pytest
import torch

import zoo
from tests.strategies import small_batch
from tests.techniques.test_pruning import loss_of, model_of, run, same
from zoo.errors import ConfigError, TechniqueError
from zoo.techniques import theseus


def test_the_draws_say_which_layers_run():
    model = model_of(num_layers=4)
    plain, blocks = run(model), list(model.encoder.blocks)
    zoo.apply(model, zoo.Theseus(layers=2))
    with theseus.replacing(model, (0, 0)):
        assert same(run(model), plain, 0), "the predecessor alone"
    smaller = model_of(num_layers=2)
    for mine, theirs in zip(smaller.encoder.blocks, blocks, strict=False):
        mine.load_state_dict(theirs.state_dict())
    assert same(run(model), run(smaller), 0), "in eval mode the successors alone, which begin as the first layers"
    with theseus.replacing(model, (1, 0)):
        assert not same(run(model), plain)


def test_only_successors_learn_and_what_is_left_is_an_ordinary_model(tmp_path):
    model = model_of(num_layers=4, task="sequence-classification")
    zoo.apply(model, zoo.Theseus(layers=2, rate=1.0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(theseus.successor_parameters(model), lr=0.01)
    loss_of(model.model.train()).backward()
    optimizer.step()
    changed = {
        name.split(".")[3] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"4", "5"}
    wanted = run(model.model.eval())
    loaded = zoo.load(zoo.save(model, tmp_path / "beside"))
    assert same(run(loaded.model), wanted, 1e-14)
    theseus.finish(model)
    assert model.config.num_layers == 2
    assert same(run(model.model), wanted, 1e-14)
    assert model.model.techniques == ()
    zoo.convert(zoo.save(model, tmp_path / "small"), tmp_path / "small.safetensors", to="hf-bert")
    assert same(run(zoo.load(tmp_path / "small").model), wanted, 1e-14)


def test_successors_may_have_other_heads_and_units(tmp_path):
    model = model_of(num_layers=4)
    zoo.apply(model, zoo.Theseus(layers=2, num_heads=1, intermediate_size=5))
    assert same(run(zoo.load(zoo.save(model, tmp_path / "beside"))), run(model), 1e-14)
    theseus.finish(model)
    assert (model.config.num_heads, model.config.intermediate_size) == (1, 5)
    assert same(run(zoo.load(zoo.save(model, tmp_path / "small"))), run(model), 1e-14)


def test_in_training_a_successor_runs_as_often_as_its_rate_says():
    model = zoo.apply(model_of(num_layers=2), zoo.Theseus(layers=1, rate=0.3)).train()
    counts = [0, 0]
    stack = model.encoder
    stack.blocks[2].register_forward_hook(lambda *_: counts.__setitem__(0, counts[0] + 1))
    stack.blocks[0].register_forward_hook(lambda *_: counts.__setitem__(1, counts[1] + 1))
    torch.manual_seed(0)
    for _ in range(200):
        model(**small_batch("bert").inputs)
    assert sum(counts) == 200
    assert 35 < counts[0] < 85
    theseus.set_rate(model, 1.0)
    for _ in range(20):
        model(**small_batch("bert").inputs)
    assert sum(counts) == 220
    assert counts[0] > 54


def test_what_cannot_be_replaced_is_refused():
    with pytest.raises(TechniqueError, match="must divide"):
        zoo.apply(model_of(num_layers=4), zoo.Theseus(layers=3))
    with pytest.raises(TechniqueError, match="several depths"):
        zoo.apply(model_of("albert", num_groups=1, num_inner_blocks=1), zoo.Theseus(layers=1))
    with pytest.raises(ConfigError, match="at most 1"):
        zoo.Theseus(rate=0.0)
    with pytest.raises(TechniqueError, match="no successors"):
        theseus.set_rate(model_of(), 0.5)
