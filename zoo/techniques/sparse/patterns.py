"""Sparse patterns: who may look at whom, as data that kernels can skip by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from zoo.errors import ConfigError
from zoo.layers.masks import Pattern

BLOCK = 64  # queries that run together, at least, where a pattern does not say


@dataclass(frozen=True)
class Sparsity:
    """A rule on positions and where the keys that it allows are to be found.

    ``left``, ``right``: the near keys of query i are i - left .. i + right; ``stretch``: those of
    its stretch of so many tokens instead. ``columns``: length -> the far columns. ``stride``: the
    keys of i's residue class. ``rows``: the first tokens, which are given all keys. Where a key is
    found in two places the first counts.
    """

    pattern: Pattern
    left: int = 0
    right: int = -1  # less than -left: no near keys
    stretch: int | None = None
    columns: Callable[[int], range | list[int]] | None = None
    stride: int | None = None
    rows: int = 0

    @property
    def block(self) -> int:
        """How many queries run together."""
        if self.stretch is not None:
            return self.stretch
        if self.stride is not None:
            return self.stride * max(1, math.ceil(BLOCK / self.stride))
        return max(BLOCK, self.left, self.right)

    def __or__(self, other: Sparsity) -> Sparsity:
        """What either allows: local | strided is the paper's merged head."""
        if (self.stretch or other.stretch) and max(self.left + self.right, other.left + other.right) >= 0:
            raise ConfigError(
                "a pattern of stretches can't be joined to one of a window; join the window to the strided pattern "
                "instead"
            )
        if self.stride and other.stride and self.stride != other.stride:
            raise ConfigError(f"two strides can't be joined, got {self.stride} and {other.stride}")
        one, two, name = self.columns, other.columns, f"{self.pattern.name} | {other.pattern.name}"
        return Sparsity(
            Pattern(partial(_either, self.pattern.rule, other.pattern.rule), name),
            max(self.left, other.left),
            max(self.right, other.right),
            self.stretch or other.stretch,
            partial(_union, one, two) if one is not None and two is not None else one or two,
            self.stride or other.stride,
            max(self.rows, other.rows),
        )


# The rules are functions of this module with their numbers bound, so that a model that holds them can be pickled.
Rule = Callable[[Tensor, Tensor], Tensor]


Columns = Callable[[int], range | list[int]]


def _either(one: Rule, two: Rule, query: Tensor, key: Tensor) -> Tensor:
    return one(query, key) | two(query, key)


def _union(one: Columns, two: Columns, length: int) -> list[int]:
    return sorted({*one(length), *two(length)})


def _local(width: int, causal: bool, query: Tensor, key: Tensor) -> Tensor:  # eq: local
    return (key <= query) & (query - key < width) if causal else (query - key).abs() < width


def _strided(stride: int, causal: bool, query: Tensor, key: Tensor) -> Tensor:  # eq: strided
    seen = (query - key) % stride == 0
    return seen & (key <= query) if causal else seen


def _fixed(stretch: int, low: int, high: int, causal: bool, query: Tensor, key: Tensor) -> Tensor:  # eq: fixed
    place = key % stretch
    seen = (query // stretch == key // stretch) | ((place >= low) & (place < high))
    return seen & (key <= query) if causal else seen


def _summary(stretch: int, low: int, high: int, length: int) -> list[int]:
    return [
        start + place for start in range(0, length, stretch) for place in range(low, high) if start + place < length
    ]


def _windowed(radius: int, tokens: int, causal: bool, query: Tensor, key: Tensor) -> Tensor:  # eq: windowed
    seen = ((query - key).abs() <= radius) | (query < tokens) | (key < tokens)
    return seen & (key <= query) if causal else seen


def _first(tokens: int, length: int) -> range:
    return range(min(tokens, length))


def _everything(causal: bool, query: Tensor, key: Tensor) -> Tensor:
    return key <= query if causal else (query == query) & (key == key)


def _named(name: str, causal: bool) -> str:
    return f"{name[:-1]}, causal)" if causal else name


def _check(**least_one: int) -> None:
    for name, value in least_one.items():
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")


def local(width: int, *, causal: bool = False) -> Sparsity:
    """``|i - j| < width``, causal ``i - width < j <= i``: the token itself counts."""
    _check(width=width)
    rule = Pattern(partial(_local, width, causal), _named(f"local({width})", causal), reach=width - 1)
    return Sparsity(rule, width - 1, 0 if causal else width - 1)


def strided(stride: int, *, causal: bool = False) -> Sparsity:
    """``(i - j) mod stride = 0``."""
    _check(stride=stride)
    return Sparsity(Pattern(partial(_strided, stride, causal), _named(f"strided({stride})", causal)), stride=stride)


def fixed(stretch: int, summary: int, *, group: int = 0, causal: bool = False) -> Sparsity:
    """The query's own stretch of ``stretch`` tokens, and of each stretch the ``group``-th run of
    ``summary`` tokens from its end.
    """
    _check(stretch=stretch, summary=summary)
    low = stretch - summary * (group + 1)
    if low < 0:
        raise ConfigError(f"group {group} of {summary} summary tokens does not fit into a stretch of {stretch}")
    high = low + summary
    rule = Pattern(partial(_fixed, stretch, low, high, causal), _named(f"fixed({stretch}, {low}..{high - 1})", causal))
    return Sparsity(rule, stretch=stretch, columns=partial(_summary, stretch, low, high))


def windowed(radius: int, tokens: int = 0, *, causal: bool = False) -> Sparsity:
    """``|i - j| <= radius``; the first ``tokens`` tokens see everyone and are seen by everyone."""
    if radius < 0 or tokens < 0:
        raise ConfigError(f"a window's radius and its global tokens can't be negative, got {radius} and {tokens}")
    name = _named(f"window({radius}{f', {tokens} global' if tokens else ''})", causal)
    pattern = Pattern(partial(_windowed, radius, tokens, causal), name, reach=None if tokens else radius)
    return Sparsity(
        pattern, radius, 0 if causal else radius, columns=partial(_first, tokens) if tokens else None, rows=tokens
    )


def everything(*, causal: bool = False) -> Sparsity:
    """Full attention, as a pattern among others: heads may differ."""
    return Sparsity(Pattern(partial(_everything, causal), _named("all()", causal), causal=causal), rows=1 << 62)
