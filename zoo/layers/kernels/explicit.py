"""Attention written out: the formula of Vaswani et al. (2017), for whoever wants the probabilities."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def explicit_attention(
    query: Float[Tensor, "batch heads query size"],
    key: Float[Tensor, "batch heads key size"],
    value: Float[Tensor, "batch heads key size"],
    allowed: Bool[Tensor, "#batch #heads #query key"] | None,
    bias: Float[Tensor, "#batch #heads query key"] | None,
    scale: float,
    dropout: float,
) -> tuple[Float[Tensor, "batch heads query size"], Float[Tensor, "batch heads query key"]]:
    """``softmax(q kᵀ · scale + bias) v``, and the probabilities; allowed: True = may look."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    if allowed is not None:
        probabilities = probabilities.masked_fill(~allowed, 0)  # exact zeros, also for a query that may see nothing
    return F.dropout(probabilities, dropout) @ value, probabilities
