"""Parts for inference on a CPU: linear layers whose weights are in oneDNN's layout, fused with bias
and activation.

They compute what the parts they replace compute, up to rounding, and have no gradients.
`zoo.optimize` puts them in place.
"""

from __future__ import annotations

import itertools
import math
import weakref
from typing import ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.inference.int8 import Int8Linear
from zoo.layers.attention import Attention, AttentionArgs, DenseAttention
from zoo.layers.cache import remembered
from zoo.layers.masks import Mask
from zoo.layers.trace import Trace

FUSED = {
    "identity": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "tanh": ("tanh", ""),
    "sigmoid": ("sigmoid", ""),
    "silu": ("swish", ""),
}
"""Activations that oneDNN fuses with a matrix multiplication: our name to its attribute and algorithm."""


class PackedWeight:
    """A weight in oneDNN's own layout, which only oneDNN can read. Copies of a model share it."""

    _numbers = itertools.count()
    _all: ClassVar[weakref.WeakValueDictionary[int, PackedWeight]] = weakref.WeakValueDictionary()

    def __init__(self, weight: Tensor) -> None:
        self.tensor: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
        self.number = next(self._numbers)  # by which a compiled graph, which can't hold the tensor, finds it
        self._all[self.number] = self

    @classmethod
    def numbered(cls, number: int) -> PackedWeight:
        """The weight of that number."""
        return cls._all[number]

    def __deepcopy__(self, memo: object) -> PackedWeight:
        return self

    def __reduce__(self) -> str:
        raise InputError(
            "a model that zoo.optimize prepared can't be pickled or saved; save the model it was made from"
        )


class PreparedLinear(nn.Module):
    """``act(W x + b)`` with W in oneDNN's own layout, in the dtype of ``weight``. Not
    differentiable; not for saving.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, activation_name: str = "identity") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = PackedWeight(weight)
        self.attribute, self.algorithm = FUSED[activation_name]
        self.register_buffer("bias", None if bias is None else bias.detach().clone(), persistent=False)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.attribute}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if torch.compiler.is_compiling():
            made: Tensor = torch.ops.zoo.prepared_linear(
                x, self.bias, self.weight.number, self.out_features, self.attribute, self.algorithm
            )
            return made
        return _product(x, self.weight.tensor, self.bias, self.attribute, self.algorithm)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, attribute: str, algorithm: str) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, attribute, [], algorithm)
    return made


@torch.library.custom_op("zoo::prepared_linear", mutates_args=())
def _numbered_product(
    x: Tensor, bias: Tensor | None, number: int, out_features: int, attribute: str, algorithm: str
) -> Tensor:
    return _product(x, PackedWeight.numbered(number).tensor, bias, attribute, algorithm)


@_numbered_product.register_fake
def _(x: Tensor, bias: Tensor | None, number: int, out_features: int, attribute: str, algorithm: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


class ShortAttention(DenseAttention):
    """The same by two batched matrix multiplications and a softmax where that beats the fused
    kernel, which splits its work for long inputs and does not multiply in bfloat16 on most CPUs: one
    sequence at a time in float32, and in bfloat16 from ``shortest`` keys on.
    """

    longest = 512
    shortest = 48

    def forward(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """As `DenseAttention`."""
        batch, heads, _, size = q.shape
        keys = k.shape[2]
        serves = batch == 1 if q.dtype == torch.float32 else keys >= self.shortest
        mask, alone = args.mask, args.bias is None and args.before is None and not args.wants_probabilities
        plain = alone and mask.keys is None and mask.dense is None and mask.pattern is None
        if not (plain and serves and keys <= self.longest):
            return super().forward(q, k, v, args)
        flat_q, flat_k, flat_v = (x[0] if batch == 1 else x.reshape(batch * heads, -1, x.shape[-1]) for x in (q, k, v))
        scores = torch.baddbmm(q.new_zeros(1), flat_q, flat_k.transpose(1, 2), beta=0, alpha=1 / math.sqrt(size))
        return torch.bmm(scores.softmax(-1), flat_v).unflatten(0, (batch, heads))


class JoinedAttention(Attention):
    """Self-attention in int8 whose query, key and value are one product, so that their input is
    rounded once.
    """

    def __init__(self, attention: Attention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.head_size, self.dropout = attention.num_heads, attention.head_size, attention.dropout
        parts = (attention.query, attention.key, attention.value)
        assert all(isinstance(part, Int8Linear) for part in parts)
        weight, scale, bias = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "scale", "bias")
        )
        self.joined = Int8Linear(weight, scale, bias)
        self.joined.product = parts[0].product
        self.output, self.core = attention.output, attention.core

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask,
        bias: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """As `Attention`, of a block that gives all three inputs the same states."""
        assert query is key
        assert key is value
        made = self.joined(query).unflatten(-1, (3, self.num_heads, self.head_size))
        q, k, v = (part.contiguous() for part in made.unbind(-3))
        k, v = remembered(None if trace is None else trace.memory, lambda: (k, v))
        return self.output(self.attend(q, k, v, mask, bias, trace).flatten(-2))
