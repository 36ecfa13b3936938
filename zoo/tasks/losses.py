"""Losses that tasks share, and those that terms of an objective name (`LOSSES`).

A label does not count where it is -100, or where its own axis' mask says padding; a mean is over the
labels that count, and zero, with a gradient of zeros, where none does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError, TaskError
from zoo.layers.padding import at_hand

IGNORED = -100
FAR = -10_000.0  # what a padded place scores where places compete; finite, so that losses over all places stay so
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
    labels = counted_labels(labels)
    total = F.cross_entropy(  # eq: tokens
        widened(logits.flatten(0, -2)), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    count = (labels != -100).sum()  # eq: tokens
    return total / (count + epsilon if epsilon else count.clamp(min=1))  # eq: tokens


def label_tensor(labels: Tensor, name: str = "labels") -> Tensor:
    """Labels as losses take them: integers of whatever width as int64, bool and floats as they are.
    What is no tensor, or complex, is refused.
    """
    if not isinstance(labels, Tensor):
        raise TaskError(f"{name} must be a tensor, got {type(labels).__name__}; torch.tensor(...) makes one")
    if labels.is_complex():
        raise TaskError(f"{name} must hold integers or floats, got {labels.dtype}")
    return labels if labels.is_floating_point() or labels.dtype == torch.bool else labels.long()


def finite_labels(labels: Tensor, name: str = "labels") -> Tensor:
    """The labels that count, which must be finite: of others nothing is known but that they are left
    out.
    """
    if labels.is_floating_point() and at_hand(labels) and not bool(labels.isfinite().all()):
        raise TaskError(f"{name} must be finite; some are NaN or infinite")
    return labels


def counted_labels(labels: Tensor) -> Tensor:
    """The same with bool as 0 and 1, so that some may be -100."""
    labels = label_tensor(labels)
    return labels.long() if labels.dtype == torch.bool else labels


def real_labels(labels: Tensor, real: Tensor | None) -> Tensor:
    """Labels with those at padding left out; ``real`` (batch, positions) bool, None = all."""
    labels = counted_labels(labels)
    if real is None:
        return labels
    return labels.masked_fill(~real.unflatten(1, (-1, *[1] * (labels.dim() - 2))), IGNORED)


def mean_of(losses: Tensor, counted: Tensor) -> Tensor:
    """The mean of those losses that count, zero where none does; (...) and (...) bool."""
    return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)


def over_real(losses: Tensor, real: Tensor | None) -> Tensor:
    """The sum of losses, zero where they don't count, divided by the number of ``real`` places (None: all)."""
    return losses.sum() / (losses.numel() if real is None else real.sum().clamp(min=1))


def one_of(labels: Tensor, choices: int) -> Tensor:
    """Numbers of the right choice (batch,) as (batch, choices) of 1 and 0, -100 where the number is."""
    numbers = torch.arange(choices, device=labels.device)
    return torch.where(labels[:, None] == IGNORED, IGNORED, (numbers == labels[:, None]).long())


def check_labels(
    labels: Tensor, shape: tuple[int, ...], name: str, classes: int | None = None, *, integers: bool = False
) -> None:
    """Refuse labels of another shape, or integer ones outside 0..classes-1 (-100 excepted). Values
    are looked at on CPU only.
    """
    labels = label_tensor(labels, name)
    if tuple(labels.shape) != shape:
        raise TaskError(f"{name} must have shape {shape}, got {tuple(labels.shape)}")
    if (integers or classes is not None) and labels.is_floating_point():
        raise TaskError(f"{name} must hold integers, got {labels.dtype}")
    if classes is not None and labels.dtype == torch.bool:
        check_truths(name, classes)
        return
    if classes is None or not at_hand(labels):
        return
    real = labels[labels != IGNORED]
    if real.numel() and not (int(real.min()) >= 0 and int(real.max()) < classes):
        raise TaskError(
            f"{name} must lie in 0..{classes - 1} (or be -100 to be left out), got {int(real.min())}..{int(real.max())}"
        )


def check_truths(name: str, classes: int) -> None:
    """Refuse bool labels of more than two classes."""
    if classes > 2:
        raise TaskError(f"{name} must hold integers from 0 to {classes - 1}, got torch.bool, which tells two apart")


def token_loss(logits: Tensor, labels: Tensor, real: Tensor | None, name: str = "labels") -> Tensor:
    """`token_cross_entropy` over the real positions: logits (batch, positions, classes), labels
    (batch, positions).
    """
    labels = label_tensor(labels, name)
    if labels.dtype == torch.bool:
        check_truths(name, logits.shape[-1])
    if labels.shape != logits.shape[:-1]:
        check_labels(labels, tuple(logits.shape[:-1]), name)
    labels = real_labels(labels, real)
    check_labels(labels, tuple(logits.shape[:-1]), name, logits.shape[-1])
    return token_cross_entropy(logits, labels)


def next_labels(labels: Tensor, real: Tensor | None) -> Tensor:
    """The label of the next real token at each token, -100 at the last one and at padding; labels
    (batch, length), ``real`` (batch, length) bool, None = all.
    """
    labels = real_labels(labels, real)
    ended = labels.new_full((len(labels), 1), IGNORED)
    if real is None:
        return torch.cat([labels[:, 1:], ended], 1)  # eq: next-tokens
    length = labels.shape[1]
    columns = torch.arange(length, device=labels.device).expand_as(labels)
    later = columns.masked_fill(~real, length).flip(1).cummin(1).values.flip(1)  # the next real column from each on
    later = torch.cat([later[:, 1:], later.new_full((len(labels), 1), length)], 1)
    return torch.cat([labels, ended], 1).gather(1, later).masked_fill(~real, IGNORED)  # eq: next-tokens


def row_loss(logits: Tensor, labels: Tensor, name: str = "labels") -> Tensor:
    """Mean cross-entropy of one label a row, -100 left out: logits (batch, classes), labels (batch,)."""
    check_labels(labels, (logits.shape[0],), name, logits.shape[1])
    return token_cross_entropy(logits, labels)


def binary_loss(logits: Tensor, labels: Tensor, real: Tensor | None, epsilon: float = 0.0) -> Tensor:
    """Mean binary cross-entropy over the labels that count, of the shape of the logits; ``epsilon``
    is added to their number, as ELECTRA's TensorFlow code does (1e-6).
    """
    logits, labels = widened(logits), label_tensor(labels)
    counted = labels != IGNORED if real is None else (labels != IGNORED) & real.bool()
    wanted = finite_labels(torch.where(counted, labels, 0)).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    if not epsilon:
        return mean_of(losses, counted)
    weights = counted.to(losses.dtype)
    return (losses * weights).sum() / (weights.sum() + epsilon)


def span_boundary_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """The sum over the labels that are not -100, divided by their number plus one."""
    labels = counted_labels(labels)
    total = F.cross_entropy(  # eq: span-boundary
        widened(scores).flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return total / ((labels != -100).sum() + 1)  # eq: span-boundary


def linking_loss(kind: str, scores: Tensor, ids: Tensor, gold: Tensor, margin: float = 0.2) -> Tensor:
    """How well candidates are told apart; scores and ids (batch, spans, candidates), gold (batch,
    spans), the true entity's id.

    "margin": mean over all candidates of ``max(0, margin - score)`` for the true one, ``max(0,
    margin + score)`` for others. "softmax": negative log likelihood of the true one, over the spans
    that have candidates. Spans whose gold is -100 are left out.
    """
    true = ids == gold.unsqueeze(2)
    told = (gold != IGNORED).unsqueeze(2) & (ids > 0)  # (batch, spans, candidates)
    if kind == "margin":
        signed = torch.where(true, -scores, scores)
        return mean_of((signed + margin).clamp(min=0), told)
    return token_cross_entropy(scores, true.int().argmax(2).masked_fill(~told.any(2), IGNORED))


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
    labels = label_tensor(labels)
    problem_type = problem_of(logits, labels, problem_type)
    if problem_type == "regression":
        outputs = widened(logits).squeeze(-1)
        return F.mse_loss(outputs, finite_labels(labels).to(outputs.dtype).reshape(outputs.shape))
    if problem_type == "single-label":
        return token_cross_entropy(logits, labels)
    return binary_loss(logits, labels, None)


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
    for logits, at in ((start_logits, label_tensor(start)), (end_logits, label_tensor(end))):
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
    labels = counted_labels(labels)
    real = labels != -100
    surprise = -widened(logits)[real].log_softmax(-1)  # (labels, V)  # eq: smoothed
    right = surprise.gather(1, labels[real][:, None]).sum()  # eq: smoothed
    share = smoothing / (logits.shape[-1] - 1)  # eq: smoothed
    total = (1 - smoothing - share) * right + share * surprise.sum()  # eq: smoothed
    return total if reduction == "sum" else total / real.sum().clamp(min=1)


def kept_token_loss(logits: Tensor, labels: Tensor, drop_worst: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """VLP's loss of words: the sum over each text's labels that are not -100, over the texts that are
    kept, divided by their labels + 1e-5. The share ``drop_worst`` of the texts, those of the largest
    sums, is left out.

    logits (batch, positions, V), labels (batch, positions). ``label_smoothing``: the KL divergence from
    a target that spreads it over all ids but the label and id 0.
    """
    labels = counted_labels(labels)
    counted = labels != IGNORED
    logp, right = widened(logits).log_softmax(-1), labels.clamp(min=0).unsqueeze(-1)
    each = -logp.gather(-1, right).squeeze(-1)  # (batch, positions)  # eq: kept-tokens
    if label_smoothing:
        share = label_smoothing / (logits.shape[-1] - 2)
        target = torch.full_like(logp, share)
        target[..., 0] = 0
        target = target.scatter(-1, right, 1 - label_smoothing)
        each = (torch.xlogy(target, target) - target * logp).sum(-1)
    sums, counts = torch.where(counted, each, 0).sum(1), counted.sum(1)  # eq: kept-tokens
    kept, texts = sums.topk(int(len(sums) * (1 - drop_worst)), largest=False)  # eq: kept-tokens
    return kept.sum() / (counts[texts].sum() + 1e-5)  # eq: kept-tokens


def smoothed_token_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, drop_worst: float = 0.0
) -> Tensor:
    """Oscar's loss of captions: the mean, over the labels that are not -100, of the KL divergence from a
    target with ``1 - e`` at the label and ``e / (V - 1)`` at each other id. The share ``drop_worst`` of
    the labels, those of the largest losses, is left out, but never all.

    logits (..., V), labels (...). With neither it is `token_cross_entropy`.
    """
    if not label_smoothing and not drop_worst:
        return token_cross_entropy(logits, labels)
    labels = counted_labels(labels)
    counted = labels != IGNORED
    logp, right = widened(logits)[counted].log_softmax(-1), labels[counted].unsqueeze(-1)  # (labels, V)
    keep, others = 1 - label_smoothing, logits.shape[-1] - 1
    share = label_smoothing / others
    entropy = -keep * math.log(keep) - (label_smoothing * math.log(share) if share else 0.0)  # eq: smoothed-tokens
    right_logp = logp.gather(-1, right).squeeze(-1)
    each = -(keep - share) * right_logp - share * logp.sum(-1) - entropy  # eq: smoothed-tokens
    if drop_worst and len(each):
        each = each.topk(max(1, int(len(each) * (1 - drop_worst))), largest=False).values  # eq: smoothed-tokens
    return each.sum() / max(1, len(each)) if len(each) else logits.sum() * 0


REGION_TARGETS = ("classes", "features", "contrastive")


def soft_answer_loss(logits: Tensor, labels: Tensor, kind: str = "bce", real: Tensor | None = None) -> Tensor:
    """On soft scores (batch, answers): "bce" is binary cross entropy summed over answers, "kl" the
    KL divergence from the softmax; both are means over the rows with an answer that counts: none
    that is -100, none that is not ``real`` (batch, answers).
    """
    logits, labels = widened(logits), label_tensor(labels)
    counted = labels != IGNORED if real is None else (labels != IGNORED) & real
    wanted = finite_labels(torch.where(counted, labels, 0)).to(logits.dtype)
    if kind == "kl":
        each = F.kl_div(logits.log_softmax(-1), wanted, reduction="none")
    else:
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return torch.where(counted, each, 0).sum() / counted.any(1).sum().clamp(min=1)


def region_loss(
    logits: Tensor,
    labels: Tensor,
    targets: Tensor,
    target: str = "classes",
    num_negatives: int = 128,
    negatives: Tensor | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """The loss of masked regions over those with label 1 that are ``real`` (batch, regions).

    logits (batch, regions, size); labels (batch, regions) and targets (batch, regions, size), or
    one region fewer where region 0 is the whole picture, which is never predicted. ``target``:
    "classes", KL divergence from the detector's distribution; "features", mean squared error;
    "contrastive", the true feature among ``negatives`` (batch, regions, number), numbers into the
    batch's regions taken in a row (None: drawn, see `draw_negatives`). Without a region to predict
    the loss is zero and has a gradient of zeros.
    """
    if labels.shape[1] == logits.shape[1] - 1:
        logits = logits[:, 1:]
        real = None if real is None else real[:, 1:]
    if labels.shape != logits.shape[:2] or targets.shape[:2] != labels.shape or targets.shape[2] != logits.shape[2]:
        wanted = f"(batch, regions) and (batch, regions, {logits.shape[2]}) for {logits.shape[1]} regions or one fewer"
        raise TaskError(
            f"region_labels and region_targets must be {wanted}, got {tuple(labels.shape)} and {tuple(targets.shape)}"
        )
    chosen = labels == 1 if real is None else (labels == 1) & real
    count = chosen.sum().clamp(min=1)
    logits = widened(logits)
    targets = targets.to(logits.dtype)
    if target != "contrastive":
        targets = finite_labels(targets.masked_fill(~chosen.unsqueeze(2), 0), "region_targets")  # 0 at padding
    if target == "classes":
        divergence = F.kl_div(logits.log_softmax(-1), targets, reduction="none").sum(2)  # eq: region-classes
        return (divergence * chosen).sum() / count  # eq: region-classes
    if target == "features":
        return (((logits - targets) ** 2).mean(2) * chosen).sum() / count
    if target != "contrastive":
        raise TaskError(f"region_target must be one of {', '.join(REGION_TARGETS)}, got {target!r}")
    if negatives is None:
        negatives = draw_negatives(labels.shape[0], labels.shape[1], num_negatives, device=logits.device)
    wrong = targets.flatten(0, 1)[negatives]  # (batch, regions, negatives, size)
    samples = torch.cat([targets.unsqueeze(2), wrong], 2)
    finite_labels(samples.masked_fill(~chosen[:, :, None, None], 0), "region_targets")
    scores = torch.einsum("brns,brs->brn", samples, logits)
    each = F.cross_entropy(
        scores.flatten(0, 1), scores.new_zeros(scores.shape[:2], dtype=torch.long).flatten(), reduction="none"
    )
    return (each * chosen.flatten()).sum() / count


def weighted_class_loss(logits: Tensor, labels: Tensor, weights: Tensor, real: Tensor | None = None) -> Tensor:
    """``mean of weight · -log p(label)`` over all real regions, LXMERT's loss of classes: a label that
    is -100 adds nothing, and counts in the mean.

    logits (batch, regions, classes); labels, weights and real (batch, regions).
    """
    labels = real_labels(labels, real)
    logits = widened(logits)
    rows = logits.flatten(0, -2), labels.flatten()
    each = F.cross_entropy(*rows, ignore_index=IGNORED, reduction="none")  # eq: weighted-classes
    weights = finite_labels(weights.masked_fill(labels == IGNORED, 0), "the confidences").to(logits.dtype)
    return over_real(each * weights.flatten(), real)


def masked_feature_loss(logits: Tensor, labels: Tensor, targets: Tensor, real: Tensor | None = None) -> Tensor:
    """LXMERT's regression: the smooth L1 distance to each region's feature, averaged over its
    dimensions, summed over the regions with label 1 and divided by the number of all real regions.

    logits and targets (batch, regions, size); labels and real (batch, regions).
    """
    chosen = labels == 1 if real is None else (labels == 1) & real
    logits = widened(logits)
    targets = finite_labels(targets.masked_fill(~chosen.unsqueeze(2), 0), "region_targets").to(logits.dtype)
    each = F.smooth_l1_loss(logits, targets, reduction="none").mean(2)  # eq: masked-features
    return over_real(each * chosen, real)


CLASS_LOSSES = ("distribution", "likeliest")


def predicted_regions(region_labels: Tensor | None, targets: Tensor, real: Tensor | None) -> Tensor:
    """(batch, regions) bool: those with label 1 that are ``real`` and whose target is not -100."""
    if region_labels is None:
        raise InputError("targets of regions were given without region_labels, which say which regions count (1)")
    check_labels(region_labels, tuple(targets.shape[:2]), "region_labels")
    left_out = (targets == IGNORED).flatten(2).any(2) if targets.dim() > 2 else targets == IGNORED
    chosen = (label_tensor(region_labels, "region_labels") == 1) & ~left_out
    return chosen if real is None else chosen & real


def region_feature_loss(
    predicted: Tensor, targets: Tensor, region_labels: Tensor | None, real: Tensor | None = None
) -> Tensor:
    """``mean over chosen regions and numbers of (predicted - feature)²``; predicted and targets (batch,
    regions, size).
    """
    check_labels(targets, tuple(predicted.shape), "feature_targets")
    chosen = predicted_regions(region_labels, targets, real)
    wanted = finite_labels(targets.masked_fill(~chosen.unsqueeze(2), 0), "feature_targets")
    squares = (widened(predicted) - wanted.to(widened(predicted).dtype)) ** 2
    return mean_of(squares, chosen.unsqueeze(2).expand_as(squares))


def region_class_loss(
    logits: Tensor,
    targets: Tensor,
    region_labels: Tensor | None,
    kind: str = "distribution",
    real: Tensor | None = None,
) -> Tensor:
    """What the detector said of the chosen regions; logits (batch, regions, classes).

    targets (batch, regions) int: cross entropy. (batch, regions, classes) float: "distribution", the
    KL divergence, each class's part a number of its own in the mean over regions and classes;
    "likeliest", cross entropy with the likeliest class but class 0, the background.
    """
    logits, targets = widened(logits), label_tensor(targets, "class_targets")
    if not targets.is_floating_point():
        check_labels(targets, tuple(logits.shape[:2]), "class_targets")
        chosen = predicted_regions(region_labels, targets, real)
        return token_loss(logits, targets.masked_fill(~chosen, IGNORED), None, "class_targets")
    check_labels(targets, tuple(logits.shape), "class_targets")
    chosen = predicted_regions(region_labels, targets, real)
    wanted = finite_labels(targets.masked_fill(~chosen.unsqueeze(2), 0), "class_targets").to(logits.dtype)
    if kind == "likeliest":
        return token_cross_entropy(logits, (wanted[..., 1:].argmax(2) + 1).masked_fill(~chosen, IGNORED))
    divergence = F.kl_div(logits.log_softmax(-1), wanted, reduction="none")
    return mean_of(divergence, chosen.unsqueeze(2).expand_as(divergence))


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


# --- the losses that terms name: (the labels' name, scores, labels, which positions are real, what they read besides)


def _tokens(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    return token_loss(scores, labels, real, name)


def _next_tokens(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    labels = label_tensor(labels, name)
    check_labels(labels, tuple(scores.shape[:-1]), name, integers=True)
    return token_loss(scores, next_labels(labels, real), None, name)


def _kept_tokens(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    return kept_token_loss(scores, _word_labels(name, scores, labels, real), **beside)


def _smoothed_tokens(
    name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]
) -> Tensor:
    return smoothed_token_loss(scores, _word_labels(name, scores, labels, real), **beside)


LOSS_AVERAGES = ("labels", "samples")


def averaged(losses: Tensor, counted: Tensor, average: str) -> Tensor:
    """The mean of the losses (batch, places) that count: over all of them ("labels"), or over each row's and
    then over the rows that have some, 0.0001 added to each number ("samples": VL-BERT's option).
    """
    if average == "labels":
        return mean_of(losses, counted)
    numbers = counted.sum(1)
    rows = torch.where(counted, losses, 0).sum(1) / (numbers + 1e-4)
    return rows.sum() / ((numbers > 0).sum() + 1e-4)


def _averaged_tokens(
    name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]
) -> Tensor:
    labels = _word_labels(name, scores, labels, real)
    losses = F.cross_entropy(widened(scores).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return averaged(losses.view(labels.shape), labels != IGNORED, beside["loss_average"])


def _soft_classes(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    """The cross-entropy to distributions over classes, of the places with label 1."""
    targets = beside["region_targets"]
    if targets is None:
        raise InputError(f"{name} say which regions count; give region_targets too: what they were")
    targets = label_tensor(targets, "region_targets")
    check_labels(labels, tuple(scores.shape[:2]), name)
    check_labels(targets, tuple(scores.shape), "region_targets")
    counted = labels == 1 if real is None else (labels == 1) & real
    scores = widened(scores)
    wanted = finite_labels(targets.masked_fill(~counted.unsqueeze(2), 0), "region_targets").to(scores.dtype)
    losses = -(wanted * scores.log_softmax(2)).sum(2)  # eq: soft-classes
    return averaged(losses, counted, beside["loss_average"])  # eq: soft-classes


def _word_labels(name: str, scores: Tensor, labels: Tensor, real: Tensor | None) -> Tensor:
    """Checked labels of words, those at padding left out."""
    labels = label_tensor(labels, name)
    check_labels(labels, tuple(scores.shape[:-1]), name)
    labels = real_labels(labels, real)
    check_labels(labels, tuple(scores.shape[:-1]), name, scores.shape[-1])
    return labels


def _binary_tokens(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    check_labels(labels, tuple(scores.shape), name)
    check_labels(real_labels(labels, real), tuple(scores.shape), name, 2)
    return binary_loss(scores, labels, real)


def _rows(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    return row_loss(scores, label_tensor(labels, name).flatten(), name)


def _binary_rows(name: str, scores: Tensor, labels: Tensor, real: None, beside: Mapping[str, Any]) -> Tensor:
    """One logit a row (batch, 1)."""
    labels = label_tensor(labels, name).flatten()
    check_labels(labels, (scores.shape[0],), name, 2, integers=True)
    return binary_loss(scores.squeeze(1), labels, None)


def _spans(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    labels = label_tensor(labels, name)
    check_labels(labels, tuple(scores.shape[:3]), name, scores.shape[3] if labels.dtype == torch.bool else None)
    if real is not None:  # both neighbors of a real span are
        ends = real.gather(1, beside["pairs"].long().flatten(1)).unflatten(1, (-1, 2))
        labels = real_labels(labels, ends.all(2))
    check_labels(labels, tuple(scores.shape[:3]), name, scores.shape[3])
    return span_boundary_loss(scores, labels)


def _regions(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    targets = beside["region_targets"]
    targets = None if targets is None else label_tensor(targets, "region_targets")
    if targets is None:
        raise InputError("region_labels say which regions count; give region_targets too: what they were")
    return region_loss(
        scores,
        labels,
        targets,
        beside["region_target"],
        beside["num_negatives"],
        beside["negatives"],
        real,
    )


def _weighted_classes(
    name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]
) -> Tensor:
    check_labels(labels, tuple(scores.shape[:-1]), name)
    check_labels(real_labels(labels, real), tuple(scores.shape[:-1]), name, scores.shape[-1])
    ((weight_name, weights),) = beside.items()
    if weights is None:
        raise InputError(f"{name} were given without {weight_name}: what each region counts, 1 where all count alike")
    check_labels(label_tensor(weights, weight_name), tuple(scores.shape[:-1]), weight_name)
    return weighted_class_loss(scores, labels, weights, real)


def _masked_features(
    name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]
) -> Tensor:
    check_labels(labels, tuple(scores.shape[:-1]), name)
    if (targets := beside["region_targets"]) is None:
        raise InputError(f"{name} say which regions count; give region_targets too: what they were")
    check_labels(label_tensor(targets, "region_targets"), tuple(scores.shape), "region_targets")
    return masked_feature_loss(scores, labels, targets, real)


def _region_feature(
    name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]
) -> Tensor:
    return region_feature_loss(scores, label_tensor(labels, name), beside["region_labels"], real)


def _region_class(name: str, scores: Tensor, labels: Tensor, real: Tensor | None, beside: Mapping[str, Any]) -> Tensor:
    return region_class_loss(scores, labels, beside["region_labels"], beside["class_loss"], real)


def _pairs_apart(name: str, scores: Tensor, labels: Tensor, real: None, beside: Mapping[str, Any]) -> Tensor:
    """Distances (batch,) of pairs: small for those that match (label 1), large for others (0); the sum
    over the one less the sum over the other, divided by the pairs.
    """
    labels = label_tensor(labels, name).flatten()
    check_labels(labels, tuple(scores.shape), name, 2)
    counted = counted_labels(labels) != IGNORED
    return mean_of(torch.where(labels == 1, scores, -scores), counted)


def _linking(
    name: str, links: Mapping[str, Any], labels: Mapping[str, Tensor], real: None, beside: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A loss for each source of knowledge whose true entities are given."""
    losses = {}
    for source, entities in labels.items():
        candidates = (beside["entity_candidates"] or {}).get(source)
        if candidates is None:
            raise InputError(f"{name} were given for {source!r} without its entity_candidates")
        entities = label_tensor(entities, f"{name}[{source!r}]")
        check_labels(entities, tuple(candidates.spans.shape[:2]), name)
        gold = real_labels(entities, candidates.spans[:, :, 0] >= 0)
        said = beside["knowledge"][source]
        losses[f"{source}_linking"] = linking_loss(said.loss, links[source].scores, candidates.ids, gold, said.margin)
    return losses


def _contrastive(name: str, scores: Tensor, labels: None, real: None, beside: Mapping[str, Any]) -> Tensor:
    """Scores (batch, batch) of each row with each: its own partner against the others, both ways."""
    own = torch.arange(len(scores), device=scores.device)
    return (token_cross_entropy(scores, own) + token_cross_entropy(scores.T, own)) / 2


LOSSES: dict[str, Callable[..., Any]] = {
    "tokens": _tokens,
    "next-tokens": _next_tokens,
    "kept-tokens": _kept_tokens,
    "smoothed-tokens": _smoothed_tokens,
    "averaged-tokens": _averaged_tokens,
    "soft-classes": _soft_classes,
    "binary-tokens": _binary_tokens,
    "rows": _rows,
    "binary-rows": _binary_rows,
    "spans": _spans,
    "regions": _regions,
    "weighted-classes": _weighted_classes,
    "masked-features": _masked_features,
    "region-feature": _region_feature,
    "region-class": _region_class,
    "pairs-apart": _pairs_apart,
    "linking": _linking,
    "contrastive": _contrastive,
}
"""By the key that `zoo.registry.terms.PretrainingTerm.loss` names."""


def check_region_target(options: Mapping[str, Any]) -> None:
    """Refuse a target that masked regions are not predicted as."""
    if options["region_target"] not in REGION_TARGETS:
        raise ConfigError(f"region_target must be one of {', '.join(REGION_TARGETS)}, got {options['region_target']!r}")


def check_class_loss(options: Mapping[str, Any]) -> None:
    """Refuse a loss that classes of regions do not have."""
    if options["class_loss"] not in CLASS_LOSSES:
        raise ConfigError(f"class_loss must be one of {', '.join(CLASS_LOSSES)}, got {options['class_loss']!r}")


def check_kept_tokens(options: Mapping[str, Any]) -> None:
    """Refuse shares outside of 0 to 1."""
    for name in ("drop_worst", "label_smoothing"):
        if not 0 <= options[name] < 1:
            raise ConfigError(f"{name}={options[name]} must lie in [0, 1)")


def check_loss_average(options: Mapping[str, Any]) -> None:
    """Refuse an average that there is not."""
    if options["loss_average"] not in LOSS_AVERAGES:
        raise ConfigError(f"loss_average must be one of {', '.join(LOSS_AVERAGES)}, got {options['loss_average']!r}")


OPTION_CHECKS: dict[str, Callable[[Mapping[str, Any]], None]] = {
    "kept-tokens": check_kept_tokens,
    "smoothed-tokens": check_kept_tokens,
    "averaged-tokens": check_loss_average,
    "soft-classes": check_loss_average,
    "regions": check_region_target,
    "region-class": check_class_loss,
}
"""What the options of a loss are held to, when a task is built."""
