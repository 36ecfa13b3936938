"""What our own config.json says of a checkpoint: a blueprint as plain values, and back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints.binding import (
    CONFIG_FILE,
    DESCRIPTION,
    FOREIGN,
    UNBOUND,
    WEIGHTS_FILE,
    Header,
    edited,
    generation_of,
    unbound,
)
from zoo.checkpoints.files import folder_of, foreign_config, read_json
from zoo.errors import CheckpointError, ZooError, unknown
from zoo.formats.archive import DTYPE_NAMES, Archive
from zoo.layers.init import shapes_only
from zoo.maps.config_map import SAVE
from zoo.maps.plans import Target, heads_of
from zoo.models.base.model import bare_model
from zoo.registry import variants as registry
from zoo.registry.renames import CLASSES, TECHNIQUES
from zoo.techniques.base import recorded
from zoo.techniques.blueprint import Blueprint

FORMAT_VERSION = 2  # 1: nothing binds the description to its tensors


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


def write_description(path: Path, description: Mapping[str, Any]) -> None:
    """A config.json, in a folder that nobody reads yet."""
    path.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def described(description: Mapping[str, Any], source: Path) -> Blueprint:
    """The blueprint that a description of ours names."""
    check_description(description, source)
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


PARTS: Mapping[str, tuple[type, ...]] = {
    "zoo_format": (int,),
    "class": (str,),
    "config": (dict,),
    "model": (str, NoneType),
    "task": (str, NoneType),
    "options": (dict,),
}
OPTIONAL: Mapping[str, tuple[type, ...]] = {"techniques": (list,), "hints": (dict,)}


def check_description(description: Mapping[str, Any], source: Path) -> None:
    """Refuse a description that lacks a part, or has one of another type."""
    if missing := [part for part in PARTS if part not in description]:
        raise CheckpointError(f"the description in {source} lacks {', '.join(missing)}; was config.json edited?")
    for part, types in {**PARTS, **OPTIONAL}.items():
        value = description.get(part)
        if part in description and (not isinstance(value, types) or isinstance(value, bool)):
            wanted = " or ".join("null" if kind is NoneType else kind.__name__ for kind in types)
            raise CheckpointError(
                f"the description in {source} has {part}={repr(value)[:200]}, which must be {wanted}; was config.json "
                "edited?"
            )
    for task, options in description.get("hints", {}).items():
        if not isinstance(options, dict):
            raise CheckpointError(
                f"the description in {source} has hints for {task!r} that are no options: {options!r}"
            )


def own_description(
    archive: Archive, header: Header, source: Any, config: Mapping[str, Any] | str | os.PathLike[str] | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The description of an opened source of ours, and what is to be said of it; empty where the
    source is none of ours.

    The word of the user (``config``) counts first, then the weights' own header, then the file
    beside them. That file may differ from the header in what shapes no weight (`overridden` takes
    the same) and in the labels' names; where it is of another save, it does not count at all.
    """
    folder, stated = folder_of(source), header.json(DESCRIPTION)
    given = foreign_config(source, config) if config is not None else None
    if given is not None and "zoo_format" in given:
        said = () if stated in (None, unbound(given)) else ("the config given counts, not what the weights say",)
        return given, said
    if folder is None or header.json(FOREIGN) is not None:
        return {}, ()
    file = folder / CONFIG_FILE
    beside = read_json(file) if file.exists() else {}
    beside = beside if "zoo_format" in beside else {}
    if stated is None:
        return beside, (_unstated(archive, beside),) if beside else ()
    if not beside or generation_of(beside) != header.generation:
        if not Path(source).is_dir():
            return stated, (UNBOUND,) if header.generation is None else ()
        which = "of another save, of which one was cut short" if beside else "missing, or another library's"
        return stated, (f"{file} is {which}: the header of {archive.path.name} says what it holds; save it again",)
    notes = () if header.generation is not None else (UNBOUND,)
    one, other = by_now(stated), by_now(beside)
    if one == other:
        return beside, notes
    freely = described(beside, Path(source)).model_class.Config.free_fields()

    def free(path: tuple[str, ...]) -> bool:
        return path[-1] == "labels" or (len(path) == 2 and path[0] == "config" and path[1] in freely)

    return beside, (*notes, *edited(one, other, file, free))


def _unstated(archive: Archive, beside: Mapping[str, Any]) -> str:
    """What to say of weights whose header says nothing, beside a description of ours."""
    if generation_of(beside) is None:
        return UNBOUND
    return (
        f"{archive.path.name} was not written by the zoo, so nothing tells whether the {CONFIG_FILE} of the zoo beside "
        "it belongs to it; zoo.verify compares the tensors"
    )


def by_now(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description without what binds it, under the names that classes and techniques have by now."""
    found = unbound(description)
    techniques = found.get("techniques")
    if isinstance(techniques, list) and all(isinstance(one, Mapping) for one in techniques):
        found["techniques"] = [
            {**one, "technique": TECHNIQUES.get(str(one.get("technique")), one.get("technique"))} for one in techniques
        ]
    return {**found, "class": CLASSES.get(str(found.get("class")), found.get("class"))}


FOREIGN_WORDS = ("architectures", "id2label", "problem_type")  # that count beside the fields of a model's config


def foreign_words(
    header: Header, found: Mapping[str, Any] | None, understood: Callable[[Mapping[str, Any]], Any], file: Path
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Which config holds for tensors that the zoo wrote in another library's layout, and what is to
    be said of it: the one ``found`` beside them, or, where that is of another save, the one in their
    header.

    An edit is taken where no number depends on it, and refused where one does.
    """
    written = header.json(FOREIGN)
    if written is None:
        return (None if found is None else {**found}), ()
    if found is None or "zoo_format" in found or found.get(SAVE, header.generation) != header.generation:
        which = "missing" if found is None else "of another save, of which one was cut short"
        return written, (f"{file} is {which}: the header of {header.path.name} says what it holds; save it again",)
    if {**found, SAVE: None} == {**written, SAVE: None}:
        return {**found}, ()
    known, named = understood(written), SAVE in found
    if not named and header.path.name not in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json"):
        return written, ()  # a file by itself, and somebody's config in the same folder
    try:
        one, other = known.to_dict(), understood(found).to_dict()
    except ZooError as error:
        if named:  # an edit, whose fault the error tells
            raise
        raise CheckpointError(f"{file} was edited, or is of another save: {error}") from error
    words = [{key: said.get(key) for key in FOREIGN_WORDS} for said in (written, found)]

    def free(path: tuple[str, ...]) -> bool:
        return named and (path[0] in known.free_fields() or path[0] in FOREIGN_WORDS)

    return {**found}, tuple(edited({**one, **words[0]}, {**other, **words[1]}, file, free))


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


def targets_of(blueprint: Blueprint, stored: Mapping[str, tuple[int, ...]]) -> dict[str, Target]:
    """What a whole file must hold: the model's tensors, and those of the other heads that are
    ``stored``.

    Heads that the family declares are built to be measured; heads of a user's task (a classifier of
    any size) are taken as they are.
    """
    declared = tuple(sorted(heads_of(stored) & set(blueprint.model_class.heads)))
    bare = replace(blueprint, task=None, options={}, heads=declared)
    targets: dict[str, Target] = {}
    for whole in [bare] if blueprint.task is None else [blueprint, bare]:
        made = targets_within(whole.on_meta(len(stored)))
        # a converted file holds more than its task reads: a pooler, other heads
        targets |= {name: target for name, target in made.items() if not targets or name in stored}
    for head in sorted(heads_of(stored) - heads_of(targets)):
        prefix, factory = f"heads.{head}.", blueprint.model_class.heads.get(head)
        if factory is None:
            targets |= {name: Target(shape) for name, shape in stored.items() if name.startswith(prefix)}
        else:
            with shapes_only(len(stored)):
                part = factory(blueprint.config)
            targets |= {prefix + name: _target(tensor) for name, tensor in part.state_dict().items()}
    return targets


def targets_within(module: nn.Module) -> dict[str, Target]:
    """What a file must hold to fill a module, by the names in files. The buffers of a model that
    techniques changed, ranges and steps, may be of a dtype of their own.
    """
    state = {name.removeprefix("model."): tensor for name, tensor in module.state_dict().items()}
    changed = bool(bare_model(module).techniques)
    apart = {name.removeprefix("model.") for name, _ in module.named_buffers() if changed}
    return {name: _target(tensor, name in apart) for name, tensor in state.items()}


def _target(tensor: Tensor, apart: bool = False) -> Target:
    return Target(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype], apart)
