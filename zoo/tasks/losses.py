"""Losses that tasks share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import TaskError


def token_cross_entropy(logits: Tensor, labels: Tensor, epsilon: float = 0.0) -> Tensor:
    """Mean negative log likelihood over the labels that are not -100.

    logits (..., classes), labels (...) int64. ``epsilon`` is added to the count, as BERT's and ALBERT's TensorFlow code does (1e-5).
    Without any label the loss is zero and has a gradient of zeros.
    """
    total = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    count = (labels != -100).sum()
    return total / (count + epsilon if epsilon else count.clamp(min=1))


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Cross-entropy for integer labels (batch,), binary cross-entropy for float labels (batch, classes), mean squared error for one output.

    ``problem_type``: "regression", "single-label", "multi-label", or None to judge by the number of outputs and the labels' dtype.
    """
    if problem_type is None:
        problem_type = "regression" if logits.shape[-1] == 1 else "multi-label" if labels.is_floating_point() else "single-label"
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).reshape(logits.squeeze(-1).shape))
    if problem_type == "single-label":
        return F.cross_entropy(logits.float(), labels)
    if problem_type == "multi-label":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    raise TaskError(f"problem_type must be 'regression', 'single-label' or 'multi-label', got {problem_type!r}")


def span_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean of the cross-entropies of an answer's first and last token; positions outside the text are left out.

    start_logits, end_logits (batch, length); start, end (batch,) int64.
    """
    length = start_logits.shape[1]
    parts = [
        token_cross_entropy(logits[:, None], torch.where((at < 0) | (at >= length), -100, at)[:, None])
        for logits, at in ((start_logits, start), (end_logits, end))
    ]
    return (parts[0] + parts[1]) / 2
