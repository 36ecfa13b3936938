"""What a caller may want besides the result, collected on the way: hidden states and attention
probabilities.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Trace:
    """Passed down through a forward pass; blocks and attention ops add to it what was asked for.
    Lives for one call.
    """

    def __init__(self, hidden_states: bool = False, attentions: bool = False) -> None:
        self.hidden_states: list[Tensor] | None = [] if hidden_states else None
        self.attentions: list[Tensor] | None = [] if attentions else None
        self.cross_attentions: list[Tensor] | None = [] if attentions else None

    @property
    def wants_attentions(self) -> bool:
        return self.attentions is not None

    def hidden(self, x: Tensor) -> None:
        """Keep what enters or leaves a block."""
        if self.hidden_states is not None:
            self.hidden_states.append(x)

    def keep(self, probabilities: Tensor) -> None:
        """Keep one attention map (batch, heads, query, key)."""
        if self.attentions is not None:
            self.attentions.append(probabilities)

    def across(self) -> Trace:
        """The trace for a cross-attention: its maps are kept apart from the self-attention's."""
        other = Trace()
        other.attentions = self.cross_attentions
        return other

    def states(self, unpack: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...] | None:
        """The hidden states as (batch, length, hidden) with zeros at padding, or None if nobody
        asked.
        """
        return None if self.hidden_states is None else tuple(unpack(x) for x in self.hidden_states)

    def maps(self, real: Tensor | None = None) -> tuple[Tensor, ...] | None:
        """The self-attention probabilities (batch, heads, query, key), or None if nobody asked.

        ``real`` (batch, query) bool: the queries that are tokens; the rows of the others are given
        as zeros.
        """
        if self.attentions is None or real is None:
            return None if self.attentions is None else tuple(self.attentions)
        return tuple(map_.masked_fill(~real[:, None, :, None], 0) for map_ in self.attentions)

    def cross_maps(self) -> tuple[Tensor, ...] | None:
        """The cross-attention probabilities, or None if nobody asked."""
        return None if self.cross_attentions is None else tuple(self.cross_attentions)
