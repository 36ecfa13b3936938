"""Bort's question (de Wynter & Perry, 2020): which sizes of a family are small, fast and good at
once?

    W(f) = (1 - p(f) / p(F)) · (1 - i(f) / i(F)) · e(F) / e(f)

with F the largest, p parameters, i the time of a forward pass, e the error.
Every candidate (layers, heads, hidden, feed-forward) has a p, counted on the meta device, and an i,
measured; e costs a training run each. The search spares many of these: where error does not rise
with any of the four sizes, a candidate f need not be trained if another g has none of the four
smaller and saves nearly as much, since then

    W(g) / W(f) >= (1 - p(g) / p(F)) (1 - i(g) / i(F)) / ((1 - p(f) / p(F)) (1 - i(f) / i(F))) >= 1 - ε
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from zoo.errors import ConfigError, InputError
from zoo.layers.blocks import bert_block
from zoo.layers.init import shapes_only
from zoo.layers.masks import Mask


@dataclass(frozen=True, order=True)
class Shape:
    """The four sizes that Bort searches over."""

    num_layers: int
    num_heads: int
    hidden_size: int
    intermediate_size: int

    def within(self, other: Shape) -> bool:
        """Whether none of the four is larger than the other's."""
        return all(own <= limit for own, limit in zip(self.sizes, other.sizes, strict=True))

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.num_layers, self.num_heads, self.hidden_size, self.intermediate_size


@dataclass(frozen=True)
class Cost:
    """``parameters`` of the encoder and ``seconds`` of one forward pass."""

    parameters: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """What a search found: the best of the trained candidates, the coefficient of each of them, and
    which were spared.
    """

    best: Shape
    coefficient: Mapping[Shape, float]
    errors: Mapping[Shape, float]
    spared: Mapping[Shape, Shape]  # each with the one that stands for it; itself where it saves nothing


SPACE = {
    "num_layers": (2, 4, 6, 8, 10, 12),
    "num_heads": (4, 8, 12, 16),
    "hidden_size": (512, 768, 1024),
    "intermediate_size": (256, 512, 768, 1024, 3072),
}
"""A grid around the published optimum, as the paper's is remembered; its exact grid is not in the
sources that were at hand.
"""

BORT = Shape(4, 8, 1024, 768)
ROBERTA_LARGE = Shape(24, 16, 1024, 4096)  # the largest, which Bort is cut from


def shapes(space: Mapping[str, Sequence[int]] = SPACE) -> tuple[Shape, ...]:
    """Every combination whose heads divide its width, largest first."""
    if set(space) != set(SPACE):
        raise ConfigError(f"a space has {', '.join(SPACE)}; got {', '.join(space)}")
    found = [Shape(*sizes) for sizes in itertools.product(*(space[name] for name in SPACE))]
    return tuple(sorted((shape for shape in found if shape.hidden_size % shape.num_heads == 0), reverse=True))


def parameters(shape: Shape) -> int:
    """The parameters of the blocks, embeddings left out: those of all candidates with one
    vocabulary differ by width alone.
    """
    with shapes_only():
        return shape.num_layers * sum(p.numel() for p in _block(shape).parameters())


def seconds(shape: Shape, *, batch: int = 1, length: int = 128, repeats: int = 10) -> float:
    """The time of the blocks on this machine: the fastest of ``repeats`` passes through one block,
    times their number. No padding.
    """
    block = _block(shape).eval()
    x = torch.zeros(batch, length, shape.hidden_size)
    taken = []
    with torch.inference_mode():
        block(x, Mask())
        for _ in range(repeats):
            started = time.perf_counter()
            block(x, Mask())
            taken.append(time.perf_counter() - started)
    return shape.num_layers * min(taken)


def costs(candidates: Iterable[Shape], **options: int) -> dict[Shape, Cost]:
    """Count and time each; shapes that differ in depth alone share a measurement."""
    block_seconds: dict[tuple[int, int, int], float] = {}
    found = {}
    for shape in candidates:
        key = shape.sizes[1:]
        if key not in block_seconds:
            block_seconds[key] = seconds(Shape(1, *key), **options)
        found[shape] = Cost(parameters(shape), shape.num_layers * block_seconds[key])
    return found


def coefficient(cost: Cost, error: float, largest: Cost, largest_error: float) -> float:
    """W: what is saved of parameters times what is saved of time times how much better the error
    is; 0 or less where nothing is saved.
    """
    small = 1 - cost.parameters / largest.parameters
    fast = 1 - cost.seconds / largest.seconds
    if error <= 0 or largest_error <= 0:
        raise InputError(f"errors must be more than 0, got {error} and {largest_error}")
    return min(small, fast) if small < 0 or fast < 0 else small * fast * largest_error / error


def search(
    cost: Mapping[Shape, Cost],
    error: Callable[[Shape], float],
    largest: Cost,
    largest_error: float,
    *,
    epsilon: float = 0.05,
) -> Found:
    """The candidate of the highest W, or one that has at least 1 - ``epsilon`` times it, if error
    does not rise with size.

    ``error`` is asked only for candidates that no larger one stands for.
    """
    if not 0 <= epsilon < 1:
        raise ConfigError(f"epsilon={epsilon} must lie in [0, 1)")
    kept: list[Shape] = []
    spared: dict[Shape, Shape] = {}
    saved = {shape: coefficient(own, 1.0, largest, 1.0) for shape, own in cost.items()}
    for shape in sorted(cost, reverse=True):
        if saved[shape] <= 0:
            spared[shape] = shape
            continue
        other = next((g for g in kept if shape.within(g) and saved[g] >= (1 - epsilon) * saved[shape]), None)
        if other is None:
            kept.append(shape)
        else:
            spared[shape] = other
    if not kept:
        raise InputError("no candidate is smaller and faster than the largest, so there is nothing to find")
    errors = {shape: error(shape) for shape in kept}
    found = {shape: coefficient(cost[shape], errors[shape], largest, largest_error) for shape in kept}
    return Found(max(found, key=found.__getitem__), found, errors, spared)


def needed_error(cost: Mapping[Shape, Cost], best: Shape, largest: Cost) -> dict[Shape, float]:
    """For each candidate: how many times the error of ``best`` its own must at least be, for
    ``best`` to have the higher W.
    """
    reference = coefficient(cost[best], 1.0, largest, 1.0)
    return {shape: coefficient(own, 1.0, largest, 1.0) / reference for shape, own in cost.items() if shape != best}


def _block(shape: Shape) -> torch.nn.Module:
    return bert_block(shape.hidden_size, shape.num_heads, shape.intermediate_size, norm_eps=1e-5)
