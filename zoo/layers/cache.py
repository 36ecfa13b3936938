"""What the attentions of a model that writes remember of the tokens before: their keys and values.

    step t:  q_t, k_t, v_t from the new tokens alone;   attention(q_t, [k_1 .. k_t], [v_1 .. v_t])

A cache grows with every pass that it is handed to (`zoo.layers.run.Run`). Keys and values of another
stream (an encoder's result) are made once. Several rows may write for one source: beams. It is for
inference: what is remembered carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.errors import InputError
from zoo.layers.masks import Mask, Pattern
from zoo.layers.padding import Padding, as_bool

Pair = tuple[Tensor, Tensor]  # keys and values, (rows, length, heads, size) each, or packed (tokens, heads, size)
ROOM = 64  # columns that are held free at first


class Grown:
    """Keys or values of one attention, in a tensor with room for more columns."""

    def __init__(self) -> None:
        self.held: Tensor | None = None  # (rows, heads, room, size)

    def extended(self, x: Float[Tensor, "rows new heads size"], start: int) -> Float[Tensor, "rows all heads size"]:
        """All so far with ``x``, whose first column is ``start``."""
        x, end = x.transpose(1, 2), start + x.shape[1]
        if self.held is None or self.held.shape[2] < end:
            room = x.new_empty(*x.shape[:2], max(ROOM, end, end * 3 // 2), x.shape[3])
            if self.held is not None:
                room[:, :, :start] = self.held[:, :, :start]
            self.held = room
        self.held[:, :, start:end] = x
        return self.held[:, :, :end].transpose(1, 2)


class KeyValueCache:
    """Keys and values so far. ``length``: columns; ``real`` (rows, length): which of them are tokens,
    None = all; ``ranks`` (rows, length): what patterns compare in place of columns, None = columns.

    Attentions are told apart by the order in which a pass calls them, so a block that runs at several
    depths has an entry for each.
    """

    def __init__(self) -> None:
        self.length = 0
        self.real: Bool[Tensor, "rows length"] | None = None
        self.ranks: Int[Tensor, "rows length"] | None = None
        self.source: tuple[Tensor, Padding] | None = None  # of the stream that is looked at, as blocks take it
        self._own: list[tuple[Grown, Grown]] = []
        self._across: list[Pair] = []

    # --- one pass -----------------------------------------------------------------------------------------------------

    def entered(
        self,
        grid: tuple[int, int],
        attention_mask: Tensor | None,
        ranks: Int[Tensor, "rows new"] | None,
        device: torch.device,
        name: str = "attention_mask",
    ) -> None:
        """Note which of the new columns are real, and their ranks."""
        rows, new = grid
        real = None if attention_mask is None else as_bool(attention_mask, name)
        if real is not None and tuple(real.shape) != grid:
            raise InputError(f"{name} must be (batch, new length) = {grid} beside a cache, got {tuple(real.shape)}")
        if self.real is not None or (real is not None and not bool(real.all())):
            before = torch.ones(rows, self.length, dtype=torch.bool, device=device) if self.real is None else self.real
            added = torch.ones(rows, new, dtype=torch.bool, device=device) if real is None else real.to(device)
            self.real = torch.cat([before, added], 1)
        if ranks is not None:
            self.ranks = ranks if self.ranks is None else torch.cat([self.ranks, ranks], 1)
        elif self.ranks is not None:
            raise InputError("the tokens before have ranks, so the new ones need theirs")
        self.length += new

    def mask(self, new: int, device: torch.device) -> Mask:
        """Who of the last ``new`` columns may look at whom of all: at what is real. A pattern is joined by
        ``&``; it compares columns, or ranks where tokens have them.
        """
        if self.ranks is not None:
            return Mask(keys=self.real, query_positions=self.ranks[:, -new:], key_positions=self.ranks)
        columns = torch.arange(self.length, device=device)[None]
        return Mask(keys=self.real, query_positions=columns[:, -new:], key_positions=columns)

    def under(self, mask: Mask, pattern: Pattern | None, new: int) -> Mask:
        """The mask joined with a pattern; a single new token of a causal model sees all before it anyway."""
        if pattern is None or (new == 1 and pattern.causal and self.ranks is None):
            return mask
        return mask & pattern

    # --- between passes -----------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """How many rows are written."""
        for pair in self._own:
            for each in pair:
                if each.held is not None:
                    return each.held.shape[0]
        return 0

    def repeat(self, times: int) -> None:
        """Each row becomes ``times`` rows, one behind the other; they look at one source."""
        if times == 1:
            return
        for pair in self._own:
            for each in pair:
                if each.held is not None:
                    each.held = each.held.repeat_interleave(times, 0)
        self.real = None if self.real is None else self.real.repeat_interleave(times, 0)
        self.ranks = None if self.ranks is None else self.ranks.repeat_interleave(times, 0)

    def follow(self, parents: Int[Tensor, "rows"], since: int = 0) -> None:
        """Row i goes on from what row ``parents[i]`` has; ``since``: they agree on the columns before it.
        Both write for the same source, and their columns are real alike.
        """
        moved = (parents != torch.arange(len(parents), device=parents.device)).nonzero().flatten()
        if not len(moved) or since >= self.length:
            return
        origin = parents[moved]
        for pair in self._own:
            for each in pair:
                if each.held is not None:
                    part = each.held[:, :, since : self.length]
                    part[moved] = part[origin]

    def keep(self, sources: Int[Tensor, "kept"], each: int = 1) -> None:
        """Keep the rows of these sources alone, ``each`` rows for every one."""
        places = (sources[:, None] * each + torch.arange(each, device=sources.device)).flatten()
        for pair in self._own:
            for side in pair:
                if side.held is not None:
                    side.held = side.held[places]
        self._across = [(k[sources], v[sources]) for k, v in self._across]
        self.real = None if self.real is None else self.real[places]
        self.ranks = None if self.ranks is None else self.ranks[places]
        if self.source is not None and self._across:  # nobody reads the states again, their padding alone
            memory, padding = self.source
            real = None if padding.real is None else padding.real[sources]
            self.source = memory[:0], Padding(real, (len(sources), padding.grid[1]))

    def cut(self, length: int) -> None:
        """Forget the columns from ``length`` on."""
        self.length = min(length, self.length)
        self.real = None if self.real is None else self.real[:, : self.length]
        self.ranks = None if self.ranks is None else self.ranks[:, : self.length]


class Remembering:
    """A cache during one pass: whose turn it is. Called with a function that makes an attention's keys
    and values, it gives all that the attention sees.
    """

    def __init__(self, cache: KeyValueCache, new: int) -> None:
        self.cache, self.start = cache, cache.length - new
        self._turn = 0
        self._across: _OfSource | None = None

    def __call__(self, make: Callable[[], Pair]) -> Pair:
        if self._turn == len(self.cache._own):
            self.cache._own.append((Grown(), Grown()))
        keys, values = self.cache._own[self._turn]
        self._turn += 1
        k, v = make()
        return keys.extended(k, self.start), values.extended(v, self.start)

    @property
    def across(self) -> _OfSource:
        """The same for attention to the source, whose keys and values are made once."""
        if self._across is None:
            self._across = _OfSource(self.cache)
        return self._across


class _OfSource:
    def __init__(self, cache: KeyValueCache) -> None:
        self.cache, self._turn = cache, 0

    def __call__(self, make: Callable[[], Pair]) -> Pair:
        found = self.cache._across
        if self._turn == len(found):
            k, v = make()
            assert self.cache.source is not None
            padding = self.cache.source[1]
            found.append((padding.unpack(k), padding.unpack(v)))
        self._turn += 1
        return found[self._turn - 1]


Remembered = Remembering | _OfSource


def remembered(memory: Remembered | None, make: Callable[[], Pair]) -> Pair:
    """Keys and values that ``make`` makes, and with a cache those of the tokens before them."""
    return make() if memory is None else memory(make)
