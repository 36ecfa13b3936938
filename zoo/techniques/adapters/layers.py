"""Bottleneck adapters at a sublayer's residual, their fusion, and invertible adapters behind the
embeddings.

With d a sublayer's result, r what entered it, N the block's own norm and A(x) = s · W_up f(W_down x
+ b) + b':

    Houlsby (2019)    N(d + A(d) + r)
    Pfeiffer (2020)   N(A(z) + d + r),  z = N(d + r)             the same N twice
    parallel (2022)   N(d + A(r) + r)
    fusion (2021)     N(Σ_i p_i V A_i(z) + d + r),  p = softmax_i(Q z · K A_i(z))      no 1/sqrt(d)
    parallel names    the batch in equal parts, each through one adapter
    invertible        y_1 = x_1 + F(x_2),  y_2 = x_2 + G(y_1)    the halves of what leaves the embeddings

In a pre-norm block N stands before the sublayer, so it does not occur here: z = d + r, and the sums
are what leaves the block.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.layers.extend import Extension
from zoo.layers.feed_forward import activation
from zoo.layers.padding import packing, packing_enabled
from zoo.layers.residual import JoiningNorm


@dataclass(frozen=True)
class Wiring:
    """Where an adapter's input and its own residual come from, and whether the block's norm
    follows.

    ``norm_before``: the input is N(d + r), else d. ``norm_after``: N(... + r) follows, else the
    adapter's result leaves as it is. ``residual``: "result" is d, "sum" is d + r before N, "input"
    is what the adapter reads; ``residual_first``: it is added before the adapter's own last norm.
    ``parallel``: the input is r, and the adapter's result is added to d.
    """

    norm_before: bool = False
    norm_after: bool = True
    residual: str = "result"
    parallel: bool = False
    residual_first: bool = False


class Adapter(nn.Module):
    """``s · (W_up f(W_down norm(x)))``, with a gate and a norm at either end where asked for.
    ``matrices``: W_down and W_up, see `projections`; ``scaling``: a number, or "learned" or
    "channel".
    """

    def __init__(
        self,
        matrices: tuple[nn.Linear, nn.Linear],
        activation_name: str,
        wiring: Wiring,
        *,
        scaling: float | str = 1.0,
        norms: tuple[bool, bool] = (False, False),
        gate: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        size = matrices[0].in_features
        self.input_norm = nn.LayerNorm(size) if norms[0] else None
        self.down, self.up = matrices
        self.output_norm = nn.LayerNorm(size) if norms[1] else None
        self.gate = nn.Linear(size, 1) if gate else None
        self.learned_scaling = (
            None if isinstance(scaling, float) else nn.Parameter(torch.ones(size if scaling == "channel" else 1))
        )
        self.scaling = scaling if isinstance(scaling, float) else 1.0
        self.activation = activation(activation_name)
        self.wiring, self.dropout = wiring, dropout

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """What is this module's own."""
        if self.learned_scaling is not None:
            self.learned_scaling.fill_(1)

    def bottleneck(self, x: Tensor) -> Tensor:
        """``s · A(x)``: (..., size) -> (..., size), without the residual; what fusion reads."""
        x = x if self.input_norm is None else self.input_norm(x)
        up = self.up(self.activation(self.down(x)))  # eq: bottleneck
        return up * (self.scaling if self.learned_scaling is None else self.learned_scaling)  # eq: bottleneck

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """``A(x) + residual``; a parallel adapter has no residual of its own."""
        out = F.dropout(self.bottleneck(x), self.dropout, self.training)
        if self.gate is not None:
            if x.dim() != 3:
                raise InputError(
                    "a gated adapter averages its gate over a text's positions; run it with packing off "
                    "(zoo.packing(False))"
                )
            out = out * torch.sigmoid(self.gate(x)).mean(1, keepdim=True)
        if self.wiring.parallel:
            return out if self.output_norm is None else self.output_norm(out)
        if self.wiring.residual_first:
            out = out + residual
        out = out if self.output_norm is None else self.output_norm(out)
        return out if self.wiring.residual_first else out + residual  # eq: stack


class Drawn(nn.Linear):
    """A Linear that starts in its own way: "kaiming" (uniform within 1/sqrt(in)), "zero", "houlsby"
    (normal of 0.01 cut at two).
    """

    def __init__(self, size: int, output_size: int, how: str) -> None:
        super().__init__(size, output_size)
        self.how = how

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        if self.bias is not None:
            self.bias.zero_()
        if self.how == "zero":
            self.weight.zero_()
        elif self.how == "kaiming":
            bound = self.in_features**-0.5
            self.weight.uniform_(-bound, bound, generator=generator)
        else:
            nn.init.trunc_normal_(self.weight, 0, 0.01, -0.02, 0.02, generator=generator)


class Identical(nn.Linear):
    """A matrix that starts as the identity, 1e-6 beside the diagonal."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size, bias=False)

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.weight.fill_(1e-6).fill_diagonal_(1)


def projections(size: int, bottleneck: int, how: str) -> tuple[nn.Linear, nn.Linear]:
    """Down and up, drawn as the model draws its own ("bert"), from N(0, 0.01) ("houlsby"), or so
    that all starts at zero ("mam").
    """
    if how == "bert":
        return nn.Linear(size, bottleneck), nn.Linear(bottleneck, size)
    ways = ("kaiming", "zero") if how == "mam" else ("houlsby", "houlsby")
    return Drawn(size, bottleneck, ways[0]), Drawn(bottleneck, size, ways[1])


class Fusion(nn.Module):
    """``Σ_i p_i W_v a_i + residual`` with ``p = softmax_i(W_q z · W_k a_i)``: attention over what
    several adapters give for a token. ``matrices``: which of the three it has.
    """

    def __init__(
        self,
        size: int,
        matrices: Collection[str] = ("query", "key", "value"),
        *,
        value_first: bool = True,
        query_before_norm: bool = False,
        residual_first: bool = False,
        temperature: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.query = nn.Linear(size, size) if "query" in matrices else None
        self.key = nn.Linear(size, size) if "key" in matrices else None
        self.value = Identical(size) if "value" in matrices else None
        self.value_first, self.query_before_norm, self.residual_first = value_first, query_before_norm, residual_first
        self.temperature, self.dropout = temperature, dropout

    def forward(self, query: Tensor, results: Sequence[Tensor], residual: Tensor) -> Tensor:
        """query and residual (..., size), one result of each adapter (..., size) -> (..., size)."""
        values = torch.stack(list(results), -2)  # (..., adapters, size)
        keys = values
        if self.residual_first:
            values = keys = values + residual.unsqueeze(-2)
        q = query if self.query is None else self.query(query)  # eq: fusion
        k = keys if self.key is None else self.key(keys)  # eq: fusion
        scores = F.dropout(torch.einsum("...d,...nd->...n", q, k), self.dropout, self.training)  # eq: fusion
        share = (scores / self.temperature).softmax(-1)  # (..., adapters)  # eq: fusion
        if self.value is not None and self.value_first:
            values = self.value(values)
        out = torch.einsum("...n,...nd->...d", share, values)  # eq: fusion
        if self.value is not None and not self.value_first:
            out = self.value(out)
        return out if self.residual_first else out + residual


class AdaptedNorm(JoiningNorm, Extension):
    """A norm with adapters at its residual. ``active``: the adapters that act; ``how``: "stack",
    "average", "fuse" or "parallel"; ``weights``: of the adapters in an average, by name; none = all
    alike.

    In parallel each adapter has its own part of the batch, as large as the others', in order; one
    that is not here leaves its part alone.
    """

    adapters: nn.ModuleDict
    fusions: nn.ModuleDict
    active: tuple[str, ...]
    how: str
    weights: dict[str, float]

    def post_norm(self, x: Tensor, result: Tensor) -> Tensor:
        return self.join(x, result, before=False)

    def pre_norm(self, x: Tensor, result: Tensor) -> Tensor:
        return self.join(x, result, before=True)

    def join(self, x: Tensor, result: Tensor, before: bool) -> Tensor:
        """r and d -> what leaves the residual. ``before``: the norm stands in front of the sublayer
        and is not used here.
        """
        if self.how == "parallel":
            parts = [(name,) if name in self.adapters else () for name in self.active]
            return torch.cat(
                [
                    self.compose(*part, before)
                    for part in zip(equal(x, len(parts)), equal(result, len(parts)), parts, strict=True)
                ]
            )
        return self.compose(x, result, self.active, before)

    def compose(self, x: Tensor, result: Tensor, active: Sequence[str], before: bool) -> Tensor:
        """As `join`, through these adapters."""
        if not active:
            return result + x if before else self(result + x)
        first, last = self.adapter(active[0]), self.adapter(active[-1])
        if self.how in ("stack", "parallel"):
            out = result
            for name in active:
                adapter = self.adapter(name)
                read, own = self.reads(adapter, x, out, before)
                out = adapter(read, own)  # eq: stack
        elif self.how == "average":
            read, own = self.reads(first, x, result, before)
            out = torch.stack(
                [self.adapter(name)(read, own) * self.weights.get(name, 1 / len(active)) for name in active]
            ).sum(0)
        else:
            fusion = self.fusions[",".join(active)]
            assert isinstance(fusion, Fusion)
            read, own = self.reads(last, x, result, before)
            query = result if fusion.query_before_norm and not last.wiring.parallel else read
            out = fusion(query, [self.adapter(name).bottleneck(read) for name in active], own)
        if last.wiring.parallel:  # eq: parallel
            out = out + result
        if not last.wiring.norm_after:
            return out
        return out + x if before else self(out + x)  # eq: stack

    def adapter(self, name: str) -> Adapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def reads(self, adapter: Adapter, x: Tensor, result: Tensor, before: bool) -> tuple[Tensor, Tensor]:
        """An adapter's input and its own residual."""
        wiring = adapter.wiring
        if wiring.parallel:
            return x, x  # eq: parallel
        read = result
        if wiring.norm_before:
            read = result + x if before else self(result + x)  # eq: norm-before
        return read, {"result": result, "sum": result + x, "input": read}[wiring.residual]


def equal(x: Tensor, parts: int) -> Sequence[Tensor]:
    """(batch, length, size) -> that many parts of the batch."""
    if x.dim() < 3:
        raise InputError(
            "parallel adapters tell a batch's rows apart, and packed rows don't show; run them with packing off "
            "(zoo.packing(False))"
        )
    if x.shape[0] % parts:
        raise InputError(
            f"a batch of {x.shape[0]} can't be shared evenly by {parts} parallel adapters; "
            "zoo.techniques.adapters.technique.repeated makes one that can"
        )
    return x.chunk(parts)


class RunsPadded(Extension):
    """A model whose batches stay as they are while ``runs_padded``: it looks at rows, and packed
    rows don't show.
    """

    runs_padded: bool

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if not (self.runs_padded and packing_enabled()):
            return super().forward(*inputs, **named)
        with packing(False):
            return super().forward(*inputs, **named)


class Coupling(nn.Module):
    """NICE: ``y_1 = x_1 + F(x_2)``, ``y_2 = x_2 + G(y_1)`` on the two halves of the last dimension;
    `inverse` undoes it exactly.
    """

    def __init__(self, size: int, activation_name: str, reduction: float) -> None:
        super().__init__()
        self.first, second = size // 2, size - size // 2
        self.f = CouplingNet(second, self.first, activation_name, reduction)
        self.g = CouplingNet(self.first, second, activation_name, reduction)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x[..., : self.first], x[..., self.first :]  # eq: coupling
        one = one + self.f(two)  # eq: coupling
        return torch.cat([one, two + self.g(one)], -1)  # eq: coupling

    def inverse(self, y: Tensor) -> Tensor:
        one, two = y[..., : self.first], y[..., self.first :]
        two = two - self.g(one)
        return torch.cat([one - self.f(two), two], -1)


class CouplingNet(nn.Module):
    """``W_up f(W_down x)`` from one half to the other."""

    def __init__(self, size: int, output_size: int, activation_name: str, reduction: float) -> None:
        super().__init__()
        inner = max(1, int(size // reduction))
        self.down, self.up = nn.Linear(size, inner), nn.Linear(inner, output_size)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))


class Coupled(Extension):
    """The last part of the embeddings, whose result goes through couplings."""

    couplings: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for coupling in self.couplings.values():
            x = coupling(x)
        return x
