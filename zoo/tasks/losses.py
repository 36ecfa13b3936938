"""Losses that tasks share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import TaskError

PROBLEM_TYPES = ("regression", "single-label", "multi-label")


def widened(logits: Tensor) -> Tensor:
    """Logits in float32 where they are narrower; float64 stays."""
    return logits if logits.dtype == torch.float64 else logits.float()


def token_cross_entropy(logits: Tensor, labels: Tensor, epsilon: float = 0.0) -> Tensor:
    """Mean negative log likelihood over the labels that are not -100.

    logits (..., classes), labels (...) int64. ``epsilon`` is added to the count, as BERT's and
    ALBERT's TensorFlow code does (1e-5). Without any label the loss is zero and has a gradient of
    zeros.
    """
    total = F.cross_entropy(widened(logits.flatten(0, -2)), labels.flatten(), ignore_index=-100, reduction="sum")
    count = (labels != -100).sum()
    return total / (count + epsilon if epsilon else count.clamp(min=1))


def problem_of(logits: Tensor, labels: Tensor, problem_type: str | None) -> str:
    """Which loss is meant: as stated, or judged by the number of outputs and the labels' dtype."""
    if problem_type not in (None, *PROBLEM_TYPES):
        raise TaskError(f"problem_type must be 'regression', 'single-label' or 'multi-label', got {problem_type!r}")
    return problem_type or (
        "regression" if logits.shape[-1] == 1 else "multi-label" if labels.is_floating_point() else "single-label"
    )


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Cross-entropy for integer labels (batch,), binary cross-entropy for float labels (batch,
    classes), mean squared error for one output.

    ``problem_type``: "regression", "single-label", "multi-label", or None, see `problem_of`.
    """
    problem_type = problem_of(logits, labels, problem_type)
    if problem_type == "regression":
        outputs = widened(logits).squeeze(-1)
        return F.mse_loss(outputs, labels.to(outputs.dtype).reshape(outputs.shape))
    if problem_type == "single-label":
        return F.cross_entropy(widened(logits), labels)
    return F.binary_cross_entropy_with_logits(widened(logits), labels.to(widened(logits).dtype))


def span_loss(
    start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor, real: Tensor | None = None
) -> Tensor:
    """Mean of the cross-entropies of an answer's first and last token over the real tokens;
    positions outside the text are left out.

    start_logits, end_logits (batch, length); start, end (batch,) int64; real (batch, length) bool,
    True = a real token, None where all are.
    """
    length = start_logits.shape[1]
    parts = []
    for logits, at in ((start_logits, start), (end_logits, end)):
        outside = (at < 0) | (at >= length)
        if real is not None:
            outside = outside | ~real.gather(1, at.clamp(0, length - 1)[:, None]).squeeze(1)
            logits = logits.masked_fill(~real, torch.finfo(logits.dtype).min)  # padding is no answer
        parts.append(token_cross_entropy(logits[:, None], torch.where(outside, -100, at)[:, None]))
    return (parts[0] + parts[1]) / 2


def label_smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float, *, reduction: str = "mean") -> Tensor:
    """``(1 - e - e/(V-1)) · -log p(label) + e/(V-1) · Σ_v -log p(v)`` over the labels that are not
    -100, as fairseq smooths.

    logits (..., V), labels (...) int64; reduction "mean" or "sum". The rest of the probability is
    spread over the V - 1 other classes.
    """
    if not 0 <= smoothing < 1:
        raise TaskError(f"smoothing={smoothing} must lie in [0, 1)")
    if reduction not in ("mean", "sum"):
        raise TaskError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    real = labels != -100
    surprise = -widened(logits)[real].log_softmax(-1)  # (labels, V)
    right = surprise.gather(1, labels[real][:, None]).sum()
    share = smoothing / (logits.shape[-1] - 1)
    total = (1 - smoothing - share) * right + share * surprise.sum()
    return total if reduction == "sum" else total / real.sum().clamp(min=1)


REGION_TARGETS = ("classes", "features", "contrastive")


def soft_answer_loss(logits: Tensor, labels: Tensor, kind: str = "bce") -> Tensor:
    """On soft scores (batch, answers): "bce" is binary cross entropy summed over answers, "kl" the
    KL divergence from the softmax; both are means over the batch.
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

    logits (batch, regions, size); labels (batch, regions) and targets (batch, regions, size), or
    one region fewer where region 0 is the whole picture, which is never predicted. ``target``:
    "classes", KL divergence from the detector's distribution; "features", mean squared error;
    "contrastive", the true feature among ``negatives`` (batch, regions, number), numbers into the
    batch's regions taken in a row (None: drawn, see `draw_negatives`). Without a region to predict
    the loss is zero and has a gradient of zeros.
    """
    if labels.shape[1] == logits.shape[1] - 1:
        logits = logits[:, 1:]
    if labels.shape != logits.shape[:2] or targets.shape[:2] != labels.shape or targets.shape[2] != logits.shape[2]:
        wanted = f"(batch, regions) and (batch, regions, {logits.shape[2]}) for {logits.shape[1]} regions or one fewer"
        raise TaskError(
            f"region_labels and region_targets must be {wanted}, got {tuple(labels.shape)} and {tuple(targets.shape)}"
        )
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
    each = F.cross_entropy(
        scores.flatten(0, 1), scores.new_zeros(scores.shape[:2], dtype=torch.long).flatten(), reduction="none"
    )
    return (each * chosen.flatten()).sum() / count


def draw_negatives(
    batch: int,
    regions: int,
    count: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Draw wrong regions: 70 % of ``count`` from other pictures, 30 % from the same one, each
    rounded down -> (batch, regions, number).
    """
    across, inside = int(count * 0.7), int(count * 0.3)

    def draw(high: int, number: int) -> Tensor:
        return torch.randint(0, max(high, 1), (batch, regions, number), generator=generator, device=device)

    return negatives_from(draw(batch - 1, across), draw(regions, across), draw(regions - 1, inside))


def negatives_from(row_across: Tensor, column_across: Tensor, column_inside: Tensor) -> Tensor:
    """From raw draws to numbers of regions, (batch, regions, number).

    Rows lie in 0..batch-2, and a picture's own number stands for the last picture; columns lie in
    0..regions-1. Inside the same picture columns lie in 0..regions-2, and a region's own number
    stands for the last region.
    """
    batch, regions = row_across.shape[:2]
    picture = torch.arange(batch, device=row_across.device)[:, None, None]
    region = torch.arange(regions, device=row_across.device)[None, :, None]
    row = torch.where(row_across == picture, batch - 1, row_across)
    column = torch.where(column_inside == region, regions - 1, column_inside)
    return torch.cat([row * regions + column_across, picture * regions + column], 2)
