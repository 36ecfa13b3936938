"""Attention and norm with every step rounded to a range that follows it (FullyQT; Prato et al.,
2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.attention import AttentionArgs, DenseAttention, visible
from zoo.layers.extend import Extension
from zoo.techniques.quantization.trained import LowHighRange


class RangedCore(DenseAttention):
    """Scores, the softmax's numerator ``exp(s - max)``, its denominator, their quotient and the
    result, each rounded. What the mask hides is kept out of the scores' range.
    """

    def __init__(self, bits: int, momentum: float) -> None:
        super().__init__()
        self.scores, self.result = (LowHighRange(bits, momentum) for _ in range(2))
        self.numerator, self.denominator, self.quotient = (LowHighRange(bits, momentum, zero=True) for _ in range(3))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        k, v, allowed, bias = visible(q, k, v, args)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
        scores = scores if bias is None else scores + bias
        counted = (
            scores if allowed is None else torch.where(allowed, scores, scores.detach().new_tensor(0.0))
        )  # hidden ones count as zero
        scores = self.scores(scores, counted)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        exponent = (scores - scores.detach().amax(-1, keepdim=True)).exp()
        exponent = exponent if allowed is None else exponent.masked_fill(~allowed, 0)
        exponent = self.numerator(exponent)
        total = self.denominator(exponent.sum(-1, keepdim=True))
        probabilities = self.quotient(exponent / total.clamp(min=torch.finfo(total.dtype).eps))
        args.keep(probabilities)
        return self.result(F.dropout(probabilities, args.dropout) @ v)


class RangedNorm(Extension):
    """A layer norm whose numerator, denominator, quotient and weight are rounded; the bias is
    not.
    """

    ranges: nn.ModuleDict

    @staticmethod
    def new_ranges(bits: int, momentum: float) -> nn.ModuleDict:
        """What it keeps of its steps."""
        return nn.ModuleDict(
            {name: LowHighRange(bits, momentum) for name in ("numerator", "denominator", "quotient", "weight")}
        )

    def forward(self, x: Tensor) -> Tensor:
        above = self.ranges["numerator"](x - x.mean(-1, keepdim=True))
        below = self.ranges["denominator"]((x.var(-1, keepdim=True, correction=0) + self.eps).sqrt())  # type: ignore[operator]
        quotient = self.ranges["quotient"](above / below.clamp(min=torch.finfo(x.dtype).eps))
        weight: Tensor | None = self.weight  # type: ignore[assignment]
        y = quotient if weight is None else quotient * self.ranges["weight"](weight)
        return y if self.bias is None else y + self.bias  # type: ignore[operator]
