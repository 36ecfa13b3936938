"""Multi-head attention with the inputs of query, key and value apart, and its choice of kernel.

    scores = q kᵀ / sqrt(head_size) + bias
    probabilities = softmax(scores where allowed)
    output = W_o [heads of probabilities v] + b_o

A query that may see nothing yields zeros (before W_o) on every path. `Attention` projects and hands queries, keys and
values to its core, one dense rectangle of the batch at a time; a core is exchangeable (sparse, quantized, ...).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.layers.cache import remembered
from zoo.layers.kernels.explicit import explicit_attention
from zoo.layers.kernels.fused import fused_attention
from zoo.layers.masks import Mask
from zoo.layers.shapes import Allowed, Bias, Front, Keys, Queries, Seen
from zoo.layers.trace import Trace


@dataclass(frozen=True)
class AttentionArgs:
    """What an attention core is told besides queries, keys and values.

    ``mask``: who may look at whom. ``bias`` is added to the scores. ``trace`` keeps the probabilities where somebody
    asked. ``dropout``: the rate on the probabilities. ``before``: keys and values that stand in front of the real ones
    and that every query sees.
    """

    mask: Mask
    bias: Bias | None = None
    trace: Trace | None = None
    dropout: float = 0.0
    before: tuple[Front, Front] | None = None

    @property
    def wants_probabilities(self) -> bool:
        return self.trace is not None and self.trace.wants_attentions

    def keep(self, probabilities: Float[Tensor, "batch heads query key"]) -> None:
        """Hand the probabilities to whoever asked."""
        if self.trace is not None:
            self.trace.keep(probabilities)


class AttentionCore(Protocol):
    """What stands between the projections of `Attention`: one dense rectangle in, one out."""

    def __call__(self, q: Queries, k: Keys, v: Keys, args: AttentionArgs) -> Queries: ...


class DenseAttention(nn.Module):
    """Every query over every key that the mask allows: the core of `Attention` by default. It has no parameters."""

    def forward(self, q: Queries, k: Keys, v: Keys, args: AttentionArgs) -> Queries:
        scale, causal = 1 / math.sqrt(q.shape[-1]), is_plain_causal(q, k, args)
        k, v, allowed, bias = visible(q, k, v, args, causal=causal)
        if args.wants_probabilities:
            out, probabilities = explicit_attention(q, k, v, allowed, bias, scale, args.dropout)
            args.keep(probabilities)
            return out
        return fused_attention(q, k, v, allowed, bias, scale, args.dropout, causal)


def is_plain_causal(q: Queries, k: Keys, args: AttentionArgs) -> bool:
    """Whether the rectangle is causal and nothing else, so that a kernel's own causal form serves."""
    alone = args.bias is None and args.before is None and not args.wants_probabilities
    return alone and args.mask.plain_causal and q.shape[2] == k.shape[2]


def visible(
    q: Queries, k: Keys, v: Keys, args: AttentionArgs, *, causal: bool = False
) -> tuple[Seen, Seen, Tensor | None, Tensor | None]:
    """Keys and values with those that stand in front, who may look at them, and the bias: all of it for one rectangle.

    ``causal``: the kernel masks by itself, so nothing is made of the mask.
    """
    queries, keys = q.shape[2], k.shape[2]
    allowed = None if causal else args.mask.allowed(queries, keys, q.device)
    bias = None if args.bias is None else args.mask.bias_at(args.bias, queries, keys).to(q.dtype)
    return (k, v, allowed, bias) if args.before is None else in_front(args.before, k, v, allowed, bias)


def in_front(
    before: tuple[Front, Front], k: Keys, v: Keys, allowed: Allowed | None, bias: Bias | None
) -> tuple[Seen, Seen, Tensor | None, Tensor | None]:
    """Keys and values that everyone sees in front of the others, with columns for them in mask and bias."""
    n = before[0].shape[2]
    k, v = (  # eq: in-front
        torch.cat([extra.to(x.dtype).expand(x.shape[0], -1, -1, -1), x], 2)
        for extra, x in zip(before, (k, v), strict=True)
    )
    allowed = None if allowed is None else F.pad(allowed, (n, 0), value=True)
    return k, v, allowed, None if bias is None else F.pad(bias, (n, 0))


class Attention(nn.Module):
    """Multi-head attention.

    ``key_size``: width of the key and value inputs where it differs from the query's (cross-attention);
    ``head_size``: where it is not hidden_size / num_heads; ``output_size``: where the result's width differs from
    the query's.
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
        query: Float[Tensor, "*rows hidden"],
        key: Float[Tensor, "*key_rows key_size"],
        value: Float[Tensor, "*key_rows value_size"],
        mask: Mask,
        bias: Bias | None = None,
        trace: Trace | None = None,
    ) -> Float[Tensor, "*rows output_size"]:
        """``bias`` is added to the scores, one for all rows where the batch is packed. ``trace`` keeps
        the probabilities where somebody asked, and knows the keys and values of the tokens before.
        """
        return self.output(self.context(query, key, value, mask, bias, trace))  # eq: heads

    def context(
        self,
        query: Float[Tensor, "*rows hidden"],
        key: Float[Tensor, "*key_rows key_size"],
        value: Float[Tensor, "*key_rows value_size"],
        mask: Mask,
        bias: Bias | None = None,
        trace: Trace | None = None,
    ) -> Float[Tensor, "*rows inner"]:
        """What the heads make, side by side, before the output projection."""
        heads = self.num_heads, self.head_size
        q = self.query(query).unflatten(-1, heads)  # (batch, length, heads, head size), or  # eq: heads

        def made() -> tuple[Tensor, Tensor]:
            k = self.key(key).unflatten(-1, heads)  # (tokens, heads, head size) when packed  # eq: heads
            v = self.value(value).unflatten(-1, heads)  # eq: heads
            return k, v

        k, v = remembered(None if trace is None else trace.memory, made)
        return self.attend(q, k, v, mask, bias, trace).flatten(-2)  # eq: heads

    def attend(
        self,
        q: Float[Tensor, "*rows heads size"],
        k: Float[Tensor, "*key_rows heads size"],
        v: Float[Tensor, "*key_rows heads size"],
        mask: Mask,
        bias: Bias | None = None,
        trace: Trace | None = None,
    ) -> Float[Tensor, "*rows heads size"]:
        """What the core makes of projected queries, keys and values, packed or not."""
        args = AttentionArgs(mask, bias, trace, self.dropout if self.training else 0.0)
        if q.dim() == 4 and q.shape[0] != k.shape[0]:  # several rows look at one source
            return attended(self.core, q.reshape(k.shape[0], -1, *q.shape[2:]), k, v, args).reshape(q.shape)
        return attended(self.core, q, k, v, args)


def attended(
    core: AttentionCore,
    q: Float[Tensor, "*rows heads size"],
    k: Float[Tensor, "*key_rows heads size"],
    v: Float[Tensor, "*key_rows heads size"],
    args: AttentionArgs,
) -> Float[Tensor, "*rows heads size"]:
    """Run a core on each dense rectangle of a batch, packed or not, and join what it gives."""
    if not args.mask.packed:
        return core(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), args).transpose(1, 2)
    if args.bias is not None and args.bias.dim() == 4 and args.bias.shape[0] != 1:
        shape = tuple(args.bias.shape)
        raise InputError(f"a packed batch takes one bias for all rows, got {shape}; run it with packing off")
    results = []
    for part in args.mask.rectangles:
        if part.mask is None:  # nobody to look at
            results.append(q.new_zeros(part.queries.stop - part.queries.start, q.shape[1], v.shape[2]))
            continue
        cut = ((q, part.queries), (k, part.keys), (v, part.keys))  # each becomes (rows, heads, length, head size)
        q_, k_, v_ = (x[where].unflatten(0, (part.rows, -1)).transpose(1, 2) for x, where in cut)
        out = core(q_, k_, v_, replace(args, mask=part.mask))
        results.append(out.transpose(1, 2).flatten(0, 1))
    if not results:
        return q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    return results[0] if len(results) == 1 else torch.cat(results)
