"""Attention written out: the formula of Vaswani et al. (2017), for whoever wants the probabilities."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from zoo.layers.shapes import Allowed, Bias, Keys, Queries


def explicit_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    allowed: Allowed | None,
    bias: Bias | None,
    scale: float,
    dropout: float,
) -> tuple[Queries, Float[Tensor, "batch heads query key"]]:
    """``softmax(q kᵀ · scale + bias) v``, and the probabilities; allowed: True = may look."""
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale  # eq: attention
    if bias is not None:
        scores = scores + bias
    if allowed is not None:  # eq: allowed
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)  # eq: attention
    if allowed is not None:
        probabilities = probabilities.masked_fill(~allowed, 0)  # exact zeros, also for a query that may see nothing
    return F.dropout(probabilities, dropout) @ value, probabilities  # eq: attention
