"""Position tables that are computed, not learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SinusoidalPositions(nn.Module):
    """``sin(p / 10000^(2k/d))`` in column 2k and the cosine of the same in column 2k + 1: the original Transformer's table.

    Not trained, but stored under ``weight`` like a learned table, as the checkpoints of XLM do: what a file holds is what is used.
    """

    weight: Tensor

    def __init__(self, max_positions: int, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(max_positions, size))

    @property
    def num_embeddings(self) -> int:
        return self.weight.shape[0]

    def init_parameters(self, std: float, generator: object = None) -> None:
        """Fill the table; nothing is drawn."""
        rows, size = self.weight.shape
        position = torch.arange(rows, dtype=torch.float64, device=self.weight.device)[:, None]
        column = torch.arange(size, dtype=torch.float64, device=self.weight.device)
        angle = position / 10_000 ** (2 * (column // 2) / size)  # (rows, size)
        self.weight.copy_(torch.where(column % 2 == 0, angle.sin(), angle.cos()))

    def forward(self, position_ids: Tensor) -> Tensor:
        """(batch, length) int -> (batch, length, size)."""
        return F.embedding(position_ids, self.weight)
