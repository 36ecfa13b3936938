"""Contrastive losses against loops over pairs in float64, and in two processes against one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.processes import in_processes
from zoo.errors import InputError, UnknownNameError
from zoo.tasks import contrast
from zoo.tasks.ranking import ranking_loss

ROWS, SIZE = 5, 4


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a: Tensor, b: Tensor) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def log_share(scores: list[float], right: int) -> float:
    return scores[right] - math.log(sum(math.exp(score) for score in scores))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clip_loss_is_two_cross_entropies(smoothing):
    image, text, total = vectors(ROWS, SIZE), vectors(ROWS, SIZE, seed=1), 0.0
    for queries, keys in ((image, text), (text, image)):
        for i in range(ROWS):
            scores = [1.7 * dot(queries[i], keys[j]) for j in range(ROWS)]
            target = [smoothing / ROWS + (1 - smoothing) * (j == i) for j in range(ROWS)]
            total -= sum(t * log_share(scores, j) for j, t in enumerate(target)) / (2 * ROWS)
    assert float(contrast.clip_loss(image, text, 1.7, smoothing=smoothing)) == pytest.approx(total, rel=1e-12)


def test_sigmoid_loss_asks_of_each_pair_whether_it_is_one():
    image, text, total = vectors(ROWS, SIZE), vectors(ROWS, SIZE, seed=1), 0.0
    for i in range(ROWS):
        for j in range(ROWS):
            score = (2.1 * dot(image[i], text[j]) - 0.7) * (1 if i == j else -1)
            total += math.log(1 + math.exp(-score)) / ROWS
    assert float(contrast.sigmoid_loss(image, text, 2.1, -0.7)) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("kind", ["hinge", "hardest", "circle"])
def test_ranked_loss_goes_both_ways(kind):
    image, text = vectors(ROWS, SIZE), vectors(ROWS, SIZE, seed=1)
    scores = torch.tensor([[3 * dot(i, t) for t in text] for i in image], dtype=torch.float64)
    ways = [ranking_loss(kind, x, torch.arange(ROWS), 0.3) for x in (scores, scores.T.contiguous())]
    assert torch.allclose(contrast.ranked_loss(image, text, kind, 0.3, 3.0), sum(ways) / 2, rtol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_nt_xent_is_over_all_other_views(normalize):
    first, second = vectors(ROWS, SIZE), vectors(ROWS, SIZE, seed=1)
    views, likeness = [*first, *second], cosine if normalize else dot
    summed = 0.0
    for i, view in enumerate(views):
        others = [j for j in range(2 * ROWS) if j != i]
        scores = [likeness(view, views[j]) / 0.5 for j in others]
        summed -= log_share(scores, others.index((i + ROWS) % (2 * ROWS)))
    found = {
        scale: float(contrast.nt_xent(first, second, 0.5, normalize=normalize, scale=scale))
        for scale in ("mean", "both", "sum")
    }
    assert found == pytest.approx({"mean": summed / (2 * ROWS), "both": summed / ROWS, "sum": summed}, rel=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_queue_loss_has_the_own_key_and_the_queue(normalize):
    query, key, queue = vectors(ROWS, SIZE), vectors(ROWS, SIZE, seed=1), vectors(7, SIZE, seed=2)
    unit = torch.nn.functional.normalize
    total = 0.0
    for i in range(ROWS):
        q, k = (unit(x[i], dim=0) if normalize else x[i] for x in (query, key))
        total -= log_share([dot(q, k) / 0.3, *(dot(q, old) / 0.3 for old in queue)], 0)
    mean, summed = (
        float(contrast.queue_loss(query, key, queue, 0.3, normalize=normalize, reduction=reduction))
        for reduction in ("mean", "sum")
    )
    assert (mean, summed) == pytest.approx((total / ROWS, total), rel=1e-12)


def test_noise_contrast_tells_the_right_sample_from_uniform_noise():
    own, noise = vectors(ROWS, 1).exp(), vectors(ROWS, 6, seed=1).exp()
    right = -sum(math.log(float(p) / (float(p) + 6 / 50 + 1e-7)) for p in own) / ROWS
    wrong = -sum(math.log(6 / 50 / (float(p) + 6 / 50 + 1e-7)) for row in noise for p in row) / ROWS
    found = contrast.noise_contrast(own, noise, 50)
    assert [float(x) for x in found] == pytest.approx([right, wrong], rel=1e-12)


SHARES = ([0, 1], [2, 3, 4])  # rows of each of two processes: not as many


def losses(rows: slice | list[int]) -> dict[str, list[Tensor]]:
    """Every loss over some rows, and its gradients by all rows: what is averaged over processes."""
    queue, found = vectors(7, SIZE, seed=2), {}
    calls = {
        "clip": lambda a, b: contrast.clip_loss(a, b, 1.7, 0.2, smoothing=0.1),
        "sigmoid": lambda a, b: contrast.sigmoid_loss(a, b, 1.7, -0.3),
        "circle": lambda a, b: contrast.ranked_loss(a, b, "circle"),
        "nt-xent": lambda a, b: contrast.nt_xent(a, b, 0.5),
        "nt-xent both": lambda a, b: contrast.nt_xent(a, b, 0.5, scale="both"),
        "nt-xent sum": lambda a, b: contrast.nt_xent(a, b, 0.5, scale="sum"),
        "queue": lambda a, b: contrast.queue_loss(a, b, queue, 0.3),
        "queue sum": lambda a, b: contrast.queue_loss(a, b, queue, 0.3, reduction="sum"),
    }
    for name, call in calls.items():
        whole = [vectors(ROWS, SIZE).requires_grad_(), vectors(ROWS, SIZE, seed=1).requires_grad_()]
        loss = call(*(x[rows] for x in whole))
        loss.backward()
        found[name] = [loss.detach(), *(x.grad for x in whole)]
    return found


def test_two_processes_with_unequal_rows_have_the_loss_and_gradients_of_one():
    alone, parts = losses(slice(None)), in_processes(lambda rank: losses(SHARES[rank]))
    for name, wanted in alone.items():
        for one, left, right in zip(wanted, *(part[name] for part in parts), strict=True):
            assert torch.allclose((left + right) / 2, one, atol=1e-12), name


def test_bad_input_is_refused():
    image, text = vectors(ROWS, SIZE), vectors(ROWS - 1, SIZE)
    with pytest.raises(InputError, match=r"\(5, 4\) and \(4, 4\)"):
        contrast.clip_loss(image, text, 1.0)
    with pytest.raises(InputError, match=r"square.*\(5, 4\)"):
        contrast.matched_loss(image)
    with pytest.raises(InputError, match="temperature"):
        contrast.nt_xent(image, image, 0.0)
    with pytest.raises(UnknownNameError, match="both"):
        contrast.nt_xent(image, image, scale="bot")
    with pytest.raises(UnknownNameError, match="circle"):
        contrast.ranked_loss(image, image, "circel")
    with pytest.raises(InputError, match=r"queue must be \(keys, 4\), got \(4, 7\)"):
        contrast.queue_loss(image, image, vectors(SIZE, 7), 1.0)
