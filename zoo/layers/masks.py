"""Who may look at whom: padding, rules on positions, and, where a model needs it, a dense matrix.

A `Mask` is data and calls nobody. An attention core never sees a packed batch: `Mask.rectangles` says which dense
rectangles it consists of, one for each run of sequences of equal length, and `zoo.layers.attention` runs the core on
each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.errors import InputError
from zoo.layers.padding import Packed, Padding
from zoo.layers.shapes import Allowed


@dataclass(frozen=True)
class Pattern:
    """A rule on positions: who may look at whom.

    ``rule(query, key)`` takes int64 position tensors that broadcast and gives bool, True = may look.
    ``reach``: how far a query looks to either side (None = no limit), so that a kernel can skip what
    nobody sees. ``causal``: the rule is exactly key <= query. Join two by ``&``.
    """

    rule: Callable[[Tensor, Tensor], Tensor]
    name: str = "pattern"
    reach: int | None = None
    causal: bool = False

    def __and__(self, other: Pattern) -> Pattern:
        reaches = [r for r in (self.reach, other.reach) if r is not None]
        return Pattern(
            lambda query, key: self.rule(query, key) & other.rule(query, key),
            f"{self.name} & {other.name}",
            min(reaches) if reaches else None,
            self.causal and other.causal,
        )


def causal() -> Pattern:
    """Each token may look at itself and what stands before it."""
    return Pattern(lambda query, key: key <= query, "causal", causal=True)


def window(radius: int) -> Pattern:
    """Each token may look at ``radius`` neighbors on either side; the diagonal is always True."""
    return Pattern(lambda query, key: (query - key).abs() <= radius, f"window({radius})", reach=radius)


def prefix(length: int) -> Pattern:
    """Sequence-to-sequence in one stream (UniLM, VLP): all see the first ``length`` tokens, the rest
    is causal.
    """
    return Pattern(lambda query, key: (key < length) | ((key <= query) & (query >= length)), f"prefix({length})")


@dataclass(frozen=True)
class Mask:
    """Who may look at whom. Everything is optional; a bare `Mask()` lets everyone see everyone.

    ``keys``: the real keys. ``pattern``: a rule on positions. With ``query_rows`` and ``key_rows`` both streams come
    packed. ``query_positions``/``key_positions``: the columns tokens came from, where a packed rectangle's are not
    0..length-1. Join two by ``&``.
    """

    keys: Bool[Tensor, "batch key"] | None = None
    dense: Bool[Tensor, "batch query key"] | None = None
    pattern: Pattern | None = None
    query_rows: Packed | None = None
    key_rows: Packed | None = None
    query_positions: Int[Tensor, "#batch query"] | None = field(default=None, repr=False)
    key_positions: Int[Tensor, "#batch key"] | None = field(default=None, repr=False)

    def __and__(self, other: Mask | Pattern) -> Mask:
        if isinstance(other, Pattern):
            return replace(self, pattern=other if self.pattern is None else self.pattern & other)
        joined = self if other.pattern is None else self & other.pattern
        for name in ("keys", "dense"):
            own, added = getattr(joined, name), getattr(other, name)
            if added is not None:
                if self.packed and name == "dense":
                    raise InputError(
                        "a dense matrix can't be joined to the mask of a packed batch; build it with packing off"
                    )
                joined = replace(joined, **{name: added if own is None else own & added})
        return joined

    @property
    def packed(self) -> bool:
        return self.query_rows is not None

    def allowed(self, query: int, key: int, device: torch.device) -> Allowed | None:
        """True = may look; None where everyone may. For dense rectangles, not for packed rows."""
        parts: list[Tensor] = []
        if self.keys is not None:
            parts.append(self.keys[:, None, None, :])
        if self.dense is not None:
            parts.append(self.dense[:, None])
        if self.pattern is not None:
            rows = (
                self.query_positions if self.query_positions is not None else torch.arange(query, device=device)[None]
            )
            columns = self.key_positions if self.key_positions is not None else torch.arange(key, device=device)[None]
            parts.append(self.pattern.rule(rows[:, None, :, None], columns[:, None, None, :]))
        if not parts:
            return None
        allowed = parts[0]
        for part in parts[1:]:
            allowed = allowed & part
        return allowed

    def bias_at(
        self, bias: Float[Tensor, "rows heads longest_query longest_key"], query: int, key: int
    ) -> Float[Tensor, "#batch heads query key"]:
        """The part of an additive bias that belongs to this rectangle."""
        if self.query_positions is None and self.key_positions is None:
            return bias[..., :query, :key]
        device = bias.device
        rows = self.query_positions if self.query_positions is not None else torch.arange(query, device=device)[None]
        columns = self.key_positions if self.key_positions is not None else torch.arange(key, device=device)[None]
        return bias.flatten(0, -3)[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)

    @property
    def plain_causal(self) -> bool:
        """Exactly key <= query and nothing else, so that a kernel's own causal form serves."""
        return (
            self.pattern is not None
            and self.pattern.causal
            and self.keys is None
            and self.dense is None
            and self.query_positions is None
        )

    @functools.cached_property
    def rectangles(self) -> list[Rectangle]:
        """The dense rectangles of a packed batch: one for each run of rows of equal lengths."""
        assert self.query_rows is not None
        assert self.key_rows is not None
        found: list[Rectangle] = []
        for rows, (query_start, query_length), (key_start, key_length) in _runs(
            self.query_rows.lengths, self.key_rows.lengths
        ):
            if query_length == 0:
                continue
            queries = slice(query_start, query_start + rows * query_length)
            keys = slice(key_start, key_start + rows * key_length)
            mask = replace(
                self,
                query_rows=None,
                key_rows=None,
                query_positions=_cut(self.query_rows.positions, queries, rows),
                key_positions=_cut(self.key_rows.positions, keys, rows) if key_length else None,
            )
            found.append(Rectangle(queries, keys, rows, mask if key_length else None))
        return found


@dataclass(frozen=True)
class Rectangle:
    """A dense part of a packed batch: the ``queries`` and ``keys`` among its rows, how many sequences (``rows``) they
    are, and who may look at whom; ``mask`` is None where there is nobody to look at.
    """

    queries: slice
    keys: slice
    rows: int
    mask: Mask | None


def _cut(positions: Int[Tensor, "tokens"] | None, where: slice, rows: int) -> Int[Tensor, "rows length"] | None:
    return None if positions is None else positions[where].unflatten(0, (rows, -1))


def _runs(query: Sequence[int], key: Sequence[int]) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Runs of rows with equal lengths: (rows, (query start, query length), (key start, key length))."""
    runs = []
    start = query_at = key_at = 0
    for row in range(1, len(query) + 1):
        if row == len(query) or (query[row], key[row]) != (query[start], key[start]):
            rows = row - start
            runs.append((rows, (query_at, query[start]), (key_at, key[start])))
            query_at, key_at, start = query_at + rows * query[start], key_at + rows * key[start], row
    return runs


def cross_mask(query: Padding, key: Padding) -> Mask:
    """The mask of attention from one stream to another, or to itself.

    Two packed streams must share their row order: see `together`.
    """
    if query.packed is not None and key.packed is not None:
        if query.packed.order != key.packed.order:
            raise InputError("the two streams are packed in different row orders; give them one with `together`")
        return Mask(query_rows=_ranked(query.packed, query.ranks), key_rows=_ranked(key.packed, key.ranks))
    return Mask(
        keys=None if key.visible is not None else key.real,
        dense=key.visible if query is key else None,
        query_positions=query.ranks,
        key_positions=key.ranks,
    )


def _ranked(rows: Packed, ranks: Int[Tensor, "batch length"] | None) -> Packed:
    return rows if ranks is None else replace(rows, positions=ranks.flatten()[rows.index])
