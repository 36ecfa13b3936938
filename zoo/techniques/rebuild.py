"""The same model by another config, with the old one's tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zoo.errors import TechniqueError
from zoo.tasks.base import canonical_state
from zoo.techniques.blueprint import Blueprint


def rebuilt(model: Any, config: Any, along: Callable[[str, Tensor, int], Tensor]) -> Any:
    """A model (or task model) of another vocabulary with the old one's tensors; ``along(path, old
    tensor, axis)`` changes those that have an axis of the vocabulary's size.
    """
    bare: Any = getattr(model, "model", model)
    made = replace(Blueprint.of(model), config=config).drawn(dtype=bare.dtype)
    source, size = canonical_state(model), bare.config.vocab_size
    with torch.no_grad():
        for path, tensor in canonical_state(made).items():
            if path not in source:
                raise TechniqueError(f"the new model has {path}, which the old one has not")
            old = source[path]
            differing = [axis for axis, (a, b) in enumerate(zip(old.shape, tensor.shape, strict=True)) if a != b]
            if len(differing) > 1 or any(old.shape[axis] != size for axis in differing):
                raise TechniqueError(
                    f"{path} is {tuple(old.shape)} and would become {tuple(tensor.shape)}: not by its {size} tokens "
                    "alone"
                )
            tensor.copy_(along(path, old, differing[0]) if differing else old)
    return made.to(bare.device).train(model.training)
