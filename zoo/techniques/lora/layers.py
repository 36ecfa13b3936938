"""Low-rank updates of a linear layer (LoRA; Hu et al., 2022) and learned rescaling around one (IA3;
Liu et al., 2022).

    LoRA:  y = W x + b + s · B A dropout(x)       A (rank, in), B (out, rank); s = alpha / rank or alpha / sqrt(rank)
    DoRA:  y = m ⊙ (W + s B A) x / ‖W + s B A‖ + b     the norm over inputs, one for each output, not differentiated
    gated: y = W x + b + g · B A x                in place of s, g is the mean over a text's positions of
                                                  sigmoid(w · x + c): UniPELT's (Mao et al., 2022)
    IA3:   y = l ⊙ (W x + b), or y = W (l ⊙ x) + b     at keys and values; behind the feed-forward's activation
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.layers.extend import Extension


class LowRank(nn.Module):
    """One update ``s · B A``: ``down`` is A, ``up`` is B. ``magnitude`` (out,) makes it a DoRA;
    ``whole``: m scales the bias too, over the norm of W + B A without s (as the library
    ``adapters`` has it). ``bias``: B has one.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        scale: float,
        *,
        dropout: float = 0.0,
        dora: bool = False,
        whole: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.magnitude = nn.Parameter(torch.empty(out_features)) if dora else None
        self.up_bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.scale, self.dropout, self.whole = scale, dropout, whole

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """A uniform within 1/sqrt(in), as a Linear starts; B zero, so that training starts from the
        model as it is.
        """
        bound = 1 / math.sqrt(self.down.shape[1])
        self.down.uniform_(-bound, bound, generator=generator)
        self.up.zero_()
        if self.magnitude is not None:
            self.magnitude.fill_(1)
        if self.up_bias is not None:
            self.up_bias.zero_()

    def delta(self) -> Tensor:
        """``s · B A`` (out, in)."""
        return self.scale * (self.up @ self.down)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return (  # eq: update
            F.linear(F.linear(F.dropout(x, self.dropout, self.training), self.down), self.up, self.up_bias) * self.scale
        )


class GatedLowRank(LowRank):
    """An update that each text weighs by a learned gate."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float, *, dropout: float = 0.0) -> None:
        super().__init__(in_features, out_features, rank, scale, dropout=dropout)
        self.gate = nn.Linear(in_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3:
            raise InputError(
                "a gated LoRA averages its gate over a text's positions; run it with packing off (zoo.packing(False))"
            )
        return super().forward(x) * torch.sigmoid(self.gate(x)).mean(1, keepdim=True)


class Rescaling(nn.Module):
    """``l ⊙ x`` with l a learned vector that starts at ones."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.scale.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale  # eq: rescaled


class LowRankUpdated(Extension):
    """A linear layer with low-rank updates by name; those in ``active_loras`` are added to what it
    gives.
    """

    loras: nn.ModuleDict
    active_loras: tuple[str, ...]

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for name in self.active_loras:
            update = self.loras[name]
            assert isinstance(update, LowRank)
            if update.magnitude is None:
                y = y + update(x)  # eq: update
            else:
                weight, bias = self.weight, self.bias
                assert isinstance(weight, Tensor)
                share = update.magnitude / row_norms(weight, update)  # eq: dora
                bare = y if bias is None or update.whole else y - bias  # eq: dora
                y = y + (share - 1) * bare + share * update(x)  # eq: dora
        return y


def row_norms(weight: Tensor, update: LowRank) -> Tensor:  # eq: dora
    """``‖W + s B A‖`` of each output's row, (out,), without a gradient."""
    delta = update.up @ update.down if update.whole else update.delta()
    return torch.linalg.vector_norm((weight + delta).detach(), dim=1)


class Rescaled(Extension):
    """A linear layer whose outputs are multiplied by learned vectors."""

    around = True
    rescalings: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)  # eq: rescaled
        for rescaling in self.rescalings.values():  # eq: rescaled
            y = rescaling(y)
        return y


class InputRescaled(Extension):
    """A linear layer whose inputs are multiplied by learned vectors."""

    around = True
    input_rescalings: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        for rescaling in self.input_rescalings.values():  # eq: input-rescaled
            x = rescaling(x)
        y: Tensor = super().forward(x)  # eq: input-rescaled
        return y
