"""A head over two pictures of one sentence whose sequences look at each other before they are
pooled.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers import Attention, Padding, cross_mask
from zoo.tasks.losses import FAR

PAIRED = "paired-attention"


class PairedAttentionHead(nn.Linear):
    """UNITER's for NLVR2, over the states x of the first and y of the second picture with the sentence:

        x' = relu(W [attention_1(x, y) ; x] + b)      y' = relu(W [attention_2(y, x) ; y] + b)
        logits = U [pool(x') ; pool(y')] + c          pool(z) = Σ softmax(relu(w z + d)) z

    The last map is its own weight and bias.
    """

    def __init__(self, config: Any, num_labels: int) -> None:
        size = config.hidden_size
        super().__init__(2 * size, num_labels)
        self.first = Attention(size, config.num_heads, dropout=config.attention_dropout)
        self.second = Attention(size, config.num_heads, dropout=config.attention_dropout)
        self.both = nn.Linear(2 * size, size)
        self.gate = nn.Linear(size, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.gate_dropout = nn.Dropout(config.attention_dropout)

    def pooled(self, states: Tensor, real: Tensor | None) -> Tensor:
        """Both pictures' vectors side by side, (batch, 2 · hidden); states (2 · batch, positions, hidden)
        of rows 2i and 2i + 1 are those of sentence i, real (2 · batch, positions) bool.
        """
        x, y = states[::2], states[1::2]
        seen = (None, None) if real is None else (real[::2], real[1::2])
        grid = (x.shape[0], x.shape[1])
        left, right = (Padding(mask, grid) for mask in seen)
        to_right = self.first(x, y, y, cross_mask(left, right))
        to_left = self.second(y, x, x, cross_mask(right, left))
        pools = [
            self.pool(self.dropout(F.relu(self.both(torch.cat([looked, own], 2)))), mask)
            for looked, own, mask in ((to_right, x, seen[0]), (to_left, y, seen[1]))
        ]
        return torch.cat(pools, 1)

    def pool(self, states: Tensor, real: Tensor | None) -> Tensor:
        """(batch, positions, hidden) -> (batch, hidden): the mean, weighed by what the gate says of each
        state.
        """
        scores = F.relu(self.gate(states)).squeeze(2)  # (batch, positions)
        scores = scores if real is None else scores + torch.where(real, 0.0, FAR).to(scores.dtype)
        return (self.gate_dropout(scores.softmax(1)).unsqueeze(1) @ states).squeeze(1)
