"""Norms that torch does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StandardDeviationNorm(nn.Module):
    """``weight · (x - mean) / (std + eps) + bias`` with the unbiased standard deviation (n - 1), as UER-py has it.

    `nn.LayerNorm` divides by ``sqrt(variance + eps)`` with the biased variance (n): close, and not the same.
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.weight.fill_(1)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        centred = x - x.mean(-1, keepdim=True)
        deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / (x.shape[-1] - 1) ** 0.5  # its gradient at zero is zero
        return self.weight * centred / (deviation + self.eps) + self.bias
