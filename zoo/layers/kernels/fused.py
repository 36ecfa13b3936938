"""Attention through torch's scaled_dot_product_attention, which never shows the probabilities."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def fused_attention(
    query: Float[Tensor, "batch heads query size"],
    key: Float[Tensor, "batch heads key size"],
    value: Float[Tensor, "batch heads key size"],
    allowed: Bool[Tensor, "#batch #heads #query key"] | None,
    bias: Float[Tensor, "#batch #heads query key"] | None,
    scale: float,
    dropout: float,
    causal: bool,
) -> Float[Tensor, "batch heads query size"]:
    """As `explicit_attention`, without probabilities. ``causal``: key <= query, given instead of ``allowed``."""
    if allowed is None or bias is not None:
        add = bias if allowed is None or bias is None else bias.masked_fill(~allowed, -torch.inf)
        out = F.scaled_dot_product_attention(
            query, key, value, add, dropout, is_causal=causal and add is None, scale=scale
        )
        if allowed is None:
            return out
    else:
        out = F.scaled_dot_product_attention(query, key, value, allowed, dropout, scale=scale)
    return out.masked_fill(~allowed.any(-1, keepdim=True), 0)
