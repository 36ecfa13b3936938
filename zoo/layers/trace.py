"""What a caller may want besides the result, collected on the way: hidden states and attention probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from zoo.errors import InputError
from zoo.layers.cache import Remembered, Remembering

Wanted = bool | Sequence[int]  # all, none, or those of these numbers
T = TypeVar("T")


def chosen(values: Sequence[T], wanted: Wanted, name: str) -> tuple[T, ...]:
    """Those that are wanted, in the order in which they were named; negative numbers count from the end.
    Where there are none (a stream without attention) none are given.
    """
    if isinstance(wanted, bool) or not values:
        return tuple(values)
    for number in wanted:
        if not isinstance(number, int) or not -len(values) <= number < len(values):
            raise InputError(f"{name} names {number!r}; there are {len(values)}, from 0 to {len(values) - 1}")
    return tuple(values[number] for number in wanted)


class Trace:
    """Passed down through one stream's pass; blocks and attention cores add to it what was asked for.

    Each list is None where nobody asked. ``cross_attentions``: of attention to other streams. ``wanted``:
    what was asked for, states and maps, True or the numbers of those to be given in the end. ``memory``: what
    attentions remember of the tokens before these, where they do.
    """

    def __init__(
        self, hidden_states: Wanted = False, attentions: Wanted = False, memory: Remembered | None = None
    ) -> None:
        self.wanted, self.memory = (hidden_states, attentions), memory
        self.hidden_states: list[Tensor] | None = [] if hidden_states else None
        self.attentions: list[Tensor] | None = [] if attentions else None
        self.cross_attentions: list[Tensor] | None = [] if attentions else None

    @property
    def wants_attentions(self) -> bool:
        return self.attentions is not None

    def hidden(self, x: Float[Tensor, "*rows hidden"]) -> None:
        """Keep what enters or leaves a block."""
        if self.hidden_states is not None:
            self.hidden_states.append(x)

    def keep(self, probabilities: Float[Tensor, "batch heads query key"]) -> None:
        """Keep one attention map."""
        if self.attentions is not None:
            self.attentions.append(probabilities)

    def across(self) -> Trace:
        """The trace for a cross-attention: its maps are kept apart from the self-attention's."""
        other = Trace(memory=self.memory.across if isinstance(self.memory, Remembering) else None)
        other.attentions = self.cross_attentions
        return other
