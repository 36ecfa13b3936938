"""Where the norm stands around an operation. A placement is a function, so it leaves no trace in
parameter names.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

Op = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, Op, Op, Op], Tensor]


class JoiningNorm(nn.Module):
    """A norm that says itself how a sublayer's result joins what entered the sublayer, as
    bottleneck adapters need it.
    """

    def post_norm(
        self, x: Float[Tensor, "*rows hidden"], result: Float[Tensor, "*rows hidden"]
    ) -> Float[Tensor, "*rows hidden"]:
        """In place of ``norm(x + result)``."""
        raise NotImplementedError

    def pre_norm(
        self, x: Float[Tensor, "*rows hidden"], result: Float[Tensor, "*rows hidden"]
    ) -> Float[Tensor, "*rows hidden"]:
        """In place of ``x + result``."""
        raise NotImplementedError


def post_norm(x: Float[Tensor, "*rows hidden"], op: Op, norm: Op, dropout: Op) -> Float[Tensor, "*rows hidden"]:
    """``norm(x + dropout(op(x)))``: the original Transformer, BERT and most of its descendants."""
    result = dropout(op(x))
    return norm.post_norm(x, result) if isinstance(norm, JoiningNorm) else norm(x + result)


def pre_norm(x: Float[Tensor, "*rows hidden"], op: Op, norm: Op, dropout: Op) -> Float[Tensor, "*rows hidden"]:
    """``x + dropout(op(norm(x)))``: GPT-2, mBART, XLM-R XL."""
    result = dropout(op(norm(x)))
    return norm.pre_norm(x, result) if isinstance(norm, JoiningNorm) else x + result
