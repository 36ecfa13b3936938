"""What a model is before it has weights, and how it is built from that: every way to a model goes
through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers.extend import own_class
from zoo.layers.init import shapes_only
from zoo.models.base.model import bare_model
from zoo.tasks.base import TaskModel, build_task, canonical_state
from zoo.techniques.base import Technique, apply


@dataclass(frozen=True)
class Blueprint:
    """A model's class and config, the ``task`` around it with its ``options``, and the
    ``techniques`` on it, in order.

    ``name`` is the registered variant's, None where there is none. ``heads``: without a task, the
    pre-training heads to build beside the model, see `WithHeads`; None = the model alone.
    """

    model_class: Any
    config: Any
    name: str | None = None
    task: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    techniques: tuple[Technique, ...] = ()
    heads: tuple[str, ...] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Blueprint:
        """The blueprint by which a model, or a task model, would be built again."""
        bare = bare_model(model)
        task, options = (model.task, model.options) if isinstance(model, TaskModel) else (None, {})
        heads = tuple(model.heads) if isinstance(model, WithHeads) else None
        name, techniques = getattr(bare, "zoo_name", None), tuple(bare.techniques)
        return cls(own_class(bare), bare.config, name, task, options, techniques, heads)

    def on_meta(self, stored: int | None = None) -> Any:
        """The model on the meta device: names and shapes, with its techniques applied. ``stored``:
        how many tensors its file has, see `shapes_only`.
        """
        with shapes_only(stored), _sized(self.config):
            if self.task is not None:
                shown = self.name or self.model_class.__name__
                module: Any = build_task(self.task, self.model_class, self.config, self.options, shown)
            else:
                module = self.model_class(self.config)
                module = module if self.heads is None else WithHeads(module, self.heads)
            apply(module, *self.techniques)
        bare_model(module).zoo_name = self.name  # type: ignore[assignment]
        return module

    def drawn(
        self,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The model with random weights, as its paper draws them; on "meta" none are drawn.
        ``dtype``: float32 unless said. What techniques leave as it is is drawn first, so that one seed
        gives the same weights with them and without.
        """
        real = device is None or torch.device(device).type != "meta"
        plain: Mapping[str, Tensor] = {}
        if self.techniques and real:
            plain = canonical_state(replace(self, techniques=()).drawn(device, dtype, generator))
        module = self.on_meta().to(dtype or torch.float32)
        module.to_empty(device=device or "cpu")
        module.init_weights(generator)
        with torch.no_grad():
            for name, tensor in canonical_state(module).items():
                if name in plain and plain[name].shape == tensor.shape:
                    tensor.copy_(plain[name])
        if real:
            for technique in self.techniques:
                technique.settle(bare_model(module), generator)
        return module


@contextmanager
def _sized(config: Any) -> Iterator[None]:
    """Turn torch's word for a tensor that no memory could hold into a ConfigError."""
    try:
        yield
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ConfigError(f"the sizes of {config} make a tensor of more than 2^63 bytes") from error


class WithHeads(nn.Module):
    """A model and some pre-training heads that its family declares, for techniques that change
    both.
    """

    def __init__(self, model: Any, heads: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({head: model.heads[head](model.config) for head in heads})


def rebuilt(model: Any, config: Any, fill: Callable[[str, Tensor, Mapping[str, Tensor]], Tensor]) -> Any:
    """The same model (or task model) by another config, on its device, in its dtype and mode.

    ``fill(name, new tensor, old tensors by name)`` gives what each tensor holds; names as in files.
    """
    bare: Any = bare_model(model)
    made = replace(Blueprint.of(model), config=config).on_meta()
    old = canonical_state(model)
    with torch.no_grad():
        filled = {name: fill(name, tensor, old).clone() for name, tensor in canonical_state(made).items()}
        for name, tensor in filled.items():
            if tensor.is_floating_point():  # whatever it was computed in
                filled[name] = tensor.to(old[name].dtype if name in old else bare.dtype)
    named = zip(made.state_dict(), filled.values(), strict=True)  # the same order
    made.to_empty(device=bare.device).load_state_dict(dict(named), strict=True, assign=True)  # which tells of masks too
    return made.requires_grad_(True).train(model.training)
