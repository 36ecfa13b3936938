"""What our own config.json says of a checkpoint, and the model class that it, or a public layout,
is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from zoo.checkpoints.files import architectures_of
from zoo.errors import CheckpointError, unknown
from zoo.layers.extend import own_class
from zoo.layers.init import shapes_only
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan
from zoo.registry import variants as registry
from zoo.techniques.base import Technique, apply

FORMAT_VERSION = 1


CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def class_of_maps(family: str) -> Any:
    """The model class that a family's layouts are for."""
    for variants in registry.families().values():
        for variant in variants:
            if variant.maps == family:
                return variant.model_class()
    raise unknown("family of layouts", family, {v.maps for variants in registry.families().values() for v in variants})


def class_and_config(description: Mapping[str, Any], source: Path) -> tuple[Any, Any]:
    """The class and the config that a description of ours names."""
    if description["zoo_format"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{source} was written by a newer zoo (format {description['zoo_format']}; this one knows {FORMAT_VERSION})"
        )
    wanted = description["class"]
    known = {v.class_path: v for variants in registry.families().values() for v in variants}
    if wanted not in known:
        raise CheckpointError(
            f"{source} names the class {wanted!r}, which no registered model has; register it first (zoo.register)"
        )
    model_class = known[wanted].model_class()
    return model_class, model_class.Config.from_dict(description["config"])


def planned(
    keymap: KeyMap,
    archive: Any,
    foreign: Mapping[str, Any] | None,
    model_class: Any | None,
    heads: tuple[str, ...] | None = None,
) -> tuple[Any, Any, Plan]:
    """The class, our config and the plan for a foreign archive; ``heads`` None = every head that
    the file has.
    """
    model_class = model_class or class_of_maps(keymap.family)
    ours = model_class.Config.from_dict(keymap.config_forward(foreign or {}, archive.tensors))
    plan = keymap.forward(archive.tensors, ours.to_dict(), heads=heads, architectures=architectures_of(foreign))
    return model_class, ours, plan


def targets_of(
    model_class: Any, config: Any, stored: Mapping[str, tuple[int, ...]], techniques: Sequence[Technique] = ()
) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a whole file must have: the bare model's, and those of the heads
    that are ``stored``.

    Heads that the family declares are built to be measured; heads of a user's task (a classifier of
    any size) are taken as they are.
    """
    heads = dict.fromkeys(name.split(".")[1] for name in stored if name.startswith("heads."))
    with shapes_only():
        whole = apply(_Whole(model_class, config, [head for head in heads if head in model_class.heads]), *techniques)
    targets = {name.removeprefix("model."): tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    for head in heads:
        if head not in model_class.heads:
            targets.update({name: shape for name, shape in stored.items() if name.startswith(f"heads.{head}.")})
    return targets


class _Whole(nn.Module):
    """A model with the heads that its family declares, for techniques that change both."""

    def __init__(self, model_class: Any, config: Any, heads: Sequence[str]) -> None:
        super().__init__()
        self.model = model_class(config)
        self.heads = nn.ModuleDict({head: model_class.heads[head](config) for head in heads})

    def twin(self, config: Any) -> _Whole:
        with shapes_only():
            return _Whole(own_class(self.model), config, list(self.heads))
