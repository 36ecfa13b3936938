"""Students made from their teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from zoo.errors import TaskError
from zoo.tasks.base import canonical_state
from zoo.techniques.blueprint import Blueprint


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
    student = replace(Blueprint.of(teacher), config=config).drawn(dtype=bare.dtype)
    source, target = canonical_state(teacher), canonical_state(student)
    with torch.no_grad():
        for name, tensor in target.items():
            own = re.sub(r"^encoder\.blocks\.(\d+)\.", lambda match: f"encoder.blocks.{layers[int(match[1])]}.", name)
            if own not in source or source[own].shape != tensor.shape:
                raise TaskError(
                    f"the student's {name} {tuple(tensor.shape)} has no like in the teacher; its layers are not all "
                    "alike"
                )
            tensor.copy_(source[own])
    return student.to(bare.device)
