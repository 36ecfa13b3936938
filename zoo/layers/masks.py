"""Who may look at whom, and how a batch with padding runs on its real tokens only.

`Padding` knows which positions of a (batch, length) grid hold real tokens; it packs them into
(tokens, hidden) rows and puts results back. `Mask` says who may look at whom: padding, a `Pattern`
(a rule on positions) and, where a model needs it, a dense bool matrix. An attention op never sees a
packed batch: `Mask.attend` cuts it into dense rectangles, one per run of sequences of equal length,
calls the op on each and joins the results, so the split is written once, under all attention ops.
"""

from __future__ import annotations

import contextvars
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError

_PACKING: contextvars.ContextVar[bool] = contextvars.ContextVar("zoo_packing", default=True)


class packing:
    """Turn the packing of padded batches on or off, from here on or for a ``with`` block. It
    changes speed, not results.
    """

    def __init__(self, on: bool) -> None:
        self._token = _PACKING.set(bool(on))

    def __enter__(self) -> packing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _PACKING.reset(self._token)


def packing_enabled() -> bool:
    """Whether a padded batch would be packed here: not when switched off, nor under torch.compile
    or torch.export.
    """
    return not torch.compiler.is_compiling() and _PACKING.get()


@dataclass(frozen=True)
class Packed:
    """Where the real tokens of a (batch, length) grid went: rows in ``order``, each row's tokens in
    their own order.

    ``index`` (tokens,) int64 into the flattened grid; ``lengths`` real tokens per row, in
    ``order``; ``positions`` (tokens,) the column each token came from, or None where every row's
    tokens stand at 0..length-1.
    """

    index: Tensor
    order: tuple[int, ...]
    lengths: tuple[int, ...]
    grid: tuple[int, int]
    positions: Tensor | None = None

    def pack(self, x: Tensor) -> Tensor:
        """(batch, length, ...) -> (tokens, ...)."""
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """(tokens, ...) -> (batch, length, ...), zeros at padding."""
        batch, length = self.grid
        out = x.new_zeros(batch * length, *x.shape[1:])
        return out.index_copy(0, self.index, x).unflatten(0, (batch, length))

    def to(self, device: torch.device) -> Packed:
        """The same on another device, which is not waited for."""
        if self.index.device == device:
            return self
        positions = None if self.positions is None else self.positions.to(device, non_blocking=True)
        return replace(self, index=self.index.to(device, non_blocking=True), positions=positions)

    def real(self) -> Tensor:
        """(batch, length) bool, True where a token came from."""
        return self.unpack(torch.ones(self.index.shape, dtype=torch.bool, device=self.index.device))


@dataclass(frozen=True)
class Padding:
    """Which positions are real. ``real`` (batch, length) bool, True = a real token, or None where
    all are.
    """

    real: Tensor | None
    grid: tuple[int, int]
    packed: Packed | None = None
    visible: Tensor | None = None  # (batch, query, key) bool, where the user gave a matrix

    @classmethod
    def of(
        cls,
        attention_mask: Tensor | None,
        grid: tuple[int, int],
        *,
        lengths: Sequence[int] | None = None,
        pack: bool = True,
        name: str = "attention_mask",
        device: torch.device | None = None,
    ) -> Padding:
        """Check a user's ``attention_mask`` and plan the packing.

        ``attention_mask``: (batch, length) or (batch, query, key), int or bool, 1/True = real, or
        may look. ``lengths``: real tokens per row where every row is real tokens first, then
        padding. ``pack=False`` keeps the padded form. ``device``: of what is packed, the mask's
        unless said. A plan asks where tokens stand: of the mask where it lies, of ``lengths`` on
        the CPU, so that no accelerator is waited for.
        """
        batch, length = grid
        firsts = None if lengths is None else first_columns(lengths, grid)
        if lengths is not None and attention_mask is None and all(n == length for n in lengths):
            return cls(None, grid)
        real = firsts if attention_mask is None else as_bool(attention_mask, name)
        if real is None:
            return cls(None, grid)
        device = device or real.device
        if real.dim() == 3:
            if tuple(real.shape) != (batch, length, length):
                raise InputError(
                    f"{name} must be (batch, query, key) = {(batch, length, length)}, got {tuple(real.shape)}"
                )
            return cls(real.any(2) | real.any(1), grid, visible=real)
        if tuple(real.shape) != (batch, length):
            raise InputError(
                f"{name} must be (batch, length) = {(batch, length)} or (batch, query, key), got {tuple(real.shape)}"
            )
        here = real if real.device == device else real.to(device, non_blocking=True)
        if not (pack and packing_enabled()) or "meta" in (real.device.type, device.type):
            return cls(here, grid)
        where = _rows(real if firsts is None else firsts)
        return cls(None, grid) if where is None else cls(here, grid, where.to(device))

    @property
    def mask(self) -> Mask:
        """The mask of self-attention inside this stream."""
        return between(self, self)

    def pack(self, x: Tensor) -> Tensor:
        """Packed rows where the batch is packed, else ``x`` as it is."""
        return x if self.packed is None else self.packed.pack(x)

    def unpack(self, x: Tensor) -> Tensor:
        """Back to (batch, length, ...), zeros at padding whether packed or not."""
        if self.packed is not None:
            return self.packed.unpack(x)
        return x if self.real is None else x.masked_fill(~self.real.unflatten(1, (-1, *[1] * (x.dim() - 2))), 0)

    def first(self, x: Tensor) -> Tensor:
        """The first real token of each row of (batch, length, hidden) -> (batch, hidden)."""
        if self.real is None or (self.packed is not None and self.packed.positions is None):
            return x[:, 0]
        where = self.real.int().argmax(1)  # the first True; 0 for a row of padding, which holds zeros
        return x.gather(1, where[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def first_columns(lengths: Sequence[int], grid: tuple[int, int], name: str = "lengths") -> Tensor:
    """(batch, length) bool on the CPU, True for the first ``lengths[i]`` columns of row i."""
    batch, length = grid
    if len(lengths) != batch or any(not 0 <= n <= length for n in lengths):
        raise InputError(f"{name} must be {batch} numbers from 0 to {length}, got {list(lengths)}")
    return torch.arange(length, device="cpu") < torch.tensor(list(lengths), device="cpu").unsqueeze(1)


def _rows(real: Tensor) -> Packed | None:
    """Order the rows by length and number their real tokens; None where nothing is padding."""
    batch, length = real.shape
    counts = real.sum(1).tolist()
    if all(n == length for n in counts):
        return None
    order = tuple(sorted(range(batch), key=counts.__getitem__))
    ordered = real if order == tuple(range(batch)) else real[torch.tensor(order, device=real.device)]
    row, column = ordered.nonzero(as_tuple=True)
    index = torch.tensor(order, device=real.device)[row] * length + column
    straight = bool((ordered[:, 1:] <= ordered[:, :-1]).all())
    return Packed(index, order, tuple(counts[i] for i in order), (batch, length), None if straight else column)


def as_bool(mask: Tensor, name: str = "attention_mask") -> Tensor:
    """A user's 1/True = real mask as bool; additive float masks are refused by name."""
    if not isinstance(mask, Tensor):
        raise InputError(f"{name} must be a tensor, got {type(mask).__name__}")
    if mask.is_floating_point():
        raise InputError(
            f"{name} is {mask.dtype}, which looks additive; pass 1/True for real tokens, e.g. `{name} == 0`"
        )
    if mask.dim() not in (2, 3):
        raise InputError(f"{name} must be (batch, length) or (batch, query, key), got {tuple(mask.shape)}")
    return mask if mask.dtype == torch.bool else mask != 0


@dataclass(frozen=True)
class Pattern:
    """A rule on positions: ``rule(query, key)`` takes int64 position tensors that broadcast and
    gives bool, True = may look.

    ``reach``: how far a query looks to either side (None = no limit), so that a kernel can skip
    what nobody sees. ``causal``: the rule is exactly key <= query. Join two by ``&``.
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
    """Sequence-to-sequence in one stream (UniLM, VLP): everyone sees the first ``length`` tokens,
    the rest is causal.
    """
    return Pattern(lambda query, key: (key < length) | ((key <= query) & (query >= length)), f"prefix({length})")


Kernel = Callable[[Tensor, Tensor, Tensor, "Mask"], Any]


@dataclass(frozen=True)
class Mask:
    """Who may look at whom. Everything is optional; a bare `Mask()` lets everyone see everyone.

    ``keys`` (batch, key) bool: the real keys. ``dense`` (batch, query, key) bool. ``pattern``: a
    rule on positions. With ``query_rows`` and ``key_rows`` both streams come packed.
    ``query_positions``/``key_positions`` (batch, length): the columns tokens came from, where a
    packed rectangle's are not 0..length-1. Join two by ``&``.
    """

    keys: Tensor | None = None
    dense: Tensor | None = None
    pattern: Pattern | None = None
    query_rows: Packed | None = None
    key_rows: Packed | None = None
    query_positions: Tensor | None = field(default=None, repr=False)
    key_positions: Tensor | None = field(default=None, repr=False)

    def __and__(self, other: Mask | Pattern) -> Mask:
        if isinstance(other, Pattern):
            return replace(self, pattern=other if self.pattern is None else self.pattern & other)
        joined = self if other.pattern is None else self & other.pattern
        for name in ("keys", "dense"):
            mine, theirs = getattr(joined, name), getattr(other, name)
            if theirs is not None:
                if self.packed and name == "dense":
                    raise InputError(
                        "a dense matrix can't be joined to the mask of a packed batch; build it with packing off"
                    )
                joined = replace(joined, **{name: theirs if mine is None else mine & theirs})
        return joined

    @property
    def packed(self) -> bool:
        return self.query_rows is not None

    def allowed(self, query: int, key: int, device: torch.device) -> Tensor | None:
        """Bool (batch or 1, 1, query, key), True = may look; None where everyone may. For dense
        rectangles, not for packed rows.
        """
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

    def bias_at(self, bias: Tensor, query: int, key: int) -> Tensor:
        """The part of an additive (1, heads, query, key) bias that belongs to this rectangle, (1 or
        batch, heads, query, key).
        """
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

    def attend(self, kernel: Kernel, query: Tensor, key: Tensor, value: Tensor) -> Any:
        """Run ``kernel(query, key, value, mask)`` on dense rectangles (batch, length, heads, head
        size) and join the results.

        Packed inputs are (tokens, heads, head size); each run of rows of equal lengths is one
        rectangle. Unpacked ones are one rectangle.
        """
        if self.query_rows is None or self.key_rows is None:
            return kernel(query, key, value, self)
        results = []
        for cut_query, cut_key, rows, rectangle in self._rectangles:
            if rectangle is None:  # nobody to look at
                results.append(query.new_zeros(cut_query.stop - cut_query.start, query.shape[1], value.shape[2]))
                continue
            out = kernel(
                query[cut_query].unflatten(0, (rows, -1)),
                key[cut_key].unflatten(0, (rows, -1)),
                value[cut_key].unflatten(0, (rows, -1)),
                rectangle,
            )
            results.append(out.flatten(0, 1))
        if not results:
            return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])
        return results[0] if len(results) == 1 else torch.cat(results)

    @functools.cached_property
    def _rectangles(self) -> list[tuple[slice, slice, int, Mask | None]]:
        """The dense rectangles of a packed batch: where its queries and its keys stand, its rows
        and its mask; None without keys.
        """
        assert self.query_rows is not None
        assert self.key_rows is not None
        found: list[tuple[slice, slice, int, Mask | None]] = []
        for rows, (query_start, query_length), (key_start, key_length) in _runs(
            self.query_rows.lengths, self.key_rows.lengths
        ):
            if query_length == 0:
                continue
            cut_query = slice(query_start, query_start + rows * query_length)
            cut_key = slice(key_start, key_start + rows * key_length)
            rectangle = replace(
                self,
                query_rows=None,
                key_rows=None,
                query_positions=_cut(self.query_rows.positions, cut_query, rows),
                key_positions=_cut(self.key_rows.positions, cut_key, rows) if key_length else None,
            )
            found.append((cut_query, cut_key, rows, rectangle if key_length else None))
        return found


def _cut(positions: Tensor | None, where: slice, rows: int) -> Tensor | None:
    return None if positions is None else positions[where].unflatten(0, (rows, -1))


def _runs(query: Sequence[int], key: Sequence[int]) -> list[tuple[int, tuple[int, int], tuple[int, int]]]:
    """Runs of rows with equal lengths: (rows, (query start, query length), (key start, key
    length)).
    """
    runs = []
    start = query_at = key_at = 0
    for row in range(1, len(query) + 1):
        if row == len(query) or (query[row], key[row]) != (query[start], key[start]):
            rows = row - start
            runs.append((rows, (query_at, query[start]), (key_at, key[start])))
            query_at, key_at, start = query_at + rows * query[start], key_at + rows * key[start], row
    return runs


def between(query: Padding, key: Padding) -> Mask:
    """The mask of attention from one stream to another (or to itself). Two packed streams must
    share their row order: see `together`.
    """
    if query.packed is not None and key.packed is not None:
        if query.packed.order != key.packed.order:
            raise InputError("the two streams are packed in different row orders; build their paddings with `together`")
        return Mask(query_rows=query.packed, key_rows=key.packed)
    return Mask(keys=None if key.visible is not None else key.real, dense=key.visible if query is key else None)


def together(*streams: Padding) -> tuple[Padding, ...]:
    """Give several streams one row order, so that each can look at the others packed; unpacked
    where one of them can't be packed.
    """
    if all(s.packed is None and s.real is None for s in streams):
        return streams
    if any(s.packed is None and s.real is not None for s in streams):
        return tuple(replace(s, packed=None) for s in streams)
    counts = []
    for stream in streams:
        batch, length = stream.grid
        by_row = (
            dict(zip(stream.packed.order, stream.packed.lengths, strict=True))
            if stream.packed
            else dict.fromkeys(range(batch), length)
        )
        counts.append([by_row[row] for row in range(batch)])
    order = tuple(sorted(range(len(counts[0])), key=lambda row: tuple(c[row] for c in counts)))
    device = next(s.packed.index.device for s in streams if s.packed is not None)
    return tuple(replace(s, packed=_reorder(s, order, c, device)) for s, c in zip(streams, counts, strict=True))


def _reorder(stream: Padding, order: tuple[int, ...], counts: Sequence[int], device: torch.device) -> Packed:
    """The same tokens, row after row in ``order``; ``counts``: tokens by row of the grid."""
    length, old = stream.grid[1], stream.packed
    lengths = tuple(counts[row] for row in order)
    if old is None:  # all real
        index = (torch.tensor(order, device="cpu")[:, None] * length + torch.arange(length, device="cpu")).flatten()
        return Packed(index, order, lengths, stream.grid).to(device)
    starts = dict(zip(old.order, itertools.accumulate(old.lengths, initial=0), strict=False))
    begin, count = (torch.tensor(numbers, device="cpu") for numbers in ([starts[row] for row in order], lengths))
    shift = (begin - count.cumsum(0) + count).repeat_interleave(count)  # from a token's new place to its old one
    moved = (torch.arange(len(shift), device="cpu") + shift).to(device, non_blocking=True)
    positions = None if old.positions is None else old.positions[moved]
    return Packed(old.index[moved], order, lengths, stream.grid, positions)
