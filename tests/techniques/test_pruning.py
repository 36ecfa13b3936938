"""Pruning of weights, heads, units and layers: exactly as much as asked, saved as it is, and
nothing else changed.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import zoo
from tests.strategies import build, randomised, relative, small_batch, small_config, states
from zoo.errors import CheckpointError, ConfigError, InputError, TechniqueError
from zoo.formats.opening import open_archive
from zoo.formats.sparse_tensors import packed
from zoo.formats.writer import write_tensors
from zoo.tasks.base import canonical_state
from zoo.techniques.pruning import weights as pruning
from zoo.techniques.pruning.masks import AboveThreshold, HardConcrete, top_mask

SETTINGS = {"deadline": None, "derandomize": True, "max_examples": 20}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(family: str = "bert", task: str | None = None, **fields: object) -> Any:
    return randomised(build(family, small_config(family, **fields), task, seed=3), 3)


def run(model: Any, family: str = "bert") -> dict[str, Tensor]:
    with torch.no_grad():
        return states(family, model(**small_batch(family).inputs))


def same(mine: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-12) -> bool:
    return all(relative(a, b) <= tolerance for a, b in zip(mine.values(), other.values(), strict=True))


def loss_of(model: Any, family: str = "bert", seed: int = 2) -> Tensor:
    given_ = states(family, model(**small_batch(family).inputs))
    return sum(
        (value * torch.randn(value.shape, generator=seeded(seed), dtype=value.dtype)).sum() for value in given_.values()
    )  # type: ignore[return-value]


# -- single weights ----------------------------------------------------------------------------------------------------


@settings(**SETTINGS)
@given(sparsity=st.floats(0, 1), scope=st.sampled_from(pruning.SCOPES), by=st.sampled_from(["magnitude", "random"]))
def test_exactly_as_many_weights_go_as_were_asked_for(sparsity, scope, by):
    model = zoo.apply(model_of(), zoo.WeightPruning(sparsity=sparsity, scope=scope, by=by), generator=seeded())
    sizes = [(part.mask.numel(), int((~part.mask).sum())) for _, part in pruning.masked_parts(model)]
    if scope == "matrix":
        assert all(gone == round(sparsity * size) for size, gone in sizes)
    else:
        assert sum(gone for _, gone in sizes) == round(sparsity * sum(size for size, _ in sizes))


@settings(**SETTINGS)
@given(sparsity=st.floats(0, 1), scope=st.sampled_from(pruning.SCOPES))
def test_what_goes_is_smaller_than_what_stays_and_masking_again_changes_nothing(sparsity, scope):
    model = zoo.apply(model_of(), zoo.WeightPruning(sparsity=sparsity, scope=scope))
    masks = {path: part.mask.clone() for path, part in pruning.masked_parts(model)}
    pruning.remask(model, pruning.magnitudes(model), sparsity, scope)
    assert all(torch.equal(part.mask, masks[path]) for path, part in pruning.masked_parts(model))
    groups = [[path] for path in masks] if scope == "matrix" else [list(masks)]
    for group in groups:
        sizes = {path: model.get_submodule(path).weight.abs() for path in group}
        stay = torch.cat([sizes[path][masks[path]] for path in group])
        go = torch.cat([sizes[path][~masks[path]] for path in group])
        assert not len(stay) or not len(go) or go.max() <= stay.min()


def test_a_masked_model_is_the_model_with_zeros_and_stays_so_in_training_and_files(tmp_path):
    model = model_of(task="masked-lm")
    plain = copy.deepcopy(model)
    zoo.apply(model, zoo.WeightPruning(sparsity=0.7, roles=("attention-query", "token-embedding")))
    with torch.no_grad():
        for path, part in pruning.masked_parts(model):
            plain.model.get_submodule(path).weight.mul_(part.mask)
    inputs = small_batch("bert").inputs
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(**inputs).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    masks = {path: part.mask.clone() for path, part in pruning.masked_parts(model)}
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert all(torch.equal(part.mask, masks[path]) for path, part in pruning.masked_parts(loaded))
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert same(run(loaded.model), run(model.eval().model))
    name = "encoder.blocks.0.attention.query.weight"
    stored = canonical_state(loaded)[name]
    assert int((stored == 0).sum()) == round(0.7 * stored.numel())
    assert pruning.sparsity_of(loaded) == pytest.approx(0.7, abs=0.01)


def test_a_pruned_model_goes_to_a_foreign_layout_as_a_plain_one_with_zeros(tmp_path):
    model = zoo.apply(model_of(), zoo.WeightPruning(sparsity=0.9))
    zoo.convert(zoo.save(model, tmp_path / "saved"), tmp_path / "out.safetensors", to="hf-bert")
    stored = load_file(tmp_path / "out.safetensors")
    query = next(tensor for name, tensor in stored.items() if name.endswith("layer.0.attention.self.query.weight"))
    assert int((query == 0).sum()) == round(0.9 * query.numel())


def test_baking_leaves_an_ordinary_model_that_gives_the_same(tmp_path):
    for technique in (zoo.WeightPruning(sparsity=0.5), zoo.MovementPruning(threshold=0.4), zoo.L0Pruning()):
        model = zoo.apply(model_of(), technique)
        with torch.no_grad():
            for number, (_, part) in enumerate(pruning.scored_parts(model)):
                part.gate.scores.copy_(torch.randn(part.gate.scores.shape, generator=seeded(number)) * 3)
        wanted = run(model.eval())
        pruning.bake(model)
        assert same(run(model), wanted)
        assert all(type(part) is torch.nn.Linear for name, part in model.named_modules() if name.endswith("query"))
        assert model.techniques == ()
        assert list(model.state_dict()) == list(model_of().state_dict())


def test_random_weights_are_pruned_when_they_have_been_drawn():
    sizes = {"hidden_size": 24, "num_layers": 2, "num_heads": 2, "intermediate_size": 48, "vocab_size": 50}
    model = zoo.create("bert-base", techniques=[zoo.WeightPruning(sparsity=0.6, scope="across")], **sizes)
    assert pruning.sparsity_of(model) == pytest.approx(0.6, abs=1e-3)
    movement = zoo.create("bert-base", techniques=[zoo.MovementPruning(threshold=0.3)], **sizes)
    assert pruning.sparsity_of(movement) == pytest.approx(0.7, abs=1e-2)


def test_rounds_of_the_lottery_ticket_take_a_share_of_what_is_left_and_rewind_to_the_start():
    model = model_of(task="sequence-classification")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    zoo.apply(model, zoo.WeightPruning(sparsity=0.0))
    total = left = sum(part.mask.numel() for _, part in pruning.masked_parts(model))
    gone: set[tuple[str, int]] = set()
    for number in range(4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=seeded(number), dtype=parameter.dtype))
        head = model.heads["sequence_classification"].weight.clone()
        pruning.prune_more(model, 0.2)
        pruning.rewind(model, start)
        left -= round(0.2 * left)
        assert round((1 - pruning.sparsity_of(model)) * total) == left
        now = {(path, int(i)) for path, part in pruning.masked_parts(model) for i in (~part.mask).flatten().nonzero()}
        assert gone <= now, "what is pruned once stays so"
        gone = now
        assert torch.equal(model.heads["sequence_classification"].weight, head), "the head is not rewound"
        assert torch.equal(
            model.model.encoder.blocks[0].attention.query.weight, start["model.encoder.blocks.0.attention.query.weight"]
        )
    with pytest.raises(TechniqueError, match=r"has no model\.embeddings"):
        pruning.rewind(model, {})


def test_gradual_pruning_lets_weights_come_back_with_the_values_they_had():
    model = zoo.apply(model_of(), zoo.WeightPruning(sparsity=0.0))
    part = model.encoder.blocks[0].attention.query
    old = part.weight.clone()
    pruning.remask(model, pruning.magnitudes(model), 0.9)
    pruning.remask(model, pruning.magnitudes(model), 0.1)
    assert torch.equal(part.weight, old)
    assert int((~part.mask).sum()) == round(0.1 * old.numel())


def test_the_cubic_schedule_starts_ends_and_rises_as_the_formula_says():
    schedule = [pruning.cubic_sparsity(step, begin=10, end=50, start=0.1, final=0.8, every=5) for step in range(60)]
    assert schedule[:10] == pytest.approx([0.1] * 10)
    assert schedule[50:] == pytest.approx([0.8] * 10)
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(schedule))
    assert schedule[30] == pytest.approx(0.8 - 0.7 * 0.5**3)
    assert schedule[33] == schedule[30] < schedule[35]


def test_pruning_before_training_keeps_the_weights_that_the_loss_feels():
    model = zoo.apply(model_of(), zoo.WeightPruning(sparsity=0.0))
    loss_of(model).backward()
    scores = pruning.saliencies(model)
    pruning.remask(model, scores, 0.75, "across")
    kept = torch.cat([scores[path][part.mask] for path, part in pruning.masked_parts(model)])
    gone = torch.cat([scores[path][~part.mask] for path, part in pruning.masked_parts(model)])
    assert gone.max() <= kept.min()
    with pytest.raises(TechniqueError, match="no gradient"):
        pruning.saliencies(zoo.apply(model_of(), zoo.WeightPruning(sparsity=0.0)))


@settings(**SETTINGS)
@given(share=st.floats(0, 1), size=st.integers(1, 60), ties=st.booleans())
def test_the_top_mask_keeps_exactly_the_count_also_among_equal_scores(share, size, ties):
    scores = torch.zeros(size) if ties else torch.randn(size, generator=seeded(size))
    assert int(top_mask(scores, int(share * size)).sum()) == int(share * size)


def test_soft_movement_never_prunes_a_matrix_away():
    gate = AboveThreshold((40, 20), 0.0, 100.0)
    with torch.no_grad():
        gate.scores.copy_(torch.randn(40, 20, generator=seeded()))
    assert int(gate().sum()) == int(0.005 * 800) + 1


def test_scores_learn_through_the_mask_also_where_it_is_shut():
    model = zoo.apply(model_of(), zoo.MovementPruning(threshold=0.2))
    loss_of(model).backward()
    for _, part in pruning.scored_parts(model):
        shut = part.gate().detach() == 0
        assert part.gate.scores.grad[shut].abs().sum() > 0
        assert part.weight.grad[shut].abs().sum() == 0


def test_l0_gates_take_draws_and_their_chance_to_be_open_is_the_distributions():
    gate = HardConcrete((1,), 0.3)
    draws = torch.linspace(1e-4, 1 - 1e-4, 20001)
    gate.scores.data = torch.full((20001,), 0.3)
    open_ = (gate(draws) > 0).double().mean()
    assert float(open_) == pytest.approx(float(gate.chance_open()[0].detach()), abs=1e-3)
    model = zoo.apply(model_of(), zoo.L0Pruning())
    assert not same(run(model.train()), run(model)), "noise while training"
    assert same(run(model.eval()), run(model), 0)
    pruning.score_penalty(model, "l0").backward()
    assert all(part.gate.scores.grad.abs().sum() > 0 for _, part in pruning.scored_parts(model))


def test_the_exact_threshold_survives_another_dtype_and_files(tmp_path):
    model = zoo.apply(model_of(), zoo.MovementPruning(threshold=0.5)).to(torch.bfloat16)
    pruning.set_threshold(model, 0.15)
    model = model.to(torch.float32)
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"), dtype=torch.bfloat16)
    assert all(float(part.gate.threshold) == 0.15 for _, part in pruning.scored_parts(loaded))


def test_what_cannot_be_pruned_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"sparsity=1.5 must lie"):
        zoo.WeightPruning(sparsity=1.5)
    with pytest.raises(TechniqueError, match="before other techniques"):
        zoo.apply(zoo.apply(model_of(), zoo.LoRA(rank=2)), zoo.WeightPruning())
    with pytest.raises(TechniqueError, match="no masked weights"):
        pruning.remask(model_of(), {}, 0.5)
    with pytest.raises(TechniqueError, match="no scores"):
        pruning.set_threshold(model_of(), 0.5)


# -- sparse files ------------------------------------------------------------------------------------------------------


@settings(**SETTINGS)
@given(shape=st.lists(st.integers(0, 9), max_size=3), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_sparse_tensor_comes_back_and_is_never_larger_than_a_dense_one(shape, share, seed, tmp_path_factory):
    tensor = torch.randn(shape, generator=seeded(seed))
    tensor[torch.rand(shape, generator=seeded(seed + 1)) < share] = 0
    stored, metadata = packed({"x": tensor, "other": torch.arange(3)})
    bytes_of = sum(t.numel() * t.element_size() for name, t in stored.items() if name != "other")
    assert bytes_of <= tensor.numel() * 4
    path = tmp_path_factory.mktemp("sparse") / "x.safetensors"
    write_tensors(path, stored, metadata)
    with open_archive(path) as archive:
        assert set(archive.tensors) == {"x", "other"}
        assert torch.equal(archive.read("x"), tensor)


def test_a_pruned_model_is_saved_sparsely_and_loaded_and_converted_as_it_is(tmp_path):
    model = zoo.apply(model_of(hidden_size=48, intermediate_size=96), zoo.WeightPruning(sparsity=0.9))
    dense, sparse = zoo.save(model, tmp_path / "dense"), zoo.save(model, tmp_path / "sparse", sparse=True)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (dense, sparse)]
    assert sizes[1] < 0.7 * sizes[0]
    loaded = zoo.load(sparse)
    assert same(run(loaded), run(model), 0)
    assert zoo.verify(sparse).ok
    zoo.convert(sparse, tmp_path / "a.safetensors", to="hf-bert")
    zoo.convert(dense, tmp_path / "b.safetensors", to="hf-bert")
    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.equal(a[name], b[name]) for name in b)
    with pytest.raises(InputError, match="one file"):
        zoo.save(model, tmp_path / "both", sparse=True, shard_size=100)


@pytest.mark.parametrize(
    ("tensors", "shapes"),
    [
        ({"x.kept": torch.tensor([7], dtype=torch.uint8)}, '{"x": [3]}'),
        ({"x.kept": torch.tensor([7], dtype=torch.uint8), "x.values": torch.ones(3)}, '{"x": [99]}'),
        ({"x.kept": torch.tensor([7], dtype=torch.uint8), "x.values": torch.ones(3)}, '{"x": [-1]}'),
        ({"x.kept": torch.tensor([7], dtype=torch.uint8), "x.values": torch.ones(3)}, "[1]"),
        ({"x.kept": torch.tensor([7], dtype=torch.uint8), "x.values": torch.ones(3)}, "{"),
        ({"x.kept": torch.tensor([3], dtype=torch.uint8), "x.values": torch.ones(3)}, '{"x": [3]}'),
    ],
)
def test_sparse_parts_that_do_not_fit_are_refused(tensors, shapes, tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors, {"zoo.sparse": shapes})
    with pytest.raises(CheckpointError), open_archive(path) as archive:
        archive.read("x")
