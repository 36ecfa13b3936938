"""Masks on single weights: fixed ones, and ones that learned scores decide (Sanh et al., 2020;
Louizos et al., 2018).

    y = (M ⊙ W) x + b        the bias is never masked

    top        M = 1 for the n largest scores of the matrix                               movement pruning
    threshold  M = score > t, or sigmoid(score) > t; int(0.005 · size) + 1 stay at least  soft movement pruning
    l0         M = clamp(s (r - l) + l, 0, 1), s = sigmoid((log u - log(1 - u) + score) / b)
               u uniform while training, absent after

For the first two the gradient passes straight through the comparison: dL/dscore = dL/dM = dL/d(M ⊙
W) ⊙ W, also where M = 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.extend import Extension
from zoo.techniques.straight_through import straight_through

LEFT, RIGHT, TEMPERATURE = -0.1, 1.1, 2 / 3  # l, r and b of the hard concrete distribution


def top_mask(scores: Tensor, count: int) -> Tensor:
    """Bool, True for exactly the ``count`` largest of the scores."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.detach().flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view(scores.shape)


class Scores(nn.Module):
    """A learned score for each weight of a matrix; subclasses say which mask they make."""

    def __init__(self, shape: tuple[int, ...], start: float = 0.0, threshold: float = 1.0) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full(shape, start))
        self.start, self.first_threshold = start, threshold
        # an integer, since int(0.15 · size) must not depend on the dtype that the weights are cast to
        self.register_buffer("billionths", torch.tensor(round(threshold * 1e9)))
        self.billionths: Tensor

    @property
    def threshold(self) -> float:
        """What the scores are held against, or the share that stays."""
        return int(self.billionths) / 1e9

    @threshold.setter
    def threshold(self, value: float) -> None:
        self.billionths.fill_(round(value * 1e9))

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        self.scores.fill_(self.start)
        self.threshold = self.first_threshold

    def forward(self) -> Tensor:
        """-> the mask, of the matrix' shape."""
        raise NotImplementedError


class TopScores(Scores):
    """Movement pruning: the share ``threshold`` of the matrix with the largest scores stays."""

    def forward(self) -> Tensor:
        return straight_through(  # eq: top
            self.scores, top_mask(self.scores, int(self.threshold * self.scores.numel()))
        )


class AboveThreshold(Scores):
    """Soft movement pruning: what scores above ``threshold`` stays."""

    def compared(self) -> Tensor:
        """What is held against the threshold."""
        return self.scores

    def forward(self) -> Tensor:
        mask = self.compared() > self.threshold
        least = int(0.005 * mask.numel()) + 1
        if int(mask.sum()) < least:
            mask = self.scores > self.scores.detach().flatten().kthvalue(max(mask.numel() - least, 1)).values
        return straight_through(self.scores, mask)


class SigmoidAboveThreshold(AboveThreshold):
    """Soft movement pruning whose scores pass a sigmoid before they are compared."""

    def compared(self) -> Tensor:
        return torch.sigmoid(self.scores)


class HardConcrete(Scores):
    """L0 regularisation: a stochastic gate in [0, 1] with a chance to be exactly 0; the threshold
    plays no part.
    """

    draws: Tensor | None = None  # those of this pass, where several places have one gate

    def draw(self) -> None:
        """New draws for `draws`."""
        self.draws = torch.rand_like(self.scores, requires_grad=False).clamp(1e-4, 1 - 1e-4)

    def forward(self, uniform: Tensor | None = None) -> Tensor:
        """``uniform``: the draws, in (0, 1); drawn anew while training, none needed after."""
        if self.training or uniform is not None:
            u = torch.rand_like(self.scores).clamp(1e-4, 1 - 1e-4) if uniform is None else uniform
            s = torch.sigmoid((u.log() - (1 - u).log() + self.scores) / TEMPERATURE)  # eq: hard-concrete
        else:
            s = torch.sigmoid(self.scores)
        return (s * (RIGHT - LEFT) + LEFT).clamp(0, 1)  # eq: hard-concrete

    def chance_open(self) -> Tensor:
        """The probability that each gate is not 0: its part of the expected L0 norm."""
        return torch.sigmoid(self.scores - self.shift())

    @staticmethod
    def shift() -> float:
        """b · log(-l / r), by which a score is moved to give the chance that its gate is open."""
        return TEMPERATURE * math.log(-LEFT / RIGHT)


class MaskedLayer(Extension):
    """A linear layer or a table under a fixed mask. What `state_dict` gives is the masked weight,
    so a file holds zeros and no mask, and loading takes the zeros as the mask.
    """

    mask: Tensor
    weight: nn.Parameter

    def masked_weight(self) -> Tensor:
        return self.weight * self.mask  # eq: masked

    def forward(self, x: Tensor) -> Tensor:
        return masked_product(self, x, self.masked_weight())  # eq: masked

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weight = self.weight if keep_vars else self.weight.detach()
        destination[f"{prefix}weight"] = (
            weight if weight.is_meta or bool((weight[~self.mask] == 0).all()) else weight * self.mask
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}weight" in state_dict:
            self.mask = (state_dict[f"{prefix}weight"] != 0).to(self.weight.device)


class ScoredLayer(Extension):
    """A linear layer under a mask that scores decide."""

    gate: Scores
    weight: nn.Parameter

    def masked_weight(self) -> Tensor:
        mask: Tensor = self.gate()
        return mask * self.weight

    def forward(self, x: Tensor) -> Tensor:
        return masked_product(self, x, self.masked_weight())


def masked_product(part: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What a linear layer or a table gives with another weight."""
    if isinstance(part, nn.Embedding):
        return F.embedding(x, weight, part.padding_idx)
    return F.linear(x, weight, part.bias)  # eq: masked


class GatedInput(Extension):
    """A linear layer whose inputs are gated in runs of ``span``: heads in front of an attention's
    output, units in front of a feed-forward's.
    """

    around = True
    gate: HardConcrete
    span: int

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.gate()
        return super().forward(x * gate.repeat_interleave(self.span))


class GatedOutput(Extension):
    """A norm whose outputs are gated, by the one gate that all norms along the stream have; the
    first of them draws.
    """

    own_gate: HardConcrete

    def forward(self, x: Tensor) -> Tensor:
        if self.training and "gate" in self._modules:  # the first of them, which owns it
            self.own_gate.draw()
        gate: Tensor = self.own_gate(self.own_gate.draws if self.training else None)
        return super().forward(x) * gate  # eq: hidden-gate
