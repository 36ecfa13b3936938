"""What one stream's pass gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor


class Output:
    """Common to all results: fields that hold nothing are None; iterate with `present`."""

    def present(self) -> Iterator[tuple[str, Any]]:
        """Name and value of every field that holds something."""
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if value is not None:
                yield item.name, value


@dataclass(frozen=True)
class Encoded(Output):
    """One stream after its encoder.

    ``last_hidden_state``: zeros at padded positions. ``pooler_output``: where the model has a
    pooler. On request ``hidden_states``: what enters the first block, then what leaves each block;
    and ``attentions``: per block the probabilities, zeros for queries and keys that are padding.
    """

    last_hidden_state: Float[Tensor, "batch length hidden"]
    pooler_output: Float[Tensor, "batch pooled"] | None = None
    hidden_states: tuple[Float[Tensor, "_batch _length _hidden"], ...] | None = None
    attentions: tuple[Float[Tensor, "_batch _heads query key"], ...] | None = None
