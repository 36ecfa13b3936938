"""What takes a pooled vector into the space where pairs are compared."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, unknown
from zoo.layers.init import truncated_normal


class ProjectionHead(nn.Module):
    """``W_n relu(... relu(W_1 x))``: linear layers with ReLUs between, hidden ones as wide as the
    input.

    With ``batch_norm`` as Google's SimCLR has it: no layer has a bias, each is followed by a
    BatchNorm, and the last one's has no offset. Without, each layer has a bias (MoCo: one layer,
    MoCo v2 and sthalles' SimCLR: two).
    """

    def __init__(self, input_size: int, size: int, num_layers: int = 2, *, batch_norm: bool = False) -> None:
        super().__init__()
        widths = [input_size] * num_layers + [size]
        pairs = list(pairwise(widths))
        self.layers = nn.ModuleList(nn.Linear(into, out, bias=not batch_norm) for into, out in pairs)
        norms = [nn.BatchNorm1d(out) for _, out in pairs[:-1]] + [ScaledBatchNorm(size)]
        self.norms = nn.ModuleList(norms if batch_norm else [])

    def forward(self, x: Float[Tensor, "batch input_size"]) -> Float[Tensor, "batch size"]:
        for depth, layer in enumerate(self.layers):
            x = layer(F.relu(x) if depth else x)  # eq: projection
            x = self.norms[depth](x) if self.norms else x  # eq: projection
        return x


class ScaledBatchNorm(nn.BatchNorm1d):
    """A BatchNorm with a scale and no offset."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_parameter("bias", None)


class MatrixHead(nn.Module):
    """``x W``: a bare matrix (InfoXLM)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, size))

    def init_parameters(self, std: float, generator: Generator | None = None) -> None:
        """Normal of ``std``."""
        truncated_normal(self.weight, std, generator)

    def forward(self, x: Float[Tensor, "batch size"]) -> Float[Tensor, "batch size"]:
        return x @ self.weight


def projection_of(form: str, input_size: int, size: int, num_layers: int) -> nn.Module:
    """A projection by the name of its form: "mlp", "batch-norm", "matrix" (as wide as its input), or "none"."""
    if form not in PROJECTIONS:
        raise unknown("projection", form, PROJECTIONS)
    if form == "none":
        return nn.Identity()
    if form == "matrix":
        return MatrixHead(input_size)
    for name, value in (("projection_size", size), ("projection_layers", num_layers)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
    return ProjectionHead(input_size, size, num_layers, batch_norm=form == "batch-norm")


PROJECTIONS = ("mlp", "batch-norm", "matrix", "none")
