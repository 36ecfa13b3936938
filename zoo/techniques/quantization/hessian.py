"""How sharply a loss bends in a layer's weights, and the bits that Q-BERT gives it (Shen et al.,
2020).

v <- H v / |H v|,  λ = vᵀ H v         power iteration, H v by a second backward pass
Ω = |mean λ| + std λ                  over parts of the data; layers with a larger Ω get more bits
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError, TechniqueError
from zoo.models.base.model import bare_model

Vector = list[Tensor]


def top_eigenvalues(
    loss: Tensor,
    parameters: Sequence[Tensor],
    count: int = 1,
    *,
    steps: int = 100,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> list[float]:
    """The ``count`` eigenvalues of largest magnitude of the loss's Hessian in ``parameters``, the
    largest first; may be negative.

    Each is found by power iteration, orthogonal to those before, until it moves by less than
    ``tolerance`` of itself, or for ``steps``.
    """
    gradients = _gradients(loss, parameters)
    vectors: list[Vector] = []
    values: list[float] = []
    for _ in range(count):
        v = _unit([torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters])
        value: float | None = None
        for _ in range(steps):
            v = _unit(_without(v, vectors))
            turned = _product(gradients, parameters, v)  # eq: power-iteration
            new = float(_dot(turned, v))  # eq: power-iteration
            v = _unit(turned)  # eq: power-iteration
            if value is not None and abs(new - value) <= tolerance * (abs(value) + 1e-6):
                value = new
                break
            value = new
        assert value is not None
        values.append(value)
        vectors.append(v)
    return values


def hessian_trace(loss: Tensor, parameters: Sequence[Tensor]) -> float:
    """The exact sum of the Hessian's diagonal: one backward pass for each element, so for small
    things alone.
    """
    gradients = _gradients(loss, parameters)
    total = 0.0
    for gradient, parameter in zip(gradients, parameters, strict=True):
        for place, one in enumerate(gradient.flatten()):
            (row,) = torch.autograd.grad(one, [parameter], retain_graph=True, materialize_grads=True)
            total += float(row.flatten()[place])
    return total


def sensitivity(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
    *,
    steps: int = 20,
    tolerance: float = 1e-2,
    generator: torch.Generator | None = None,
) -> dict[int, float]:
    """Ω of each depth: top eigenvalues of the mean loss of each batch in that depth's weights
    alone; without dropout.

    loss: ``lambda model, batch: ...``, a mean over the batch. A part that runs at several depths
    counts at each of them.
    """
    weights: dict[int, dict[int, Tensor]] = {}
    for site in bare_model(model).sites():
        for depth in site.depths:
            weights.setdefault(depth, {}).update({id(p): p for p in site.module.parameters() if p.dim() == 2})
    found: dict[int, list[float]] = {depth: [] for depth in sorted(weights)}
    was = model.training
    model.eval()
    try:
        for batch in batches:
            for depth, values in found.items():
                from torch.nn.attention import SDPBackend, sdpa_kernel

                with sdpa_kernel(SDPBackend.MATH):  # the others know no second derivative
                    value = loss(model, batch)
                    values += top_eigenvalues(
                        value, list(weights[depth].values()), steps=steps, tolerance=tolerance, generator=generator
                    )
    finally:
        model.train(was)
    if not any(found.values()):
        raise InputError("sensitivity needs at least one batch")
    return {  # eq: omega
        depth: abs(statistics.mean(values)) + statistics.pstdev(values) for depth, values in found.items()
    }


def choose_bits(omega: dict[int, float], *, low: int = 2, high: int = 3, share: float = 0.5) -> tuple[int, ...]:
    """``high`` bits for that ``share`` of the depths whose Ω is largest, ``low`` for the others:
    the ``bits`` of `zoo.QBert`.
    """
    if not 0 <= share <= 1:
        raise TechniqueError(f"share must lie between 0 and 1, got {share}")
    if sorted(omega) != list(range(len(omega))):
        raise TechniqueError(f"omega must be given for the depths 0, 1, ..., got {sorted(omega)}")
    chosen = set(sorted(omega, key=lambda depth: -omega[depth])[: round(share * len(omega))])
    return tuple(high if depth in chosen else low for depth in range(len(omega)))


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(parameters), create_graph=True, materialize_grads=True)


def _product(gradients: Sequence[Tensor], parameters: Sequence[Tensor], v: Vector) -> Vector:
    return list(torch.autograd.grad(gradients, list(parameters), v, retain_graph=True, materialize_grads=True))


def _dot(a: Vector, b: Vector) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def _unit(v: Vector) -> Vector:
    length = _dot(v, v).sqrt() + 1e-12
    return [x / length for x in v]


def _without(v: Vector, others: Sequence[Vector]) -> Vector:
    for other in others:
        along = _dot(v, other)
        v = [x - along * y for x, y in zip(v, other, strict=True)]
    return v
