"""What one stream's pass gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

    ``last_hidden_state`` (batch, length, hidden), zeros at padded positions; ``pooler_output``
    (batch, hidden) where the model has a pooler. On request ``hidden_states``: what enters the
    first block, then what leaves each block, all (batch, length, hidden); and ``attentions``: per
    block the probabilities (batch, heads, query, key), zeros for queries and keys that are padding.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
