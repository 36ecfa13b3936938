"""Multi-head attention with the inputs of query, key and value apart, and its choice of kernel.

    scores = q kᵀ / sqrt(head_size) + bias,   probabilities = softmax(scores where allowed),   output = W_o [heads of probabilities v] + b_o

A query that may see nothing yields zeros (before W_o) on every path.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.layers.masks import Mask
from zoo.layers.trace import Trace


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float, dropout: float
) -> tuple[Tensor, Tensor]:
    """The paper's formula, written out; also gives the probabilities.

    query, key, value (batch, heads, length, head size); allowed broadcastable bool (batch, heads, query, key), True = may look; bias
    additive.
    """
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    if allowed is not None:
        probabilities = probabilities.masked_fill(~allowed, 0)  # exact zeros; a query that may see nothing gets none at all
    return F.dropout(probabilities, dropout) @ value, probabilities


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float, dropout: float, causal: bool
) -> Tensor:
    """The same through scaled_dot_product_attention, without probabilities. ``causal``: key <= query, given instead of ``allowed``."""
    if allowed is None or bias is not None:
        add = bias if allowed is None or bias is None else bias.masked_fill(~allowed, -torch.inf)
        out = F.scaled_dot_product_attention(query, key, value, add, dropout, is_causal=causal and add is None, scale=scale)
        if allowed is None:
            return out
    else:
        out = F.scaled_dot_product_attention(query, key, value, allowed, dropout, scale=scale)
    return out.masked_fill(~allowed.any(-1, keepdim=True), 0)


class Attention(nn.Module):
    """Multi-head attention. ``key_size``: width of the key and value inputs where it differs from the query's (cross-attention);
    ``head_size``: where it is not hidden_size / num_heads; ``output_size``: where the result's width differs from the query's.
    """

    roles = {  # noqa: RUF012 - what techniques may look for, see `Model.sites`
        "query": "attention-query",
        "key": "attention-key",
        "value": "attention-value",
        "output": "attention-output",
    }

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        key_size: int | None = None,
        value_size: int | None = None,
        head_size: int | None = None,
        output_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_size = hidden_size // num_heads if head_size is None else head_size
        self.dropout = dropout
        inner = self.num_heads * self.head_size
        self.query = nn.Linear(hidden_size, inner)
        self.key = nn.Linear(key_size or hidden_size, inner)
        self.value = nn.Linear(value_size or key_size or hidden_size, inner)
        self.output = nn.Linear(inner, output_size or hidden_size)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, bias: Tensor | None = None, trace: Trace | None = None
    ) -> Tensor:
        """query (batch, length, hidden), key and value (batch, key length, key size), or their packed rows -> like query.

        ``bias``: additive (1, heads or 1, query, key), or one for each row where the batch is not packed. ``trace`` keeps the probabilities
        where somebody asked.
        """
        if bias is not None and mask.packed and bias.dim() == 4 and bias.shape[0] != 1:
            raise InputError(f"a packed batch takes one bias for all rows, got {tuple(bias.shape)}; run it with packing off")
        # (batch, length, heads, head size), or (tokens, heads, head size) when packed
        q = self.query(query).unflatten(-1, (-1, self.head_size))
        k = self.key(key).unflatten(-1, (-1, self.head_size))
        v = self.value(value).unflatten(-1, (-1, self.head_size))

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
            return self.attend(q, k, v, mask, bias, trace)

        return self.output(mask.attend(kernel, q, k, v).flatten(-2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None, trace: Trace | None) -> Tensor:
        """One dense rectangle: (batch, length, heads, head size) each -> (batch, query length, heads, head size)."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        scale = 1 / math.sqrt(self.head_size)
        dropout = self.dropout if self.training else 0.0
        if bias is not None:
            bias = mask.bias_at(bias, q.shape[2], k.shape[2]).to(q.dtype)
        if trace is not None and trace.wants_attentions:
            out, probabilities = explicit_attention(q, k, v, mask.allowed(q.shape[2], k.shape[2], q.device), bias, scale, dropout)
            trace.keep(probabilities)
        else:
            causal = mask.plain_causal and q.shape[2] == k.shape[2]
            allowed = None if causal and bias is None else mask.allowed(q.shape[2], k.shape[2], q.device)
            out = fused_attention(q, k, v, allowed, bias, scale, dropout, causal)
        return out.transpose(1, 2)
