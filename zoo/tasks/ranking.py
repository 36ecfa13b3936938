"""How well words and pictures match, learned from right and wrong pairs: losses over pairs that
compete, and the wrong ones that are hardest to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError, TaskError, unknown
from zoo.tasks.base import TaskModel, with_an_axis
from zoo.tasks.losses import IGNORED, binary_loss, check_labels, label_tensor, mean_of, one_of, row_loss, widened


def hinge_loss(logits: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    """``mean over wrong choices of max(0, margin + sigmoid(wrong) - sigmoid(right))``: UNITER's; logits
    (batch, choices), labels (batch,) the number of the right one, -100 = left out.
    """
    labels = label_tensor(labels)
    check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
    scores = widened(logits).sigmoid()
    place = labels.clamp(min=0)[:, None]  # (batch, 1)
    wrong = torch.ones_like(scores, dtype=torch.bool).scatter(1, place, False)
    return mean_of((margin + scores - scores.gather(1, place)).clamp(min=0), wrong & (labels != IGNORED)[:, None])


def hardest_loss(logits: Tensor, labels: Tensor, margin: float = 0.2) -> Tensor:
    """`hinge_loss` over the right choice and the wrong one that scores highest."""
    labels = label_tensor(labels)
    check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
    place = labels.clamp(min=0)[:, None]  # (batch, 1)
    hardest = logits.detach().scatter(1, place, -torch.inf).argmax(1, keepdim=True)
    return hinge_loss(logits.gather(1, torch.cat([place, hardest], 1)), labels.clamp(max=0), margin)


def _softmax(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    return row_loss(logits, labels)


def _binary_softmax(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Each pair alone, and the right one among all: ImageBERT's two losses added."""
    labels = label_tensor(labels)
    loss = row_loss(logits, labels)
    return loss + binary_loss(logits, one_of(labels, logits.shape[1]), None)


def circle_loss(right: Tensor, wrong: Tensor, margin: float = 0.2, scale: float = 32.0) -> Tensor:
    """Circle loss on scores of 0 to 1: ``mean log(1 + sum exp(g a_n (s_n - m)) · sum exp(-g a_p (s_p - (1 - m))))``
    with ``a_p = max(0, 1 + m - s_p)`` and ``a_n = max(0, s_n + m)``, through which no gradient goes.

    right (batch, right ones), wrong (batch, wrong ones), scores behind the sigmoid. ERNIE-ViL and UNIMO take it once
    with wrong pictures and once with wrong captions, and average.
    """
    return _circles(widened(right), widened(wrong), margin, scale).mean()


def _circles(right: Tensor, wrong: Tensor, margin: float, scale: float = 32.0) -> Tensor:
    """The circle loss of each row (batch,)."""
    near = scale * (1 + margin - right).clamp(min=0).detach() * (right - (1 - margin))
    far = scale * (wrong + margin).clamp(min=0).detach() * (wrong - margin)
    return F.softplus(far.logsumexp(1) + (-near).logsumexp(1))  # eq: circle


def _circle(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The right choice against all others; rows without one (-100) are left out."""
    labels = label_tensor(labels)
    check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
    scores, counted = widened(logits).sigmoid(), labels != IGNORED
    place = labels.clamp(min=0)[:, None]
    right = scores.gather(1, place)
    others = torch.arange(logits.shape[1] - 1, device=labels.device)[None].expand(len(labels), -1)
    wrong = scores.gather(1, others + (others >= place))
    return mean_of(_circles(right, wrong, margin), counted)


def several_right_loss(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """UNIMO's contrast: ``mean -log(sum over right choices of exp(s / t) / sum over all choices of exp(s / t))``, over
    the rows that have a right choice.

    logits (batch, choices); labels (batch, choices): 1 = right, 0 = wrong, -100 = left out, such as padding of rows
    with fewer rewritten texts; or (batch,), the number of the one right choice.
    """
    labels = label_tensor(labels)
    if labels.dim() == 1:
        check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
        labels = one_of(labels, logits.shape[1])
    check_labels(labels, tuple(logits.shape), "labels", 2, integers=True)
    scores = widened(logits) / temperature
    right = scores.masked_fill(labels != 1, -torch.inf)
    every = scores.masked_fill(labels == IGNORED, -torch.inf)
    found = (labels == 1).any(1)
    losses = every[found].logsumexp(1) - right[found].logsumexp(1)  # eq: contrast
    return losses.sum() / found.sum().clamp(min=1)


def _contrast(logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    return several_right_loss(logits, labels)


RANKING_LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "softmax": _softmax,
    "hinge": hinge_loss,
    "circle": _circle,
    "hardest": hardest_loss,
    "binary-softmax": _binary_softmax,
    "contrast": _contrast,
}
"""Over (batch, choices) logits, of which labels (batch,) tell the right one, for "contrast" also (batch, choices) the
right ones; the last argument is the margin."""


def check_ranking(options: Mapping[str, Any]) -> None:
    """Refuse a ``ranking`` that is none of the `RANKING_LOSSES`, and a margin that is no number from 0."""
    if options["ranking"] is not None and options["ranking"] not in RANKING_LOSSES:
        raise unknown("ranking loss", options["ranking"], RANKING_LOSSES)
    margin = options["margin"]
    if not isinstance(margin, int | float) or isinstance(margin, bool) or not 0 <= margin < math.inf:
        raise ConfigError(f"margin must be a number of 0 or more, got {margin!r}")


def ranking_loss(kind: str, logits: Tensor, labels: Tensor, margin: float) -> Tensor:
    """One of the `RANKING_LOSSES`."""
    return RANKING_LOSSES[kind](logits, labels, margin)


def hard_negatives(
    model: TaskModel, inputs: Mapping[str, Any], labels: Tensor, number: int
) -> tuple[dict[str, Any], Tensor]:
    """Of the choices of each row the right one and the ``number`` wrong ones that the model, in eval
    mode and without gradient, scores highest -> inputs with (batch, 1 + number, ...) choices, the right
    one first, and labels (batch,) of zeros.

    model: of the task image-text-retrieval. Inputs that all choices share (batch, length) stay as they
    are. labels (batch,): the number of the right choice.
    """
    names = with_an_axis(model.model, inputs)
    if not names:
        raise InputError("inputs must have choices: (batch, choices, ...) of texts or of pictures")
    choices = int(inputs[names[0]].shape[1])
    labels = label_tensor(labels)
    check_labels(labels, (inputs[names[0]].shape[0],), "labels", choices, integers=True)
    if bool((labels == IGNORED).any()):
        raise TaskError("each row must have a right choice here; leave rows without one (-100) out")
    if not 1 <= number < choices:
        raise InputError(f"number must lie in 1..{choices - 1}, the wrong choices of a row, got {number}")
    was_training = model.training
    try:
        with torch.no_grad():
            scores = model.eval()(**inputs).logits.clone()  # (batch, choices)
    finally:
        model.train(was_training)
    hardest = scores.scatter(1, labels[:, None], -torch.inf).topk(number, 1).indices
    kept = torch.cat([labels[:, None], hardest], 1)  # (batch, 1 + number)
    rows = torch.arange(len(kept), device=kept.device)[:, None]
    return {**inputs, **{name: inputs[name][rows, kept] for name in names}}, torch.zeros_like(labels)
