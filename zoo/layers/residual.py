"""Where the norm stands around an operation. A placement is a function, so it leaves no trace in
parameter names.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from zoo.layers.shapes import Rows

Op = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Op, Op, Op], Tensor]


class JoiningNorm(nn.Module):
    """A norm that says itself how a sublayer's result joins what entered the sublayer, as
    bottleneck adapters need it.
    """

    def post_norm(self, x: Rows, result: Rows) -> Rows:
        """In place of ``norm(x + result)``."""
        raise NotImplementedError

    def pre_norm(self, x: Rows, result: Rows) -> Rows:
        """In place of ``x + result``."""
        raise NotImplementedError


def post_norm(x: Rows, op: Op, norm: Op, dropout: Op) -> Rows:  # eq: post-norm
    """``norm(x + dropout(op(x)))``: the original Transformer, BERT and most of its descendants."""
    result = dropout(op(x))
    return norm.post_norm(x, result) if isinstance(norm, JoiningNorm) else norm(x + result)


def pre_norm(x: Rows, op: Op, norm: Op, dropout: Op) -> Rows:  # eq: pre-norm
    """``x + dropout(op(norm(x)))``: GPT-2, mBART, XLM-R XL."""
    result = dropout(op(norm(x)))
    return norm.pre_norm(x, result) if isinstance(norm, JoiningNorm) else x + result
