"""One pass of a model: its padding, its packing, and what it was asked to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from zoo.layers.masks import Padding, together
from zoo.layers.schedule import Schedule
from zoo.layers.trace import Trace


class Journey:
    """Several streams on their way through a schedule: padded tensors between runs, packed inside,
    and what was kept on the way.

    ``x``: each stream (batch, length, size). ``of``: its padding. Lives for one call.
    """

    def __init__(
        self, x: Mapping[str, Tensor], of: Mapping[str, Padding], *, hidden_states: bool, attentions: bool
    ) -> None:
        self.x, self.of = dict(x), dict(of)
        self.wanted = (hidden_states, attentions)
        self.states: dict[str, list[Tensor]] = {name: [] for name in x}
        self.maps: dict[str, list[Tensor]] = {name: [] for name in (*x, "across")}

    @property
    def apart(self) -> bool:
        """Whether the streams have batches of different sizes, so that they can't look at each
        other yet.
        """
        first, *others = self.x.values()
        return any(other.shape[0] != first.shape[0] for other in others)

    def go(self, schedule: Schedule, *, all_pairs: bool = False) -> None:
        """The whole schedule, of which "text" and "image" run apart until they first meet where
        their batches differ.

        There one text is repeated for each picture; ``all_pairs``: every text meets every picture,
        rows with the pictures running fast.
        """
        if not (all_pairs or self.apart):
            self.run(schedule)
            return
        meet = next((i for i, step in enumerate(schedule.steps) if len(step.writes) > 1), len(schedule.steps))
        self.run(schedule, slice(meet))
        texts, pictures = self.x["text"].shape[0], self.x["image"].shape[0]
        which: dict[str, Callable[[Tensor], Tensor]] = {"text": lambda x: x.repeat_interleave(pictures, 0)}
        if all_pairs:
            which["image"] = lambda x: x.repeat(texts, *[1] * (x.dim() - 1))
        self.spread(which)
        self.run(schedule, slice(meet, None))

    def run(self, schedule: Schedule, steps: slice = slice(None)) -> None:
        """Some steps of the schedule."""
        if not self.apart:
            self.of = dict(zip(self.of, together(*self.of.values()), strict=True))
        traces = {name: Trace(*self.wanted) for name in (*self.x, "across")}
        packed = {name: self.of[name].pack(value) for name, value in self.x.items()}
        for name, value in packed.items():
            if not self.states[name]:
                traces[name].hidden(value)  # what enters the first block
        self.x = {name: self.of[name].unpack(value) for name, value in schedule(packed, self.of, traces, steps).items()}
        for name in self.x:
            self.states[name] += traces[name].states(self.of[name].unpack) or ()
            self.maps[name] += traces[name].maps(self.of[name].real) or ()
        self.maps["across"] += traces["across"].maps() or ()

    def spread(self, which: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Give streams other rows: each one's function takes (batch, ...) to (new batch, ...)."""
        for name, change in which.items():
            real, packed = self.of[name].real, self.of[name].packed
            lengths = None
            if packed is not None and packed.positions is None:  # known, so that nobody is asked
                lengths = change(
                    torch.tensor([n for _, n in sorted(zip(packed.order, packed.lengths, strict=True))])
                ).tolist()
            self.x[name] = change(self.x[name])
            grid = (self.x[name].shape[0], self.x[name].shape[1])
            real = None if real is None else change(real)
            self.of[name] = Padding.of(real, grid, lengths=lengths, pack=packed is not None or real is None)

    def first(self, name: str) -> Tensor:
        """The first real state of each row of a stream, (batch, size)."""
        return self.of[name].first(self.x[name])

    def kept(self, name: str) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """A stream's hidden states and its attention maps, where they were asked for."""
        return tuple(self.states[name]) if self.wanted[0] else None, tuple(self.maps[name]) if self.wanted[1] else None

    def across(self, *directions: tuple[str, str]) -> tuple[tuple[Tensor, ...], ...] | None:
        """The maps between streams, those of each block together: its ``directions`` are (who
        looks, at whom); padded queries are zeros.
        """
        if not self.wanted[1]:
            return None
        maps = self.maps["across"]
        looking = [self.of[name].real for name, _ in directions] * (len(maps) // len(directions))
        kept = [
            m if real is None else m.masked_fill(~real[:, None, :, None], 0)
            for m, real in zip(maps, looking, strict=True)
        ]
        return tuple(tuple(kept[i : i + len(directions)]) for i in range(0, len(kept), len(directions)))
