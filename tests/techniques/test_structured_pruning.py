"""Structured pruning: what is removed is what was masked, the matrices shrink, and a smaller model
is saved and loaded as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from tests.strategies import small_batch
from tests.techniques.test_pruning import loss_of, model_of, run, same, seeded
from zoo.errors import ConfigError, TechniqueError, UnknownNameError
from zoo.techniques.pruning.gates import close_gates, gate_penalty, gated_parts
from zoo.techniques.pruning.importance import head_importance, heads_to_prune, masked_heads
from zoo.techniques.pruning.structured import remove_heads, remove_units

SETTINGS = {"deadline": None, "derandomize": True, "max_examples": 15}


@settings(**SETTINGS)
@given(data=st.data(), family=st.sampled_from(["bert", "vilbert", "mbart", "albert"]))
def test_removing_heads_gives_what_masking_them_gave(data, family):
    model = model_of(family)
    paths = {site.path: site.module.num_heads for site in model.sites() if site.role == "self-attention"}
    gone = {path: data.draw(st.sets(st.integers(0, heads - 1)), label=path) for path, heads in paths.items()}
    with masked_heads(model, gone):
        wanted = run(model, family)
    remove_heads(model, gone)
    assert same(run(model, family), wanted)
    for path, heads in paths.items():
        attention = model.get_submodule(path)
        assert attention.num_heads == heads - len(gone[path])
        assert (
            attention.query.weight.shape[0]
            == attention.output.weight.shape[1]
            == attention.num_heads * attention.head_size
        )


@settings(**SETTINGS)
@given(data=st.data())
def test_removing_units_gives_what_silencing_them_gave(data):
    model = model_of()
    sites = {site.path: site.module for site in model.sites() if site.role == "feed-forward"}
    gone = {
        path: data.draw(st.sets(st.integers(0, part.up.out_features - 1)), label=path) for path, part in sites.items()
    }
    with torch.no_grad():
        for path, units in gone.items():
            sites[path].down.weight[:, sorted(units)] = 0
    wanted, before = run(model), model.num_parameters()
    hidden = model.config.hidden_size
    remove_units(model, gone)
    assert same(run(model), wanted)
    assert before - model.num_parameters() == sum(len(units) for units in gone.values()) * (2 * hidden + 1)


def test_a_layer_without_any_head_gives_its_bias_and_is_saved(tmp_path):
    model = model_of(task="sequence-classification")
    remove_heads(
        model, {"encoder.blocks.0.attention": range(model.config.num_heads), "encoder.blocks.1.attention": [0]}
    )
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert loaded.model.encoder.blocks[0].attention.num_heads == 0
    assert same(run(loaded.model), run(model.eval().model), 1e-14)
    assert zoo.verify(tmp_path / "saved").ok
    output = loaded.model(**small_batch("bert").inputs, output_attentions=True)
    assert [map_.shape[1] for map_ in output.attentions] == [0, model.config.num_heads - 1]


def test_pruned_models_stack_and_train(tmp_path):
    model = model_of(task="sequence-classification", num_layers=3)
    zoo.apply(
        model,
        zoo.HeadPruning(kept=0.5),
        zoo.FeedForwardPruning(kept=0.3),
        zoo.LayerPruning(layers=(1,)),
        zoo.WeightPruning(),
    )
    loss_of(model.model.train()).backward()
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert loaded.model.techniques == model.model.techniques
    assert same(run(loaded.model), run(model.eval().model), 1e-14)


def test_the_smallest_heads_and_units_go_where_none_were_chosen():
    model = model_of()
    attention, part = model.encoder.blocks[0].attention, model.encoder.blocks[1].feed_forward
    with torch.no_grad():
        attention.value.weight[: attention.head_size] *= 1e-3
        part.up.weight[2] *= 1e-3
    kept = attention.value.weight[attention.head_size :].clone()
    row = part.up.weight[2].clone()
    heads, units = attention.num_heads, part.up.out_features
    zoo.apply(model, zoo.HeadPruning(paths=("encoder.blocks.0.attention",), counts=(heads - 1,)))
    zoo.apply(model, zoo.FeedForwardPruning(paths=("encoder.blocks.1.feed_forward",), counts=(units - 1,)))
    assert torch.equal(attention.value.weight, kept)
    assert not (part.up.weight == row).all(1).any()


@settings(**SETTINGS)
@given(gone=st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_removing_layers_gives_the_stack_without_them(gone):
    model = model_of(num_layers=4)
    blocks = list(model.encoder.blocks)
    names = {
        name for name, _ in model.named_parameters() if not any(name.startswith(f"encoder.blocks.{n}.") for n in gone)
    }
    zoo.apply(model, zoo.LayerPruning(layers=tuple(gone)))
    assert {name for name, _ in model.named_parameters()} == names
    kept = [block for number, block in enumerate(blocks) if number not in gone]
    smaller = model_of(num_layers=len(kept))
    smaller.load_state_dict(
        {**smaller.state_dict(), **{n: t for n, t in model.state_dict().items() if not n.startswith("encoder")}}
    )
    smaller.encoder.blocks = nn.ModuleList(kept)
    assert same(run(model), run(smaller), 0)


def test_closing_gates_gives_the_gated_model_and_shrinks_it(tmp_path):
    model = model_of()
    plain = run(model)
    zoo.apply(model, zoo.GatePruning(start=9.0))
    assert same(run(model.eval()), plain, 1e-9), "open gates change nothing"
    for number, part in enumerate(gated_parts(model).values()):
        part.gate.scores.data = torch.randn(part.gate.scores.shape, generator=seeded(number), dtype=torch.float64) * 4
    wanted, before = run(model), model.num_parameters()
    penalty = gate_penalty(model)
    assert set(penalty) == {"heads", "units"}
    assert (
        0
        < float(penalty["units"].detach())
        < sum(p.gate.scores.numel() for p in gated_parts(model).values() if p.span == 1)
    )
    loaded = zoo.load(zoo.save(model, tmp_path / "gated"))
    assert same(run(loaded), wanted, 1e-14)
    close_gates(model)
    assert same(run(model), wanted)
    assert model.num_parameters() < before
    assert not gated_parts(model)
    assert same(run(zoo.load(zoo.save(model, tmp_path / "closed"))), wanted)


def test_gates_learn_to_shut_what_the_loss_does_not_need():
    model = model_of(task="sequence-classification")
    with torch.no_grad():
        model.model.encoder.blocks[0].feed_forward.down.weight[:, :10] = 0  # units that do nothing
    zoo.apply(model, zoo.GatePruning(gates=("units",), start=1.0))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("gate.scores" in name)
    scores = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(scores, lr=2.0)
    for _ in range(20):
        gate_penalty(model)["units"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(bool((part.gate.eval()() == 0).all()) for part in gated_parts(model).values())


def _batches(model: Any) -> list[dict[str, Tensor]]:
    return [{**small_batch("bert").inputs, "labels": torch.arange(small_batch("bert").rows) % 2}]


@pytest.mark.parametrize("form", ["position", "batch"])
def test_a_head_that_does_nothing_has_no_importance_and_goes_first(form):
    model = model_of(task="sequence-classification")
    attention = model.model.encoder.blocks[1].attention
    with torch.no_grad():
        attention.output.weight[:, : attention.head_size] = 0
    scores = head_importance(model, _batches(model), form=form, by_layer=False).importance
    assert float(scores["encoder.blocks.1.attention"][0]) == 0
    assert all(p.grad is None for p in model.parameters())
    first = heads_to_prune(scores, 1)
    assert first == {"encoder.blocks.1.attention": [0]}
    wanted = run(model.model)
    remove_heads(model, first)
    assert same(run(model.model), wanted)


@settings(**SETTINGS)
@given(count=st.integers(0, 12), least=st.integers(0, 2), seed=st.integers(0, 5))
def test_never_fewer_heads_stay_in_a_layer_than_asked(count, least, seed):
    scores = {str(n): torch.rand(4, generator=seeded(seed + n)) for n in range(3)}
    gone = heads_to_prune(scores, count, least=least)
    assert sum(map(len, gone.values())) == min(count, 3 * (4 - least))
    for layer, heads in gone.items():
        assert 4 - len(heads) >= least
        if least:
            assert int(scores[layer].argmax()) not in heads


def test_what_cannot_be_removed_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="needs a count"):
        zoo.HeadPruning(paths=("encoder.blocks.0.attention",))
    with pytest.raises(TechniqueError, match="remove nothing"):
        zoo.apply(model_of(), zoo.HeadPruning(kept=1.0))
    with pytest.raises(UnknownNameError):
        zoo.apply(model_of(), zoo.HeadPruning(paths=("encoder.blocks.7.attention",), counts=(1,)))
    with pytest.raises(TechniqueError, match="prune heads first"):
        zoo.apply(zoo.apply(model_of(), zoo.LoRA(rank=2)), zoo.HeadPruning())
    with pytest.raises(TechniqueError, match="some but not all"):
        zoo.apply(model_of(), zoo.LayerPruning(layers=(0, 1)))
    with pytest.raises(TechniqueError, match="numbers 0"):
        remove_heads(model_of(), {"encoder.blocks.0.attention": [99]})
