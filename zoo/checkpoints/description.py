"""What our own config.json says of a checkpoint: a blueprint as plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, unknown
from zoo.layers.init import shapes_only
from zoo.maps.plans import heads_of
from zoo.registry import variants as registry
from zoo.registry.renames import CLASSES
from zoo.techniques.base import recorded
from zoo.techniques.blueprint import Blueprint

FORMAT_VERSION = 1

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def describe(blueprint: Blueprint, hints: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `zoo.save` writes into config.json: enough to build the model again. ``hints``: options
    that a task should take, by its name.
    """
    found = {
        "zoo_format": FORMAT_VERSION,
        "model": blueprint.name,
        "class": class_path(blueprint.model_class),
        "config": blueprint.config.to_dict(),
        "task": blueprint.task,
        "options": dict(blueprint.options),
        "techniques": [technique.record() for technique in blueprint.techniques],
        "hints": dict(hints or {}),
    }
    return {key: value for key, value in found.items() if value or key not in ("techniques", "hints")}


def described(description: Mapping[str, Any], source: Path) -> Blueprint:
    """The blueprint that a description of ours names."""
    if description["zoo_format"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{source} was written by a newer zoo (format {description['zoo_format']}; this one knows {FORMAT_VERSION})"
        )
    wanted = CLASSES.get(description["class"], description["class"])
    known = {v.class_path: v for variants in registry.families().values() for v in variants}
    if wanted not in known:
        raise CheckpointError(
            f"{source} names the class {wanted!r}, which no registered model has; register it first (zoo.register)"
        )
    model_class = known[wanted].model_class()
    return Blueprint(
        model_class,
        model_class.Config.from_dict(description["config"]),
        description["model"],
        description["task"],
        description["options"],
        recorded(description.get("techniques", ())),
    )


def class_path(model_class: type) -> str:
    """A class's name as the registry and saved files write it."""
    return f"{model_class.__module__}:{model_class.__qualname__}"


def class_of_maps(family: str) -> Any:
    """The model class that a family's layouts are for."""
    for variants in registry.families().values():
        for variant in variants:
            if variant.maps == family:
                return variant.model_class()
    raise unknown("family of layouts", family, {v.maps for variants in registry.families().values() for v in variants})


def targets_of(blueprint: Blueprint, stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a whole file must have: the model's, and those of the other heads
    that are ``stored``.

    Heads that the family declares are built to be measured; heads of a user's task (a classifier of
    any size) are taken as they are.
    """
    declared = tuple(sorted(heads_of(stored) & set(blueprint.model_class.heads)))
    bare = replace(blueprint, task=None, options={}, heads=declared)
    targets: dict[str, tuple[int, ...]] = {}
    for whole in [bare] if blueprint.task is None else [blueprint, bare]:
        made = {name.removeprefix("model."): tuple(t.shape) for name, t in whole.on_meta().state_dict().items()}
        # a converted file holds more than its task reads: a pooler, other heads
        targets |= {name: shape for name, shape in made.items() if not targets or name in stored}
    for head in sorted(heads_of(stored) - heads_of(targets)):
        prefix, factory = f"heads.{head}.", blueprint.model_class.heads.get(head)
        if factory is None:
            targets |= {name: shape for name, shape in stored.items() if name.startswith(prefix)}
        else:
            with shapes_only():
                part = factory(blueprint.config)
            targets |= {prefix + name: tuple(tensor.shape) for name, tensor in part.state_dict().items()}
    return targets
