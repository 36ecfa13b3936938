"""What a model is before it has weights, and how it is built from that: every way to a model goes
through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from zoo.layers.extend import own_class
from zoo.layers.init import shapes_only
from zoo.models.base.model import bare_model
from zoo.tasks.base import TaskModel, build_task
from zoo.techniques.base import Technique, apply


@dataclass(frozen=True)
class Blueprint:
    """A model's class and config, the ``task`` around it with its ``options``, and the
    ``techniques`` on it, in order.

    ``name`` is the registered variant's, None where there is none.
    """

    model_class: Any
    config: Any
    name: str | None = None
    task: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    techniques: tuple[Technique, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Blueprint:
        """The blueprint by which a model, or a task model, would be built again."""
        bare = bare_model(model)
        task, options = (model.task, model.options) if isinstance(model, TaskModel) else (None, {})
        return cls(own_class(bare), bare.config, getattr(bare, "zoo_name", None), task, options, tuple(bare.techniques))

    def on_meta(self) -> Any:
        """The model on the meta device: names and shapes, with its techniques applied."""
        with shapes_only():
            if self.task is None:
                module = self.model_class(self.config)
            else:
                module = build_task(
                    self.task, self.model_class, self.config, self.options, self.name or self.model_class.__name__
                )
            module = apply(module, *self.techniques)
        bare_model(module).zoo_name = self.name  # type: ignore[assignment]
        return module

    def drawn(
        self,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The model with random weights, as its paper draws them; on "meta" none are drawn.
        ``dtype``: float32 unless said.
        """
        module = self.on_meta().to(dtype or torch.float32)
        module.to_empty(device=device or "cpu")
        module.init_weights(generator)
        if device is None or torch.device(device).type != "meta":
            for technique in self.techniques:
                technique.settle(bare_model(module), generator)
        return module
