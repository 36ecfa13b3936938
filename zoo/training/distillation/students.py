"""Students made from their teacher."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from zoo.errors import TaskError
from zoo.techniques.blueprint import rebuilt


def student_of(teacher: Any, layers: Sequence[int], **overrides: Any) -> Any:
    """A shallower copy of a model (or task model): the teacher's ``layers`` (from 0, in order)
    become its blocks; the rest is copied.
    """
    bare = getattr(teacher, "model", teacher)
    layers = tuple(layers)
    if "num_layers" not in bare.config.field_names() or bare.techniques:
        raise TaskError(f"{type(bare).__name__} has no plain stack of num_layers blocks to take layers from")
    if not layers or not all(0 <= layer < bare.config.num_layers for layer in layers):
        raise TaskError(f"layers must be some of 0..{bare.config.num_layers - 1}, got {layers}")
    config = bare.config.replace(num_layers=len(layers), **overrides)

    def fill(name: str, new: Tensor, source: Mapping[str, Tensor]) -> Tensor:
        own = re.sub(r"^encoder\.blocks\.(\d+)\.", lambda match: f"encoder.blocks.{layers[int(match[1])]}.", name)
        if own not in source or source[own].shape != new.shape:
            raise TaskError(
                f"the student's {name} {tuple(new.shape)} has no like in the teacher; its layers are not all alike"
            )
        return source[own]

    return rebuilt(teacher, config, fill).train()
