"""What a caller may want besides the result, collected on the way: hidden states and attention probabilities."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


class Trace:
    """Passed down through one stream's pass; blocks and attention cores add to it what was asked for.

    Each list is None where nobody asked. ``cross_attentions``: of attention to other streams.
    """

    def __init__(self, hidden_states: bool = False, attentions: bool = False) -> None:
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
        other = Trace()
        other.attentions = self.cross_attentions
        return other
