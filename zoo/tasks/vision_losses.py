"""Losses of tasks over pictures and words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import TaskError
from zoo.tasks.losses import widened

REGION_TARGETS = ("classes", "features", "contrastive")


def soft_answer_loss(logits: Tensor, labels: Tensor, kind: str = "bce") -> Tensor:
    """On soft scores (batch, answers): "bce" is binary cross entropy summed over answers, "kl" the KL divergence from the softmax; both are
    means over the batch.
    """
    logits = widened(logits)
    labels = labels.to(logits.dtype)
    if kind == "kl":
        return F.kl_div(logits.log_softmax(-1), labels, reduction="batchmean")
    return F.binary_cross_entropy_with_logits(logits, labels) * labels.shape[1]


def region_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    target: str = "classes",
    num_negatives: int = 128,
    negatives: Tensor | None = None,
) -> Tensor:
    """The loss of masked regions over those with label 1.

    logits (batch, regions, size); labels (batch, regions) and targets (batch, regions, size), or one region fewer where region 0 is the
    whole picture, which is never predicted. ``target``: "classes", KL divergence from the detector's distribution; "features", mean squared
    error; "contrastive", the true feature among ``negatives`` (batch, regions, number), numbers into the batch's regions taken in a row
    (None: drawn, see `draw_negatives`). Without a region to predict the loss is zero and has a gradient of zeros.
    """
    if labels.shape[1] == logits.shape[1] - 1:
        logits = logits[:, 1:]
    if labels.shape != logits.shape[:2] or targets.shape[:2] != labels.shape or targets.shape[2] != logits.shape[2]:
        wanted = f"(batch, regions) and (batch, regions, {logits.shape[2]}) for {logits.shape[1]} regions or one fewer"
        raise TaskError(f"region_labels and region_targets must be {wanted}, got {tuple(labels.shape)} and {tuple(targets.shape)}")
    chosen = labels == 1
    count = chosen.sum().clamp(min=1)
    logits = widened(logits)
    targets = targets.to(logits.dtype)
    if target == "classes":
        divergence = F.kl_div(logits.log_softmax(-1), targets, reduction="none").sum(2)
        return (divergence * chosen).sum() / count
    if target == "features":
        return (((logits - targets) ** 2).mean(2) * chosen).sum() / count
    if target != "contrastive":
        raise TaskError(f"region_target must be one of {', '.join(REGION_TARGETS)}, got {target!r}")
    if negatives is None:
        negatives = draw_negatives(labels.shape[0], labels.shape[1], num_negatives, device=logits.device)
    wrong = targets.flatten(0, 1)[negatives]  # (batch, regions, negatives, size)
    samples = torch.cat([targets.unsqueeze(2), wrong], 2)
    scores = torch.einsum("brns,brs->brn", samples, logits)
    each = F.cross_entropy(scores.flatten(0, 1), scores.new_zeros(scores.shape[:2], dtype=torch.long).flatten(), reduction="none")
    return (each * chosen.flatten()).sum() / count


def draw_negatives(
    batch: int, regions: int, count: int, *, generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Draw wrong regions: 70 % of ``count`` from other pictures, 30 % from the same one, each rounded down -> (batch, regions, number)."""
    across, inside = int(count * 0.7), int(count * 0.3)

    def draw(high: int, number: int) -> Tensor:
        return torch.randint(0, max(high, 1), (batch, regions, number), generator=generator, device=device)

    return negatives_from(draw(batch - 1, across), draw(regions, across), draw(regions - 1, inside))


def negatives_from(row_across: Tensor, column_across: Tensor, column_inside: Tensor) -> Tensor:
    """From raw draws to numbers of regions, (batch, regions, number).

    Rows lie in 0..batch-2, and a picture's own number stands for the last picture; columns lie in 0..regions-1. Inside the same picture
    columns lie in 0..regions-2, and a region's own number stands for the last region.
    """
    batch, regions = row_across.shape[:2]
    picture = torch.arange(batch, device=row_across.device)[:, None, None]
    region = torch.arange(regions, device=row_across.device)[None, :, None]
    row = torch.where(row_across == picture, batch - 1, row_across)
    column = torch.where(column_inside == region, regions - 1, column_inside)
    return torch.cat([row * regions + column_across, picture * regions + column], 2)
