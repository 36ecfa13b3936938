"""Pruning of the hidden width: every tensor along the stream is cut, and the rest is as if the
norms had never had more dimensions.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from tests.strategies import families, small_batch, small_config
from tests.techniques.test_pruning import loss_of, model_of, run, same, seeded
from zoo.errors import ConfigError, TechniqueError
from zoo.techniques.matrix import refusal
from zoo.techniques.pruning.gates import close_gates, gate_penalty, gated_norms
from zoo.techniques.pruning.importance import width_importance
from zoo.techniques.pruning.width import Stream, remove_dimensions


class OverSome(nn.Module):
    """A norm over some dimensions alone; the others become zeros."""

    def __init__(self, norm: Any, keep: Tensor) -> None:
        super().__init__()
        self.norm, self.keep = copy.deepcopy(norm), keep
        for name, tensor in norm.named_parameters():
            setattr(self.norm, name, nn.Parameter(tensor.detach()[keep]))
        if isinstance(norm, nn.LayerNorm):
            self.norm.normalized_shape = (len(keep),)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[..., self.keep] = self.norm(x[..., self.keep])
        return out


def silenced(model: Any, keep: Tensor) -> Any:
    """The model as wide as it was, in which nothing writes, reads or normalises the other
    numbers.
    """
    wide = copy.deepcopy(model)
    stream = Stream.of(wide)
    gone = [number for number in range(stream.size) if number not in keep.tolist()]
    with torch.no_grad():
        for name, tensor in stream.tensors.items():
            for axis in stream.axes[name]:
                tensor.index_fill_(axis, torch.tensor(gone), 0)
    for path, norm in stream.norms().items():
        parent, _, name = path.rpartition(".")
        setattr(wide.get_submodule(parent), name, OverSome(norm, keep))
    return wide


def taken(family: str) -> bool:
    return refusal(type(model_of(family)), small_config(family), [zoo.WidthPruning(kept=0.5)]) is None


@pytest.mark.parametrize("family", families())
def test_the_narrow_model_is_the_wide_one_with_norms_over_what_stays(family):
    if not taken(family):
        with pytest.raises(TechniqueError):
            zoo.apply(model_of(family), zoo.WidthPruning(kept=0.5))
        return
    model = model_of(family)
    size = model.hidden_size
    keep = torch.randperm(size, generator=seeded())[: size // 2 + 1].sort().values
    wanted = run(silenced(model, keep), family)
    before = model.num_parameters()
    remove_dimensions(model, set(range(size)) - set(keep.tolist()))
    assert model.num_parameters() < before
    assert model.hidden_size == len(keep)
    narrow = run(model, family)
    assert same(
        narrow,
        {name: value if value.shape == narrow[name].shape else value[..., keep] for name, value in wanted.items()},
    )


def test_most_families_can_be_narrowed():
    assert sum(taken(family) for family in families()) >= 0.8 * len(families())


def test_where_norms_only_scale_the_narrow_model_is_the_one_with_silenced_dimensions():
    model = model_of("mobilebert", norm="no_norm")
    gone = [0, 3, 5]
    wide = copy.deepcopy(model)
    with torch.no_grad():
        for norm in Stream.of(wide).norms().values():
            norm.weight[gone], norm.bias[gone] = 0, 0
    wanted = run(wide, "mobilebert")
    remove_dimensions(model, gone)
    keep = [number for number in range(wide.hidden_size) if number not in gone]
    assert same(
        {"text": run(model, "mobilebert")["last_hidden_state"]}, {"text": wanted["last_hidden_state"][..., keep]}
    )


def test_heads_follow_and_everything_is_saved_and_trains(tmp_path):
    model = model_of(task="masked-lm")
    size = model.model.hidden_size
    zoo.apply(model, zoo.HeadPruning(kept=0.5), zoo.WidthPruning(kept=0.75), zoo.FeedForwardPruning(kept=0.5))
    assert model.heads["masked_lm"].dense.in_features == model.model.hidden_size == round(0.75 * size)
    output = model(**small_batch("bert").inputs)
    assert output.prediction_logits.shape[-1] == model.config.vocab_size
    output.prediction_logits.sum().backward()
    zoo.apply(model, zoo.WidthPruning(count=5))  # again
    zoo.apply(model, zoo.LoRA(rank=2), zoo.PrefixTuning(length=2), zoo.InvertibleAdapter())
    loaded = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert loaded.model.techniques == model.model.techniques
    assert loaded.model.hidden_size == 5
    with torch.no_grad():
        mine, theirs = (one.eval()(**small_batch("bert").inputs).prediction_logits for one in (model, loaded))
    assert torch.equal(mine, theirs)
    assert zoo.verify(tmp_path / "saved").ok


def test_the_smallest_dimensions_go_where_none_were_chosen():
    model = model_of()
    with torch.no_grad():
        for name, tensor in Stream.of(model).tensors.items():
            for axis in Stream.of(model).axes[name]:
                tensor.index_fill_(axis, torch.tensor([2, 4]), 1e-6)
    table = model.embeddings.token.weight.detach().clone()
    size = model.hidden_size
    zoo.apply(model, zoo.WidthPruning(count=size - 2))
    assert torch.equal(
        model.embeddings.token.weight, table[:, [number for number in range(size) if number not in (2, 4)]]
    )


def test_importance_is_the_gradient_of_one_gate_behind_every_norm():
    model = model_of(task="sequence-classification").eval()
    inputs = {**small_batch("bert").inputs, "labels": torch.arange(small_batch("bert").rows) % 2}
    score = width_importance(model, [inputs, inputs])
    assert all(p.grad is None for p in model.parameters())
    gate = torch.ones(model.model.hidden_size, dtype=torch.float64, requires_grad=True)
    for norm in Stream.of(model).norms().values():
        norm.register_forward_hook(lambda part, given, out: out * gate)
    model(**inputs).loss.backward()
    assert torch.allclose(score, 2 * gate.grad.abs(), rtol=1e-9)


def test_one_gate_stands_behind_all_norms_and_is_drawn_once_a_pass(tmp_path):
    model = model_of()
    plain = run(model)
    zoo.apply(model, zoo.GatePruning(gates=("hidden",), start=9.0))
    norms = gated_norms(model)
    assert len(norms) == 1 + 2 * model.config.num_layers
    assert sum("gate.scores" in name for name, _ in model.named_parameters()) == 1
    assert same(run(model.eval()), plain, 1e-9), "open gates change nothing"
    gate = next(iter(norms.values())).own_gate
    gate.scores.data = torch.randn(gate.scores.shape, generator=seeded(1), dtype=torch.float64) * 4
    loaded = zoo.load(zoo.save(model, tmp_path / "gated"))
    assert same(run(loaded), run(model), 1e-14)
    model.train()
    seen = []
    for norm in norms.values():
        norm.register_forward_hook(lambda part, given, out: seen.append((out == 0).all(tuple(range(out.dim() - 1)))))
    model(**small_batch("bert").inputs)
    assert all(torch.equal(zeros, seen[0]) for zeros in seen)
    assert bool(seen[0].any())
    copy.deepcopy(model)
    loss_of(model).backward()
    assert gate.scores.grad is not None
    assert list(gate_penalty(model)) == ["hidden"]


def test_closing_the_gate_narrows_the_model_and_keeps_the_other_factors(tmp_path):
    model = model_of(task="sequence-classification")
    zoo.apply(model, zoo.GatePruning(gates=("heads", "units", "hidden")))
    bare = model.model
    gate = next(iter(gated_norms(model).values())).own_gate
    with torch.no_grad():
        gate.scores.copy_(torch.linspace(-6, 6, len(gate.scores)))
    value = gate.eval()().detach()
    keep = (value > 0).nonzero().flatten()
    weight = bare.embeddings.norm.weight.detach().clone()
    close_gates(model)
    assert 0 < len(keep) < len(value) == model.config.hidden_size
    assert bare.hidden_size == len(keep)
    assert torch.allclose(bare.embeddings.norm.weight, (weight * value)[keep])
    assert model.heads["sequence_classification"].in_features == len(keep)
    loaded = zoo.load(zoo.save(model, tmp_path / "closed"))
    assert same(run(loaded.model), run(model.eval().model), 1e-14)
    with torch.inference_mode():
        fast, slow = (one(**small_batch("bert").inputs).logits for one in (zoo.optimize(model), model))
    assert torch.allclose(fast.double(), slow, atol=1e-4)


def test_what_cannot_be_narrowed_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="at least 1"):
        zoo.WidthPruning(count=0)
    with pytest.raises(TechniqueError, match="nothing would go"):
        zoo.apply(model_of(), zoo.WidthPruning(kept=1.0))
    with pytest.raises(TechniqueError, match="no width 'hiden_size'"):
        zoo.apply(model_of(), zoo.WidthPruning(width="hiden_size"))
    with pytest.raises(TechniqueError, match="before other techniques"):
        zoo.apply(zoo.apply(model_of(), zoo.LoRA(rank=2)), zoo.WidthPruning())
    with pytest.raises(TechniqueError, match="numbers 0"):
        remove_dimensions(model_of(), [99])
    with pytest.raises(TechniqueError, match="all 8 dimensions"):
        remove_dimensions(model_of(hidden_size=8, num_heads=2), range(8))
    model = zoo.apply(model_of(), zoo.GatePruning(gates=("hidden",), start=-20.0))
    with pytest.raises(TechniqueError, match="no model is left"):
        close_gates(model)
