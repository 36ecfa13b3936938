"""What a decoder reads while it learns: its labels, one place to the right."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import InputError


def shift_right(labels: Tensor, pad_token_id: int, start_token_id: int | None = None) -> Tensor:
    """``[start, labels without the last place]``, (batch, length) int, with padding where labels are -100.

    start_token_id None: each row's own last token that is no padding comes to the front (mBART: the language code, or </s>) and, in a row
    that is shorter than the longest, stands at its end too.
    """
    if labels.dim() != 2:
        raise InputError(f"labels must be (batch, length), got {tuple(labels.shape)}")
    filled = labels.masked_fill(labels == -100, pad_token_id)
    if start_token_id is None:
        place = torch.arange(labels.shape[1], device=labels.device)
        last = torch.where(filled != pad_token_id, place, 0).amax(1, keepdim=True)  # (batch, 1)
        start = filled.gather(1, last)
    else:
        start = filled.new_full((filled.shape[0], 1), start_token_id)
    return torch.cat([start, filled[:, :-1]], 1)
