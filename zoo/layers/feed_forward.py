"""The position-wise feed-forward operation and the field's activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import unknown


def quick_gelu(x: Float[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    """x · sigmoid(1.702 x): OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def identity(x: Tensor) -> Tensor:
    """No activation at all."""
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": identity,
}
"""gelu is the exact erf form, gelu_tanh the approximation of Hendrycks & Gimpel; they are never
mixed up by one name.
"""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of that name; erf GELU is "gelu", its tanh approximation "gelu_tanh"."""
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


class FeedForward(nn.Module):
    """``W_down f(W_up x + b) + b'`` at each position; ``dropout`` acts after f where a model has
    one there (XLM, mBART).
    """

    roles = {"up": "feed-forward-up", "down": "feed-forward-down"}

    def __init__(
        self, hidden_size: int, intermediate_size: int, activation_name: str = "gelu", *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)
        self.activation = activation(activation_name)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
        inner = self.activation(self.up(x))  # (..., intermediate)  # eq: feed-forward
        return self.down(F.dropout(inner, self.dropout, self.training) if self.dropout else inner)  # eq: feed-forward


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise UnknownNameError unless ``value`` is one of ``known``."""
    known = list(known)
    if value not in known:
        raise unknown(name, value, known)


def check_activation(value: str, name: str = "activation") -> None:
    """Raise UnknownNameError unless ``value`` names an activation of `zoo.layers.feed_forward`."""
    check_choice(name, value, ACTIVATIONS)
