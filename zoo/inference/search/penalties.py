"""Length penalties: from a hypothesis' sum of log-probabilities and its number of tokens, the end
included and the beginning not, to its score.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Penalty = Callable[[Tensor, int, float], Tensor]  # sums, length, the setting length_penalty -> scores


def average(total: Tensor, length: int, weight: float) -> Tensor:
    """``sum / length^weight``: transformers, fairseq, XLM, Oscar."""
    return total / length**weight  # eq: average


def google(total: Tensor, length: int, weight: float) -> Tensor:
    """``sum / ((5 + length) / 6)^weight``: Wu et al. (2016)."""
    return total / ((5 + length) / 6) ** weight  # eq: google


def additive(total: Tensor, length: int, weight: float) -> Tensor:
    """``sum + weight · length``: UniLM, VLP."""
    return total + weight * length  # eq: additive


PENALTIES: dict[str, Penalty] = {"average": average, "google": google, "additive": additive}
