"""Attention written out: the formula of Vaswani et al. (2017), for whoever wants the probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """``softmax(q kᵀ · scale + bias) v``, and the probabilities.

    query, key, value (batch, heads, length, head size); allowed broadcastable bool (batch, heads, query, key),
    True = may look; bias additive.
    """
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    if allowed is not None:
        probabilities = probabilities.masked_fill(~allowed, 0)  # exact zeros, also for a query that may see nothing
    return F.dropout(probabilities, dropout) @ value, probabilities
