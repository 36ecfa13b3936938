"""How far the words of a text are from the regions of a picture: an optimal transport between their
states, by IPOT (Xie et al., 2018), as UNITER's word-region alignment computes it.

    cost  = 1 - cos(word, region)
    plan  = argmin over plans with uniform margins of  <cost, plan>,  by proximal steps:
            Q = exp(-costᵀ / beta) * plan,  delta = 1 / (N Q sigma),  sigma = 1 / (M Qᵀ delta),  plan = delta Q sigma
    distance = <cost, plan>
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.layers import Padding
from zoo.tasks.losses import widened


def distances(states: Sequence[Tensor], paddings: Sequence[Padding | None]) -> Tensor:
    """The distance (batch,) of each text from its picture, from the states of both and their paddings."""
    words, regions = states
    real = [None if padding is None else padding.real for padding in paddings]
    return transport(words, regions, real[0], real[1])[0]


def transport(
    words: Tensor,
    regions: Tensor,
    real_words: Tensor | None = None,
    real_regions: Tensor | None = None,
    beta: float = 0.5,
    iterations: int = 50,
) -> tuple[Tensor, Tensor, Tensor]:
    """States (batch, words, size) and (batch, regions, size), and which are real, bool -> distances
    (batch,), costs (batch, words, regions) and plans (batch, regions, words), zero at padding.

    In float32 where the states are narrower, as the authors compute it under mixed precision. The plan
    is a constant, so gradients go through the costs alone.
    """
    kind = words.device.type
    with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):  # which would narrow what was widened
        unit = [F.normalize(widened(x), dim=-1, eps=1e-5) for x in (words, regions)]
        cost = 1 - unit[0] @ unit[1].transpose(1, 2)  # eq: transport-cost
        seen = [
            torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real
            for x, real in ((words, real_words), (regions, real_regions))
        ]
        both = seen[0].unsqueeze(2) & seen[1].unsqueeze(1)
        cost = torch.where(both, cost, 0)
        plan = ipot(cost.detach(), seen[0], seen[1], beta, iterations)
        distance = (cost * plan.transpose(1, 2)).sum((1, 2))  # eq: transport-distance
        return distance, cost, plan


@torch.no_grad()
def ipot(
    cost: Tensor,
    words: Tensor,
    regions: Tensor,
    beta: float,
    iterations: int,
) -> Tensor:
    """The plan after ``iterations`` proximal steps of one scaling each."""
    both = regions.unsqueeze(2) & words.unsqueeze(1)  # (batch, regions, words)
    count_words, count_regions = (real.sum(1).clamp(min=1).to(cost.dtype)[:, None, None] for real in (words, regions))
    kernel = torch.where(both, torch.exp(-cost.transpose(1, 2) / beta), 0)
    plan = both.to(cost.dtype)
    sigma = words.unsqueeze(2) / count_words  # (batch, words, 1)
    for _ in range(iterations):
        q = kernel * plan
        delta = torch.where(regions.unsqueeze(2), 1 / (count_regions * (q @ sigma)), 0)  # (batch, regions, 1)
        sigma = torch.where(words.unsqueeze(2), 1 / (count_words * (q.transpose(1, 2) @ delta)), 0)
        plan = delta * q * sigma.transpose(1, 2)
    return torch.where(both, plan, 0)
