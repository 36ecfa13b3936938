"""One pass of a model over a batch: it checks the mask, plans the packing and keeps what was asked for.

    run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
    x = run.through(self.encoder)                  # (batch, length, hidden), zeros at padding
    return run.encoded(x, self.pooler)

A model of several streams has a run for each, in `Runs`. Tensors come back from every call; nothing
changes out of sight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.layers.cache import KeyValueCache, Remembering
from zoo.layers.masks import Mask, Pattern, cross_mask
from zoo.layers.outputs import Encoded
from zoo.layers.padding import Padding, padding_like, together
from zoo.layers.trace import Trace, Wanted, chosen

if TYPE_CHECKING:
    from zoo.layers.schedule import Schedule

Pooler = Callable[[Tensor, Padding], Tensor]  # states (batch, length, hidden) and their padding -> (batch, size)


class Run:
    """One stream's pass. ``x`` is what enters; lives for one call.

    attention_mask: (batch, length), 1/True = a real token, or (batch, query, key), 1/True = query may look at key.
    lengths: real tokens per row where each row is real tokens first. hidden_states, attentions: True, or the numbers
    of those to give: state 0 is what enters the first block, map 0 is the first block's; cross-attentions are all
    given. name: what the mask is called in messages.
    ranks: what patterns compare in place of columns: with ``causal()``, 0 for what everybody
    sees and 1, 2, ... for words that are written one after the other.
    cache: keys and values of the columns before these, which the pass adds its own to; mask and
    ranks are then of the new columns alone.
    """

    def __init__(
        self,
        x: Float[Tensor, "batch length hidden"],
        attention_mask: Tensor | None = None,
        lengths: Sequence[int] | None = None,
        hidden_states: Wanted = False,
        attentions: Wanted = False,
        *,
        name: str = "attention_mask",
        ranks: Int[Tensor, "batch length"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> None:
        memory = None
        if cache is None:
            padding = padding_like(x, attention_mask, lengths, pack=not attentions, name=name, ranks=ranks)
        else:
            rows, new = x.shape[:2]
            cache.entered((rows, new), attention_mask, ranks, x.device, name)
            real = None if cache.real is None else cache.real[:, -new:]
            padding, memory = Padding(real, (rows, new)), Remembering(cache, new)
        self._set(x, padding, Trace(hidden_states, attentions, memory), None, cache)

    def _set(
        self,
        x: Float[Tensor, "batch length hidden"],
        padding: Padding,
        trace: Trace,
        earlier: Run | None,
        cache: KeyValueCache | None = None,
    ) -> None:
        self.x, self.padding, self.trace, self.cache = x, padding, trace, cache
        self._earlier = earlier  # the pass that this one goes on from, with other rows
        self._masks: dict[int, Mask] = {}

    def _another(self, x: Float[Tensor, "batch length hidden"], padding: Padding, earlier: Run | None = None) -> Run:
        """A run that keeps what this one keeps."""
        run = Run.__new__(Run)
        run._set(x, padding, Trace(*self.trace.wanted), earlier)
        return run

    def beside(self, x: Float[Tensor, "batch length hidden"]) -> Run:
        """A run of another stream over the same grid, packed alike."""
        return self._another(x, self.padding)

    def repeated(self, x: Float[Tensor, "batch length hidden"], change: Callable[[Tensor], Tensor]) -> Run:
        """The pass goes on with other rows: ``change`` takes (batch, ...) to (new batch, ...)."""
        padding, packed = self.padding, self.padding.packed
        lengths = None
        if packed is not None and packed.positions is None:  # known, so that nobody is asked
            lengths = change(
                torch.tensor([n for _, n in sorted(zip(packed.order, packed.lengths, strict=True))])
            ).tolist()
        real = None if padding.real is None else change(padding.real)
        x, pack = change(x), packed is not None or real is None
        return self._another(x, padding_like(x, real, lengths, pack=pack), earlier=self)

    def onward(
        self,
        x: Float[Tensor, "batch length hidden"],
        attention_mask: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Run:
        """The pass goes on with other states of the same rows, under a mask of their own."""
        padding = padding_like(x, attention_mask, lengths, pack=not self.trace.wanted[1], name="attention_mask")
        return self._another(x, padding, earlier=self)

    # --- what a model calls -----------------------------------------------------------------------------------------

    def through(
        self,
        stack: Callable[[Tensor, Mask, Tensor | None, Trace], Tensor],
        pattern: Pattern | None = None,
        *,
        norm: nn.Module | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """What a stack, or a single block, makes of the states; ``norm``: that it ends in."""
        return self._ended(stack(self.enter(), self._under(pattern), None, self.trace), norm)

    def across(
        self,
        decoder: Callable[[Tensor, Tensor, Mask, Mask, Trace], Tensor],
        source: Run | None,
        pattern: Pattern | None = None,
        *,
        norm: nn.Module | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """What a decoder makes of the states while it looks at ``source``'s; None: at those that the
        cache knows.
        """
        if self.cache is not None:
            if source is not None:
                self.cache.source = source.padding.pack(source.x), source.padding
            if self.cache.source is None:
                raise InputError("the cache knows no source yet; its first pass needs one")
            memory, padding = self.cache.source
            looking = Mask(keys=padding.real)
        else:
            assert source is not None
            self.padding, source.padding = together(self.padding, source.padding)
            memory, looking = source.padding.pack(source.x), self.looking_at(source)
        return self._ended(decoder(self.enter(), memory, self._under(pattern), looking, self.trace), norm)

    def _under(self, pattern: Pattern | None) -> Mask:
        """The mask of this stream joined with a pattern."""
        if self.cache is not None:
            new = self.x.shape[1]
            return self.cache.under(self.cache.mask(new, self.x.device), pattern, new)
        return self.mask if pattern is None else self.mask & pattern

    def enter(self) -> Float[Tensor, "*rows hidden"]:
        """The states as blocks take them: rows of real tokens, or (batch, length, hidden) where the
        batch is not packed. What enters the first block is kept.
        """
        x = self.padding.pack(self.x)
        if self._earlier is None:
            self.trace.hidden(x)
        return x

    def along(self, values: Shaped[Tensor, "batch length *size"]) -> Shaped[Tensor, "*rows"]:
        """Values of each token in the order in which blocks take the states, once they have been entered."""
        return self.padding.pack(values)

    def leave(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "batch length hidden"]:
        """The states as callers take them, zeros at padding."""
        return self.padding.unpack(x)

    def encoded(self, x: Float[Tensor, "batch length hidden"], pooler: Pooler | None = None) -> Encoded:
        """The result of a stream: states, pooled vector, and what was asked for besides."""
        pooled = None if pooler is None else pooler(x, self.padding)
        return Encoded(x, pooled, self.hidden_states, self.attentions)

    # --- what blocks and results ask --------------------------------------------------------------------------------

    @property
    def mask(self) -> Mask:
        """Who may look at whom inside this stream."""
        return self.looking_at(self)

    def looking_at(self, other: Run) -> Mask:
        """Who of this stream may look at whom of another."""
        if id(other) not in self._masks:
            self._masks[id(other)] = cross_mask(self.padding, other.padding)
        return self._masks[id(other)]

    @property
    def hidden_states(self) -> tuple[Float[Tensor, "_batch _length _hidden"], ...] | None:
        """What entered and what left each block, zeros at padding; None if nobody asked."""
        if self.trace.hidden_states is None:
            return None
        states = chosen(self._states(), self.trace.wanted[0], "output_hidden_states")
        return tuple(padding.unpack(x) for padding, x in states)

    def _states(self) -> list[tuple[Padding, Tensor]]:
        """All that were kept, with the padding that they are packed by; from before the rows changed too."""
        earlier = [] if self._earlier is None else self._earlier._states()
        return [*earlier, *((self.padding, x) for x in self.trace.hidden_states or ())]

    @property
    def attentions(self) -> tuple[Float[Tensor, "_batch _heads query key"], ...] | None:
        """The self-attention probabilities, zeros for padding; None if nobody asked."""
        if self.trace.attentions is None:
            return None
        return chosen(self._self_maps(), self.trace.wanted[1], "output_attentions")

    def _self_maps(self) -> tuple[Tensor, ...]:
        earlier = () if self._earlier is None else self._earlier._self_maps()
        return (*earlier, *(self._masked(self.trace.attentions) or ()))

    @property
    def cross_attentions(self) -> tuple[Float[Tensor, "_batch _heads query key"], ...] | None:
        """The probabilities of attention to other streams; None if nobody asked."""
        return self._masked(self.trace.cross_attentions)

    def _masked(self, maps: list[Tensor] | None) -> tuple[Tensor, ...] | None:
        real = self.padding.real
        if maps is None or real is None:
            return None if maps is None else tuple(maps)
        return tuple(map_.masked_fill(~real[:, None, :, None], 0) for map_ in maps)

    def _ended(self, x: Float[Tensor, "*rows hidden"], norm: nn.Module | None) -> Float[Tensor, "batch length hidden"]:
        """What leaves a stack; where it ends in a norm, the last state that is kept is normalized."""
        states = self.trace.hidden_states
        if states is not None and states[-1] is not x:  # a single block keeps nothing itself
            states.append(x)
        if norm is not None:
            x = norm(x)
            if states is not None:
                states[-1] = x
        return self.leave(x)


class Runs(Mapping[str, Run]):
    """The runs of several streams by name, in one row order wherever their batches agree, so that they can look at each
    other packed.
    """

    def __init__(self, runs: Mapping[str, Run]) -> None:
        self._runs = dict(runs)
        first, *others = (run.padding.grid[0] for run in self._runs.values())
        self.apart = any(other != first for other in others)  # such batches can't look at each other
        if not self.apart:
            aligned = together(*(run.padding for run in self._runs.values()))
            for run, padding in zip(self._runs.values(), aligned, strict=True):
                run.padding = padding

    def __getitem__(self, name: str) -> Run:
        return self._runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    def through(
        self, schedule: Schedule, steps: slice = slice(None)
    ) -> dict[str, Float[Tensor, "_batch _length _size"]]:
        """What a schedule, or some ``steps`` of it, makes of the streams."""
        made = schedule({name: run.enter() for name, run in self.items()}, self, steps)
        return {name: self[name].padding.unpack(x) for name, x in made.items()}

    def repeated(
        self, x: Mapping[str, Float[Tensor, "_batch _length _size"]], change: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> Runs:
        """The passes go on with ``x``, and where ``change`` names a stream with other rows."""
        return Runs({name: run.repeated(x[name], change.get(name, _same)) for name, run in self.items()})


def _same(x: Tensor) -> Tensor:
    return x
