"""Distillation losses against their formulas, written out; the golden cases hold their sums and
gradients.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zoo.errors import TaskError
from zoo.models.base.outputs import Encoded
from zoo.training.distillation.activations import Activations
from zoo.training.distillation.losses import (
    TransferWeights,
    soft_word_labels,
    softened_divergence,
    transfer_gates,
    transfer_losses,
    transfer_rate,
)
from zoo.training.distillation.terms import Comparison, LastStates, SoftTargets


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_softened_divergence_is_a_sum_over_classes_and_a_mean_over_places():
    student, teacher, temperature = rand(2, 3, 5), rand(2, 3, 5, seed=1), 2.0
    total = 0.0
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1), strict=True):
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        total += float(sum(p[k] * math.log(p[k] / q[k]) for k in range(5)))
    assert float(softened_divergence(student, teacher, temperature)) == pytest.approx(
        temperature**2 * total / 6, rel=1e-12
    )
    assert abs(float(softened_divergence(teacher, teacher, 3.0))) < 1e-14


def test_only_labelled_places_count_where_asked_but_the_cosine_counts_every_real_token():
    student, teacher, mine, theirs = rand(2, 3, 5), rand(2, 3, 5, seed=1), rand(2, 3, 4, seed=2), rand(2, 3, 4, seed=3)
    real = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    labels = torch.tensor([[-100, 2, -100], [1, -100, -100]])
    sides = (
        Activations(SimpleNamespace(prediction_logits=words), Encoded(states, hidden_states=(states,)), real, {}, ())
        for words, states in ((student, mine), (teacher, theirs))
    )
    seen = Comparison(*sides, {"labels": labels}, {}, 0, ((0, 0),))
    terms = {
        "logits": SoftTargets(form="squared", labelled_only=True).losses(seen)["soft_targets"][1],
        "divergence": SoftTargets(labelled_only=True).losses(seen)["soft_targets"][1],
        "cosine": LastStates(form="cosine").loss(seen),
    }
    places = [(0, 1), (1, 0)]
    squares = sum(float((student[p] - teacher[p]).square().sum()) for p in places) / 2
    assert float(terms["logits"]) == pytest.approx(squares, rel=1e-12)
    distributions = [(teacher[p].softmax(0), student[p].softmax(0)) for p in places]
    divergence = sum(float((p * (p / q).log()).sum()) for p, q in distributions) / 2
    assert float(terms["divergence"]) == pytest.approx(divergence, rel=1e-9)
    tokens = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    cosine = sum(1 - float(mine[p] @ theirs[p] / mine[p].norm() / theirs[p].norm()) for p in tokens) / 5
    assert float(terms["cosine"]) == pytest.approx(cosine, rel=1e-9)


def test_one_layer_learns_at_a_time_and_its_boundary_step_still_belongs_to_the_phase_before():
    gates = [transfer_gates(step, 3, 30) for step in (0, 1, 10, 11, 20, 21, 30, 31)]
    none, first, second, third = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    assert gates == [none, first, first, second, second, third, third, none]
    assert [transfer_rate(step, 1, 3, 30) for step in (10, 11, 20, 21)] == [0.0, 3.0, 3.0, 0.3]


@pytest.mark.parametrize("same_layer", [True, False])
def test_a_layer_is_held_against_its_own_statistics_or_against_those_of_all_layers(same_layer):
    student, teacher = [rand(1, 2, 3, seed=k) for k in range(3)], [rand(1, 2, 3, seed=9 + k) for k in range(3)]
    scores = [rand(1, 1, 2, 2, seed=20 + k) for k in range(4)]
    weights = TransferWeights(feature_map=1, attention=1, mean=1, variance=1)
    _, terms = transfer_losses(student, teacher, scores[:2], scores[2:], (0.0, 1.0), weights, same_layer=same_layer)
    held = [teacher[2]] if same_layer else teacher
    means = [float((h[0, t].mean() - student[2][0, t].mean()) ** 2) for h in held for t in range(2)]
    spread = [
        abs(float(h[0, t].var(correction=0) - student[2][0, t].var(correction=0))) for h in held for t in range(2)
    ]
    assert float(terms["mean"]) == pytest.approx(sum(means) / len(means) / 2, rel=1e-12)
    assert float(terms["variance"]) == pytest.approx(sum(spread) / len(spread) / 2, rel=1e-12)
    maps = -(scores[3].softmax(-1) * scores[1].log_softmax(-1)).sum(-1).mean() / 2
    assert float(terms["attention"]) == pytest.approx(float(maps), rel=1e-12)


def test_the_teacher_gets_no_gradient_and_soft_labels_are_a_distribution():
    teacher, student = rand(1, 2, 3).requires_grad_(), rand(1, 2, 3, seed=1).requires_grad_()
    softened_divergence(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    soft = soft_word_labels(torch.tensor([[0, 2]]), teacher)
    assert torch.allclose(soft.sum(-1), torch.ones(1, 2, dtype=torch.float64))
    assert float(soft[0, 0, 0]) == pytest.approx(0.5 + 0.5 * float(teacher.detach()[0, 0].softmax(0)[0]))
    assert not soft.requires_grad


def test_shapes_and_counts_that_do_not_match_are_refused_with_both():
    with pytest.raises(TaskError, match=r"\(1, 2, 3\) and \(1, 2, 4\)"):
        softened_divergence(rand(1, 2, 3), rand(1, 2, 4))
    with pytest.raises(TaskError, match="teacher_hidden must hold 3 tensors"):
        transfer_losses(
            [rand(1, 2, 3)] * 3, [rand(1, 2, 3)] * 2, [rand(1, 1, 2, 2)] * 2, [rand(1, 1, 2, 2)] * 2, (1.0, 0.0)
        )
    with pytest.raises(TaskError, match="every weight is 0"):
        SoftTargets(weight=0.0)
