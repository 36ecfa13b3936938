"""Optimisers and schedules: against the references' numbers, and against their formulas written out
in float64.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references.case import find_adapter, golden_cases, load_case
from tests.references.compare import compare
from zoo.errors import ConfigError
from zoo.training.optimizers import (
    BertAdam,
    Lamb,
    Lars,
    clip_gradients,
    decay_groups,
    layer_depth,
    layerwise_groups,
    optimizer_for,
)
from zoo.training.schedules import (
    cosine_restarts,
    inverse_square_root,
    polynomial_decay,
    scheduler,
    warmup_then_decay,
    warmup_times_decay,
)

CASES = golden_cases("bert/adam-weight-decay", "albert/lamb", "electra/layerwise-lr-adam", "xlm/lr-schedule")


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_the_reference_optimiser_gives_the_same(folder):
    case = load_case(folder)
    assert compare(case, find_adapter(case)(case)) == []


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.booleans(), st.booleans(), st.floats(0, 0.3), st.floats(0, 0.99), st.floats(0.5, 0.999)
)
def test_updates_follow_the_formula(seed, lamb, adapt, weight_decay, beta1, beta2):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(3, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
    parameter = torch.nn.Parameter(weight.clone())
    group = {"params": [parameter], "weight_decay": weight_decay, "adapt": adapt}
    optimizer = (Lamb if lamb else BertAdam)([group], lr=0.1, betas=(beta1, beta2), eps=1e-6)
    w, m, v = weight.tolist(), [[0.0] * 2 for _ in range(3)], [[0.0] * 2 for _ in range(3)]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        update = [[0.0] * 2 for _ in range(3)]
        for i in range(3):
            for j in range(2):
                g = float(gradient[i, j])
                m[i][j] = beta1 * m[i][j] + (1 - beta1) * g
                v[i][j] = beta2 * v[i][j] + (1 - beta2) * g * g
                update[i][j] = m[i][j] / (math.sqrt(v[i][j]) + 1e-6) + weight_decay * w[i][j]
        ratio = 1.0
        if lamb and adapt:
            ratio = math.sqrt(sum(x * x for row in w for x in row)) / math.sqrt(
                sum(x * x for row in update for x in row)
            )
        w = [[w[i][j] - 0.1 * ratio * update[i][j] for j in range(2)] for i in range(3)]
    assert torch.allclose(parameter, torch.tensor(w, dtype=torch.float64), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adapt", [True, False])
def test_lars_scales_each_tensors_rate_and_then_the_momentum(adapt):
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = Lars([{"params": [parameter], "weight_decay": 0.1, "adapt": adapt}], lr=0.5, momentum=0.8, eta=0.01)
    w, velocity = weight.tolist(), [0.0] * 6
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        slope = [float(g) + 0.1 * x for g, x in zip(gradient, w, strict=True)]
        norms = [math.sqrt(sum(x * x for x in values)) for values in (w, slope)]
        rate = 0.5 * (0.01 * norms[0] / norms[1] if adapt else 1.0)
        velocity = [0.8 * v + rate * g for v, g in zip(velocity, slope, strict=True)]
        w = [x - v for x, v in zip(w, velocity, strict=True)]
    assert torch.allclose(parameter, torch.tensor(w, dtype=torch.float64), rtol=1e-12)


def test_a_tensor_of_zeros_still_learns_under_lars():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.ones(4)
    Lars([parameter], lr=0.1, weight_decay=0.0).step()
    assert torch.allclose(parameter, torch.full((4,), -0.1))


def test_a_tensor_of_zeros_still_learns_under_lamb():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.ones(4)
    Lamb([parameter], lr=0.1, weight_decay=0.0).step()
    assert (parameter < 0).all()


def test_an_untouched_parameter_keeps_its_value():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    used.grad = torch.ones(2)
    BertAdam([used, unused], lr=0.1).step()
    assert torch.equal(unused, torch.ones(2))
    assert not torch.equal(used, torch.ones(2))


def test_training_goes_on_from_saved_state():
    def run(optimizer, parameter, steps):
        for step in steps:
            parameter.grad = torch.tensor([1.0, -2.0]) * (step + 1)
            optimizer.step()

    straight = torch.nn.Parameter(torch.ones(2))
    optimizer = BertAdam([straight], lr=0.1)
    run(optimizer, straight, range(2))
    resumed = torch.nn.Parameter(straight.detach().clone())
    second = BertAdam([resumed], lr=0.5)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, straight, range(2, 4))
    run(second, resumed, range(2, 4))
    assert torch.equal(straight, resumed)


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_gradients_are_clipped_by_their_common_norm(scale, limit):
    parameters = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    gradients = [torch.tensor([3.0, 0.0]) * scale, torch.tensor([4.0]) * scale]
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gradient.clone()
    assert float(clip_gradients(parameters, limit)) == pytest.approx(5 * scale, rel=1e-5)
    factor = min(1.0, limit / (5 * scale))
    for parameter, gradient in zip(parameters, gradients, strict=False):
        assert torch.allclose(parameter.grad, gradient * factor, rtol=1e-5)


NAMES = [
    "embeddings.token.weight",
    "embeddings.norm.weight",
    "embeddings.projection.weight",
    "encoder.blocks.0.attention.query.weight",
    "encoder.blocks.0.attention.query.bias",
    "encoder.blocks.1.attention_norm.weight",
    "encoder.blocks.1.feed_forward.up.weight",
    "pooler.dense.weight",
    "heads.masked_lm.bias",
]


def named():
    return [(name, torch.nn.Parameter(torch.zeros(1))) for name in NAMES]


def test_norms_and_biases_are_neither_decayed_nor_adapted():
    parameters = named()
    decayed, exempt = decay_groups(parameters, 0.02)
    names = {id(p): name for name, p in parameters}
    assert [names[id(p)] for p in exempt["params"]] == [n for n in NAMES if "norm" in n or n.endswith("bias")]
    assert (decayed["weight_decay"], decayed["adapt"], exempt["weight_decay"], exempt["adapt"]) == (
        0.02,
        True,
        0.0,
        False,
    )
    assert len(decayed["params"]) + len(exempt["params"]) == len(NAMES)


def test_rates_fall_towards_the_input():
    parameters = named()
    names = {id(p): name for name, p in parameters}
    rates = {
        names[id(p)]: group["lr"]
        for group in layerwise_groups(parameters, 1.0, 0.5, num_layers=2)
        for p in group["params"]
    }
    depths = {"embeddings": 0, "encoder.blocks.0": 1, "encoder.blocks.1": 2, "pooler": 4, "heads": 4}
    for name in NAMES:
        depth = next(d for prefix, d in depths.items() if name.startswith(prefix))
        assert rates[name] == 0.5 ** (4 - depth)
    with pytest.raises(ConfigError, match="num_layers=2"):
        layer_depth("encoder.blocks.2.attention.query.weight", 2)


@pytest.mark.parametrize("optimizer", [BertAdam, Lamb])
def test_a_small_model_learns(optimizer):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 1))
    x = torch.randn(64, 4)
    y = x[:, :1] * x[:, 1:2]
    made = optimizer_for(model, optimizer, lr=0.02)
    losses = []
    for _ in range(150):
        made.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        clip_gradients(model.parameters())
        made.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 4


# --- schedules --------------------------------------------------------------------------------------------------------


def test_berts_warm_up_jumps_onto_the_decay_and_electras_does_not():
    bert, electra = warmup_then_decay(1.0, 100, 10), warmup_times_decay(1.0, 100, 10)
    assert [bert(s) for s in (0, 5, 9, 10, 55, 100, 150)] == pytest.approx([0, 0.5, 0.9, 0.9, 0.45, 0, 0])
    assert [electra(s) for s in (0, 5, 10, 55, 100)] == pytest.approx([0, 0.5 * 0.95, 0.9, 0.45, 0])
    assert (
        warmup_then_decay(1.0, 100, 0)(0) == warmup_times_decay(1.0, 100, 0)(0) == polynomial_decay(1.0, 100)(0) == 1.0
    )
    assert warmup_then_decay(1.0, 100, 10, start=20)(15) == pytest.approx(-0.5)
    assert polynomial_decay(2.0, 100, power=2)(50) == pytest.approx(0.5)


def test_the_inverse_square_root_meets_its_warm_up():
    schedule = inverse_square_root(1e-3, 100)
    assert schedule(0) == 1e-7
    assert schedule(99) < schedule(100) == pytest.approx(1e-3)
    assert schedule(400) == pytest.approx(5e-4)
    assert inverse_square_root(1.0, 100, power=1.0)(200) == pytest.approx(0.5)


@given(
    st.integers(0, 20),
    st.integers(1, 50),
    st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    st.floats(0.1, 1),
    st.integers(0, 3000),
)
def test_cosines_restart_where_a_loop_over_cycles_says(warmup, period, growth, shrink, step):
    schedule = cosine_restarts(1.0, warmup, period, growth, shrink, lowest=0.1)
    if step < warmup:
        assert schedule(step) == pytest.approx(1e-7 + step * (1 - 1e-7) / warmup)
        return
    left, length, cycle = float(step - warmup), float(period), 0
    while left >= length * (1 - 1e-9):
        left, length, cycle = left - length, length * growth, cycle + 1
    low, high = 0.1 * shrink**cycle, shrink**cycle
    wanted = low + (high - low) * (1 + math.cos(math.pi * left / length)) / 2
    at_border = left / length < 1e-6  # where rounding decides on which side of a restart the step lies
    assert schedule(step) == pytest.approx(wanted, rel=1e-6, abs=1e-9) or at_border


def test_pytorch_follows_a_schedule_in_every_group():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = BertAdam([{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 0.05}], lr=0.1)
    follow = scheduler(optimizer, warmup_then_decay(0.1, 10, 2), 0.1)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        follow.step()
    assert [pair[0] for pair in seen] == pytest.approx([0.0, 0.05, 0.08, 0.07])
    assert [pair[1] for pair in seen] == pytest.approx([0.0, 0.025, 0.04, 0.035])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: BertAdam(p, lr=-1.0), "lr=-1.0"),
        (lambda p: Lamb(p, lr=0.1, betas=(0.9, 1.0)), r"betas=\(0.9, 1.0\)"),
        (lambda p: polynomial_decay(1.0, 0), "total=0"),
        (lambda p: inverse_square_root(1.0, 0), "warmup=0"),
        (lambda p: layerwise_groups([], 1.0, 0.0, 2), "factor=0.0"),
        (lambda p: scheduler(BertAdam(p, lr=0.0), lambda step: 0.0, 0.0), "rate=0.0"),
    ],
)
def test_impossible_settings_are_refused_with_their_value(make, words):
    with pytest.raises(ConfigError, match=words):
        make([torch.nn.Parameter(torch.zeros(1))])


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="dense"):
        BertAdam(table.parameters(), lr=0.1).step()
