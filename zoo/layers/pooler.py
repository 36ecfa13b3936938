"""One vector for a whole text."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FirstTokenPooler(nn.Module):
    """``tanh(W h_first + b)``: BERT's and ALBERT's sentence vector."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first: Tensor) -> Tensor:
        """The first token's state (batch, hidden) -> (batch, hidden)."""
        return torch.tanh(self.dense(first))


class ReluPooler(nn.Module):
    """``relu(W h_first + b)``, to a width that may differ: ViLBERT's vector of one stream."""

    def __init__(self, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, output_size)

    def forward(self, first: Tensor) -> Tensor:
        """The first state (batch, hidden) -> (batch, output)."""
        return torch.relu(self.dense(first))


def pool(hidden: Tensor, real: Tensor | None, mode: str) -> Tensor:
    """Sentence vector by ``mode``: "mean" or "max" over the real tokens, "cls", the first one, or
    "last".

    hidden (batch, length, hidden); real (batch, length) bool, True = a real token, or None where
    all are -> (batch, hidden). A row without a real token gives zeros.
    """
    if real is None:
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mode == "mean":
        weights = real.to(hidden.dtype)
        return torch.einsum("bth,bt->bh", hidden, weights) / weights.sum(1, keepdim=True).clamp(min=1)
    if mode == "max":
        top = hidden.masked_fill(~real.unsqueeze(2), -torch.inf).amax(1)
        return top.masked_fill(~real.any(1, keepdim=True), 0)
    one = real.shape[1] - 1 - real.int().flip(1).argmax(1) if mode == "last" else real.int().argmax(1)
    return hidden.gather(1, one[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
