"""Where the norm stands around an operation. A placement is a function, so it leaves no trace in parameter names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Op = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Op, Op, Op], Tensor]


def post_norm(x: Tensor, op: Op, norm: Op, dropout: Op) -> Tensor:
    """``norm(x + dropout(op(x)))``: the original Transformer, BERT and most of its descendants."""
    return norm(x + dropout(op(x)))


def pre_norm(x: Tensor, op: Op, norm: Op, dropout: Op) -> Tensor:
    """``x + dropout(op(norm(x)))``: GPT-2, mBART, XLM-R XL."""
    return x + dropout(op(norm(x)))
