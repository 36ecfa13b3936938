"""Prefix tuning (Li and Liang, 2021): keys and values that stand in front of the real ones in every
attention, and that everyone sees.

P (n, Σ 2 · inner size of each attention),  per attention its keys, then its values          flat: P itself is learned
P = W_2 f(W_1 e + b_1) + b_2,  e (n, hidden)            through a network, only for training
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.attention import AttentionArgs
from zoo.layers.extend import Extension, extend
from zoo.layers.feed_forward import activation


class Prefix(nn.Module):
    """All of a model's prefixes under one name. ``width``: of P. ``bottleneck`` None: P itself,
    else the network's inner width.
    """

    def __init__(
        self,
        length: int,
        width: int,
        size: int,
        bottleneck: int | None = None,
        activation_name: str = "tanh",
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.values = nn.Parameter(torch.empty(length, width)) if bottleneck is None else None
        self.table = None if bottleneck is None else nn.Embedding(length, size)
        self.down = None if bottleneck is None else nn.Linear(size, bottleneck)
        self.up = None if bottleneck is None else nn.Linear(bottleneck, width)
        self.activation = activation(activation_name)

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """A bare P is drawn from N(0, 1), as the library ``adapters`` draws it."""
        if self.values is not None:
            self.values.normal_(0, 1, generator=generator)

    def part(self, start: int, size: int) -> Tensor:
        """Columns ``start`` .. of P, (n, size); the network computes only those."""
        if self.values is not None:
            part = self.values[:, start : start + size]
        else:
            assert self.table is not None
            assert self.down is not None
            assert self.up is not None
            inner = self.activation(self.down(self.table.weight))  # eq: net
            part = F.linear(inner, self.up.weight[start : start + size], self.up.bias[start : start + size])  # eq: net
        return F.dropout(part, self.dropout, self.training)

    def eject(self) -> Tensor:
        """The whole of P, (n, width)."""
        return self.part(0, self.width)


class Prefixed(Extension):
    """A core of `zoo.layers.Attention` with prefixes in front: ``prefixes`` holds each prefix and
    where its part begins.
    """

    prefixes: tuple[tuple[Prefix, int], ...]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        keys, values = ([], []) if args.before is None else ([args.before[0]], [args.before[1]])
        heads, key_size, value_size = k.shape[1], k.shape[3], v.shape[3]
        for prefix, start in self.prefixes:
            found = prefix.part(start, heads * (key_size + value_size))  # (n, keys and values)
            key, value = found.split([heads * key_size, heads * value_size], 1)
            keys.append(rearrange(key, "n (heads size) -> 1 heads n size", heads=heads))
            values.append(rearrange(value, "n (heads size) -> 1 heads n size", heads=heads))
        front = (torch.cat(keys, 2), torch.cat(values, 2))  # eq: front
        out: Tensor = super().forward(q, k, v, replace(args, before=front))
        return out

    def hand_over(self, core: nn.Module) -> None:
        """Put the same prefixes in front of another core, which takes this one's place."""
        extend(core, Prefixed)
        core.prefixes = self.prefixes  # type: ignore[assignment]
