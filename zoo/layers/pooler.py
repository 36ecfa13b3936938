"""One vector for a whole text, or for a whole picture."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.layers.padding import Padding


class Pooler(nn.Module):
    """The first real token's state as it is: ELECTRA, MobileBERT. The base of the others."""

    def forward(
        self, hidden: Float[Tensor, "batch length hidden"], padding: Padding
    ) -> Float[Tensor, "batch output_size"]:
        return self.transform(self.choose(hidden, padding))

    def choose(self, hidden: Float[Tensor, "batch length hidden"], padding: Padding) -> Float[Tensor, "batch hidden"]:
        """The state that is read."""
        return padding.first(hidden)  # eq: first

    def transform(self, state: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch output_size"]:
        """What is made of it."""
        return state


class FirstTokenPooler(Pooler):
    """``tanh(W h_first + b)``: BERT's and ALBERT's sentence vector."""

    def __init__(self, hidden_size: int, output_size: int | None = None) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, output_size or hidden_size)

    def transform(self, state: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch output_size"]:  # eq: tanh
        return torch.tanh(self.dense(state))


class ReluPooler(FirstTokenPooler):
    """``relu(W h_first + b)``: DistilBERT, and ViLBERT's vector of one stream."""

    def transform(self, state: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch output_size"]:  # eq: relu
        return torch.relu(self.dense(state))


def pool(
    hidden: Float[Tensor, "batch length hidden"], real: Bool[Tensor, "batch length"] | None, mode: str
) -> Float[Tensor, "batch hidden"]:
    """Sentence vector by ``mode``: "mean" or "max" over the real tokens, "cls", the first one, or
    "last".

    real: True = a real token, or None where all are. A row without a real token gives zeros.
    """
    if real is None:
        real = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mode == "mean":
        weights = real.to(hidden.dtype)
        return torch.einsum("bth,bt->bh", hidden, weights) / weights.sum(1, keepdim=True).clamp(min=1)  # eq: mean
    if mode == "max":
        top = hidden.masked_fill(~real.unsqueeze(2), -torch.inf).amax(1)
        return top.masked_fill(~real.any(1, keepdim=True), 0)
    one = real.shape[1] - 1 - real.int().flip(1).argmax(1) if mode == "last" else real.int().argmax(1)
    return hidden.gather(1, one[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
