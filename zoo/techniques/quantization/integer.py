"""Operations on integers alone (I-BERT; Kim et al., 2021). Values travel as floats ``q · s`` that
stand for whole numbers q with a step s.

    GELU      q (1 + erf),  erf(x) ≈ sign(x) (a (min(|x|, -b) + b)² + 1),  a = -0.2888, b = -1.769
    softmax   x - max = -ln2 · z + r,  exp(r) ≈ 0.3585 (r + 1.353)² + 0.344,  exp(x) = exp(r) / 2^z
    norm      floor(2^31 / floor(sqrt(Σ (q - mean q)²))) (q - mean q)

The polynomials' constants are divided by the step and floored, so that all that is left are
products, sums and shifts of integers. Floors and rounds let gradients through.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.attention import AttentionArgs, DenseAttention, visible
from zoo.layers.extend import Extension
from zoo.techniques.quantization.trained import LowHigh
from zoo.techniques.straight_through import straight_through

ERF_A, ERF_B = -0.2888, -1.769
ERF_SHIFT, EXP_SHIFT = 14, 30
ROOT_TWO, LN_TWO = 1.4142, 0.6931
EXP_A, EXP_B, EXP_C = 0.35815147, 0.96963238, 1.0


def floor(x: Tensor) -> Tensor:
    """Downward, the gradient as if not."""
    return straight_through(x, x.detach().floor())


def nearest(x: Tensor) -> Tensor:
    """To the nearest, ties to even, the gradient as if not."""
    return straight_through(x, x.detach().round())


def symmetric_codes(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """``round(x / step)`` in -n .. n - 1 with n = 2^(bits - 1) - 1: one less at the top, as the
    published code cuts it.
    """
    most = 2 ** (bits - 1) - 1
    codes = nearest(1 / step * x)
    return straight_through(codes, codes.detach().clamp(-most, most - 1))


UNKNOWN = 8.0


class QuantAct(LowHigh):
    """Round to ``bits`` by a range that follows what passes while training (first call: its own;
    then by ``momentum``). Before any training call the range ends at `UNKNOWN`.
    """

    margin = 1e-5  # the published code's ranges start this wide and the first call's is added

    def __init__(self, bits: int = 8, momentum: float = 0.95) -> None:
        super().__init__(bits, momentum)

    def scale(self, x: Tensor, unknown: Tensor | float = UNKNOWN) -> Tensor:
        """The step of the range; ``unknown``: where it ends as long as none is known."""
        if self.training:
            self.observe(x)
        seen = torch.maximum(self.low.abs(), self.high.abs()).to(x.dtype)
        largest = torch.where(self.step > 0, seen, unknown)
        return largest.clamp(min=1e-8) / (2 ** (self.bits - 1) - 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Floats -> (values, step)."""
        step = self.scale(x)
        return symmetric_codes(x, step, self.bits) * step, step

    def requantize(
        self,
        x: Tensor,
        step: Tensor,
        other: Tensor | None = None,
        other_step: Tensor | None = None,
        unknown: Tensor | float = UNKNOWN,
    ) -> tuple[Tensor, Tensor]:
        """(values, step) of more bits, and a branch to add, -> this range's; by a fixed-point
        factor of the steps.
        """
        total = x if other is None else x + other
        new = self.scale(total, unknown)
        codes = fixed_point(x, step, new)
        if other is not None:
            assert other_step is not None
            codes = codes + fixed_point(other, other_step, new)
        most = 2 ** (self.bits - 1) - 1
        return straight_through(codes, codes.detach().clamp(-most - 1, most)) * new, new


def fixed_point(x: Tensor, step: Tensor, new: Tensor) -> Tensor:
    """The whole numbers of ``x / step`` times ``step / new``, that factor a 31-bit mantissa with a
    shift.
    """
    whole = (x.detach() / step).round().double()
    mantissa, exponent = torch.frexp(step.double() / new.double())
    mantissa = (mantissa * 2.0**31).round()
    codes = (whole * mantissa / 2.0 ** (31 - exponent.double())).round().to(x.dtype)
    return straight_through(x / new, codes)


def int_linear(
    x: Tensor,
    step: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bits: int = 8,
    bias_bits: int = 32,
    *,
    per_output: bool = True,
) -> tuple[Tensor, Tensor]:
    """Integer weights (a step for each output, or one for all) times integer inputs, plus an
    integer bias -> (values, their steps).
    """
    most = 2 ** (bits - 1) - 1
    low, high = (weight.detach() if per_output else weight.detach().reshape(1, -1)).aminmax(dim=1)
    own = torch.maximum(low.abs(), high.abs()).clamp(min=1e-8) / most
    codes = symmetric_codes(weight, own[:, None], bits)
    joint = own * step
    whole = None if bias is None else symmetric_codes(bias.double(), joint.double(), bias_bits).to(bias.dtype)
    return F.linear(x / step, codes, whole) * joint, joint


def int_gelu(x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """(values, step) -> GELU of them, with a negative step: the polynomial's a is negative."""
    codes, scaled = x / step, step / ROOT_TWO
    b, c = torch.floor(ERF_B / scaled), torch.floor(1 / ERF_A / scaled.square())
    inner = torch.minimum(codes.abs(), -b) + b
    erf = floor(torch.sign(codes) * (inner.square() + c) / 2**ERF_SHIFT)
    erf_step = scaled.square() * ERF_A * 2**ERF_SHIFT
    result = codes * (erf + torch.floor(1 / erf_step))
    return result * (step * erf_step / 2), step * erf_step / 2


def int_exp(codes: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """exp of whole numbers <= 0 with a step -> whole numbers and their step."""
    unit = torch.floor(-LN_TWO / step)  # -ln 2 in steps
    codes = torch.maximum(codes, EXP_SHIFT * unit)
    times = floor(codes / unit)
    rest = codes - unit * times
    b, c = torch.floor(EXP_B / EXP_A / step), torch.floor(EXP_C / EXP_A / step.square())
    whole = floor(((rest + b) * rest + c) * 2.0 ** (EXP_SHIFT - times)).clamp(min=0)
    return whole, EXP_A * step.square() / 2.0**EXP_SHIFT


def int_softmax(
    x: Tensor, step: Tensor, act: QuantAct, bits: int = 8, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(values, step) -> probabilities in ``bits``, which are rounded down, and their step. act:
    narrows the exponentials, to 16 bits as published. allowed: who counts, bool.
    """
    codes = x / step
    if allowed is not None:
        codes = codes.masked_fill(~allowed, -torch.inf)
    codes = codes - codes.detach().amax(-1, keepdim=True).clamp(min=-torch.finfo(x.dtype).max)
    whole, whole_step = int_exp(codes.clamp(min=-(2.0**30)), step)
    top, _ = int_exp(torch.zeros_like(step), step)  # each row has it, at its largest score
    narrow, narrow_step = act.requantize(
        whole if allowed is None else whole.masked_fill(~allowed, 0), whole_step, unknown=top.detach()
    )
    whole = narrow / narrow_step
    factor = floor(2.0**32 / whole.sum(-1, keepdim=True).clamp(min=1))
    return floor(whole * factor / 2.0 ** (32 - bits)) / 2.0**bits, x.new_tensor(1 / 2.0**bits)


def int_layer_norm(x: Tensor, step: Tensor, weight: Tensor, bias: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """(values, step) -> the norm over the last axis, and its step for each element. ``shift``: bits
    dropped before squaring.
    """
    codes = x / step
    codes = codes - nearest(codes.mean(-1, keepdim=True))
    total = floor(codes / 2**shift).square().sum(-1, keepdim=True)
    deviation = floor(total.sqrt()) * 2**shift
    codes = floor(codes * floor(2.0**31 / deviation.clamp(min=1)) / 2)
    base = math.sqrt(x.shape[-1]) / 2.0**30
    codes = codes + floor(bias.detach() / weight.detach() / base)
    return codes * (base * weight), base * weight


# --- as parts of a model


class IntegerLinear(Extension):
    """A linear layer in integers, behind a rounding of what enters."""

    bits: int
    act: QuantAct

    def forward(self, x: Tensor) -> Tensor:
        values, step = self.act(x)
        return int_linear(values, step, self.weight, self.bias, self.bits)[0]  # type: ignore[arg-type]


class IntGelu(nn.Module):
    """GELU in integers, behind a rounding of what enters."""

    def __init__(self, act: QuantAct) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return int_gelu(*self.act(x))[0]


class IntegerNorm(Extension):
    """A layer norm in integers, behind a rounding of what enters. Its weights must not be zero: the
    bias is divided by them.
    """

    act: QuantAct
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        values, step = self.act(x)
        if self.training:
            with torch.no_grad():  # squares must fit into 32 bits
                codes = values.detach() / step
                total = (codes - codes.mean(-1, keepdim=True).round()).square().sum(-1).amax()
                self.shift.copy_(
                    torch.maximum(
                        self.shift, (total.clamp(min=1).log2() / 2 - 16).ceil().clamp(min=0).to(self.shift.dtype)
                    )
                )
        return int_layer_norm(values, step, self.weight, self.bias, self.shift.to(x.dtype))[0]  # type: ignore[arg-type]


class IntegerCore(DenseAttention):
    """Attention with rounded queries, keys, values and scores, and the softmax in integers."""

    def __init__(self, bits: int, momentum: float) -> None:
        super().__init__()
        self.bits = bits
        self.query, self.key, self.value, self.scores = (QuantAct(bits, momentum) for _ in range(4))
        self.exponent = QuantAct(16, momentum)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        k, v, allowed, bias = visible(q, k, v, args)
        q, k, v = self.query(q)[0], self.key(k)[0], self.value(v)[0]
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1])
        values, step = self.scores(scores if bias is None else scores + bias)
        probabilities, _ = int_softmax(values, step, self.exponent, self.bits, allowed)
        args.keep(probabilities)
        return F.dropout(probabilities, args.dropout) @ v
