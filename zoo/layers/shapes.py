"""Shapes that several signatures share and that are too long to be written out in each."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

Rows = Float[Tensor, "*rows hidden"]  # states as blocks take them: (batch, length, hidden), or packed (tokens, hidden)
SourceRows = Float[Tensor, "*source_rows source_size"]  # of another stream

Queries = Float[Tensor, "batch heads query size"]
Keys = Float[Tensor, "batch heads key size"]  # values have the same
Front = Float[Tensor, "#batch heads front size"]  # keys or values in front of the real ones
Seen = Float[Tensor, "batch heads seen size"]  # both together
Allowed = Bool[Tensor, "#batch #heads #query key"]
Bias = Float[Tensor, "#batch #heads query key"]
