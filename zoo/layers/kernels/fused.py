"""Attention through torch's scaled_dot_product_attention, which never shows the probabilities."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.layers.shapes import Allowed, Bias, Keys, Queries


def fused_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    allowed: Allowed | None,
    bias: Bias | None,
    scale: float,
    dropout: float,
    causal: bool,
) -> Queries:
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
