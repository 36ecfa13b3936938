"""Fine-tuning by depth on every family: rates by layer, frozen layers, checkpointed blocks."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests import strategies
from tests.matrix import run, same, seeded
from tests.strategies import build, small_batch, small_config, states
from zoo.errors import ConfigError
from zoo.training.fine_tuning import (
    blocks_of,
    checkpoint_blocks,
    freeze,
    keep_blocks,
    layerwise_groups_of,
    parameter_depths,
)

FAMILIES = strategies.families()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_rate_that_falls_with_depth(family):
    model = build(family, small_config(family))
    groups = layerwise_groups_of(model, 1.0, 0.5)
    parameters = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(model.parameters()))
    depths, last = parameter_depths(model)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert all(rates[id(p)] == 0.5 ** (last - depths[name]) for name, p in model.named_parameters())
    assert min(depths.values()) == 0
    for place in blocks_of(model):
        assert {depths[name] for name in depths if name.startswith(f"{place.path}.")} == {place.depths[0] + 1}


def test_rates_of_bert_are_those_of_electras_fine_tuning():
    model = build("bert", small_config("bert", num_layers=3), "sequence-classification")
    groups = layerwise_groups_of(model, 1e-3, 0.8)
    rate = {
        name: group["lr"]
        for group in groups
        for name, p in model.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert rate["heads.sequence_classification.weight"] == 1e-3
    assert rate["model.encoder.blocks.2.attention.query.weight"] == pytest.approx(1e-3 * 0.8**2)
    assert rate["model.embeddings.token.weight"] == pytest.approx(1e-3 * 0.8**5)


def test_layers_are_frozen_by_depth_and_stream():
    model = build("vilbert", small_config("vilbert"))
    image = [place for place in blocks_of(model) if place.streams == ("image",)]
    names = freeze(model, [depth for place in image for depth in place.depths], streams=["image"], embeddings=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == set(names)
    assert any(name.startswith("embeddings.") for name in frozen)
    blocks = [place for place in blocks_of(model) if any(name.startswith(f"{place.path}.") for name in frozen)]
    assert blocks == image
    groups = layerwise_groups_of(model, 1.0, 0.9)
    assert not [p for group in groups for p in group["params"] if not p.requires_grad]


def test_a_shared_block_is_frozen_whole_or_not_at_all():
    model = build("albert", small_config("albert", num_groups=1, num_inner_blocks=1))
    with pytest.raises(ConfigError, match="runs at the depths"):
        freeze(model, [0])
    assert freeze(model, range(len(blocks_of(model)[0].depths)))
    with pytest.raises(ConfigError, match="is none of this model's"):
        freeze(model, [99])


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_blocks_give_the_same_results_and_gradients(family):
    model = build(family, small_config(family), seed=1)
    names, kinds = list(model.state_dict()), [type(model.get_submodule(place.path)) for place in blocks_of(model)]

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        torch.manual_seed(0)
        output = states(family, model(**small_batch(family).inputs))
        sum((x * torch.randn(x.shape, generator=seeded(2), dtype=x.dtype)).sum() for x in output.values()).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    wanted = gradients()
    assert checkpoint_blocks(model) == len(blocks_of(model)) > 0
    found = gradients()
    assert list(found) == list(wanted)
    assert same(found, wanted)
    assert list(model.state_dict()) == names
    keep_blocks(model)
    assert [type(model.get_submodule(place.path)) for place in blocks_of(model)] == kinds


def test_checkpointing_saves_the_memory_that_gradients_wait_for(tmp_path):
    from torch.autograd.graph import saved_tensors_hooks

    model = build("bert", small_config("bert", num_layers=6)).train()

    def kept() -> int:
        count = [0]
        with saved_tensors_hooks(lambda x: (count.__setitem__(0, count[0] + x.numel()), x)[1], lambda x: x):
            model(**small_batch("bert").inputs)
        return count[0]

    plain = kept()
    checkpoint_blocks(model)
    assert kept() < plain / 4
    model.eval()
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert same(run(loaded), run(model), 1e-14)
