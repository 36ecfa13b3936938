"""Boxes over a picture without a detector: the cells of a grid, then the whole picture (BriVL 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.errors import InputError


@dataclass(frozen=True)
class GridBoxes:
    """Boxes (x1, y1, x2, y2) in pixels of a square picture of ``side``: ``cells`` x ``cells`` cells, column by
    column (x is the outer loop), then the whole picture, then zeros up to ``length`` boxes.
    """

    side: int = 456
    cells: int = 6
    length: int = 37

    def __post_init__(self) -> None:
        if min(self.side, self.cells) < 1 or self.length < self.count:
            raise InputError(
                f"{self.cells} x {self.cells} cells and the whole picture are {self.count} boxes of a picture of at "
                f"least one pixel; got side={self.side} and length={self.length}"
            )

    @property
    def count(self) -> int:
        """How many of the boxes are real."""
        return self.cells**2 + 1

    def boxes(self) -> Float[Tensor, "boxes 4"]:
        """The boxes, float32."""
        step = self.side / self.cells
        corner = torch.arange(self.cells, dtype=torch.float64) * step
        x, y = torch.meshgrid(corner, corner, indexing="ij")  # x changes slowest
        grid = torch.stack([x, y, x + step, y + step], -1).flatten(0, 1)  # (cells², 4)
        whole = torch.tensor([[0.0, 0.0, self.side, self.side]], dtype=torch.float64)
        padding = torch.zeros(self.length - self.count, 4, dtype=torch.float64)
        return torch.cat([grid, whole, padding]).float()
