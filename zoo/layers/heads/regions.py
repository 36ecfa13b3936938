"""Heads that say what a region of a picture was, or which words mean it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.feed_forward import activation


class RegionHead(nn.Module):
    """``W_2 norm(act(W_1 h + b)) + b'``: what a masked region was, as classes of the detector or as
    its feature.
    """

    def __init__(self, hidden_size: int, target_size: int, activation_name: str, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, norm_eps)
        self.decoder = nn.Linear(hidden_size, target_size)
        self.activation = activation(activation_name)

    def forward(self, hidden: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows target_size"]:
        return self.decoder(self.norm(self.activation(self.dense(hidden))))


class RegionToPhraseHead(nn.Module):
    """``(W_q h_phrase) · (W_k h_region) / sqrt(head size)``: how well each region fits each phrase;
    one head of attention, no value.
    """

    def __init__(self, hidden_size: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, head_size)
        self.key = nn.Linear(hidden_size, head_size)
        self.scale = head_size**-0.5

    def forward(
        self, phrases: Float[Tensor, "batch phrases hidden"], regions: Float[Tensor, "batch regions hidden"]
    ) -> Float[Tensor, "batch phrases regions"]:
        return torch.einsum("bph,brh->bpr", self.query(phrases), self.key(regions)) * self.scale  # eq: phrases
