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

    query, key, value (batch, heads, length, head size); allowed broadcastable bool (batch, heads,
    query, key), True = may look; bias additive.
    """
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
    if bias is not None:
        scores = scores + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    probabilities = scores.softmax(-1)
    if allowed is not None:
        probabilities = probabilities.masked_fill(
            ~allowed, 0
        )  # exact zeros; a query that may see nothing gets none at all
    return F.dropout(probabilities, dropout) @ value, probabilities


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    scale: float,
    dropout: float,
    causal: bool,
) -> Tensor:
    """The same through scaled_dot_product_attention, without probabilities. ``causal``: key <=
    query, given instead of ``allowed``.
    """
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


class DenseAttention(nn.Module):
    """Every query over every key that the mask allows: the core of `Attention`, between its
    projections. It has no parameters.

    Another core (sparse, with an adaptive span, behind a prefix) is called alike.
    """

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        bias: Tensor | None,
        trace: Trace | None,
        dropout: float,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """One dense rectangle: (batch, heads, length, head size) each -> (batch, heads, query
        length, head size).

        ``before``: keys and values (1, heads, n, head size) that stand in front of the real ones
        and that every query sees.
        """
        scale = 1 / math.sqrt(q.shape[-1])
        causal = mask.plain_causal and q.shape[2] == k.shape[2] and bias is None and before is None
        wanted = trace is not None and trace.wants_attentions
        allowed = None if causal and not wanted else mask.allowed(q.shape[2], k.shape[2], q.device)
        if bias is not None:
            bias = mask.bias_at(bias, q.shape[2], k.shape[2]).to(q.dtype)
        if before is not None:
            k, v, allowed, bias = in_front(before, k, v, allowed, bias)
        if wanted:
            assert trace is not None
            out, probabilities = explicit_attention(q, k, v, allowed, bias, scale, dropout)
            trace.keep(probabilities)
            return out
        return fused_attention(q, k, v, allowed, bias, scale, dropout, causal)


def in_front(
    before: tuple[Tensor, Tensor], k: Tensor, v: Tensor, allowed: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Put keys and values that everyone sees in front of (batch, heads, length, head size), with
    columns for them in mask and bias.
    """
    n = before[0].shape[2]
    k, v = (
        torch.cat([extra.to(x.dtype).expand(x.shape[0], -1, -1, -1), x], 2)
        for extra, x in zip(before, (k, v), strict=True)
    )
    return (
        k,
        v,
        None if allowed is None else F.pad(allowed, (n, 0), value=True),
        None if bias is None else F.pad(bias, (n, 0)),
    )


class Attention(nn.Module):
    """Multi-head attention. ``key_size``: width of the key and value inputs where it differs from
    the query's (cross-attention); ``head_size``: where it is not hidden_size / num_heads;
    ``output_size``: where the result's width differs from the query's.
    """

    roles = {  # what techniques may look for, see `Model.sites`
        "query": "attention-query",
        "key": "attention-key",
        "value": "attention-value",
        "output": "attention-output",
        "core": "attention-core",
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
        self.core: nn.Module = DenseAttention()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask,
        bias: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """query (batch, length, hidden), key and value (batch, key length, key size), or their
        packed rows -> like query.

        ``bias``: additive (1, heads or 1, query, key), or one for each row where the batch is not
        packed. ``trace`` keeps the probabilities where somebody asked.
        """
        if bias is not None and mask.packed and bias.dim() == 4 and bias.shape[0] != 1:
            raise InputError(
                f"a packed batch takes one bias for all rows, got {tuple(bias.shape)}; run it with packing off"
            )
        # (batch, length, heads, head size), or (tokens, heads, head size) when packed
        q = self.query(query).unflatten(-1, (self.num_heads, self.head_size))
        k = self.key(key).unflatten(-1, (self.num_heads, self.head_size))
        v = self.value(value).unflatten(-1, (self.num_heads, self.head_size))

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
            return self.attend(q, k, v, mask, bias, trace)

        return self.output(mask.attend(kernel, q, k, v).flatten(-2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None, trace: Trace | None) -> Tensor:
        """One dense rectangle: (batch, length, heads, head size) each -> (batch, query length,
        heads, head size).
        """
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.core(q, k, v, mask, bias, trace, self.dropout if self.training else 0.0).transpose(1, 2)
