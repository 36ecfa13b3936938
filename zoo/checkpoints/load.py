"""`zoo.load`: weights in our layout or a public one into a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.convert import converted
from zoo.checkpoints.description import class_and_config, class_of_maps
from zoo.checkpoints.files import architectures_of, embedding_options, foreign_config, read_description
from zoo.checkpoints.locate import locate, record_of
from zoo.errors import CheckpointError, ConfigError, unknown
from zoo.formats.archive import Archive
from zoo.formats.opening import open_archive, opened
from zoo.layers.init import initialise, shapes_only
from zoo.maps import layouts
from zoo.maps.plans import Plan
from zoo.registry import variants as registry
from zoo.registry.tasks import TASKS
from zoo.tasks.base import TaskModel, canonical_state, spec_of_class, task_class
from zoo.techniques.base import Technique, recorded
from zoo.techniques.blueprint import Blueprint


@dataclass(frozen=True)
class LoadReport:
    """What happened when weights were loaded; stands at ``model.load_report``.

    ``left_out``: stored tensors that nobody asked for, each with its reason. ``random``: tensors of
    the asked-for head that the checkpoint lacks. ``differs``: config fields in which the checkpoint
    differs from the named variant, (variant's, checkpoint's).
    """

    source: str
    layout: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    random: tuple[str, ...] = ()
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"loaded from {self.source} (layout {self.layout})"]
        lines += [f"  left out {name}: {why}" for name, why in self.left_out.items()]
        lines += [f"  starts at random: {name}" for name in self.random]
        lines += [
            f"  {name}: this checkpoint has {theirs!r} where the variant has {ours!r}"
            for name, (ours, theirs) in self.differs.items()
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Request:
    """What a user asked of `create` or `load`, carried through the steps. ``shown``: the source's
    name in messages.
    """

    name: str | None = None
    task: str | None = None
    layout: str | None = None
    config: Any = None
    device: Any = None
    dtype: torch.dtype | None = None
    generator: torch.Generator | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    shown: str = ""
    techniques: tuple[Technique, ...] = ()  # that the stored model was saved with


def load(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    layout: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    task: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    **overrides: Any,
) -> Any:
    """Load a folder or file in our layout or a known foreign one, or a dict of tensors under
    foreign names.

    layout: a public key layout, None = recognised from config and keys. config: the foreign config,
    verbatim (a dict or a JSON file), where the source has none beside it. task: the head wanted; a
    folder that `save` wrote knows its own. Loading is strict: a missing, extra or mis-shaped tensor
    is a CheckpointError, except heads nobody asked for and the asked-for head where the checkpoint
    lacks it; ``model.load_report`` names both.
    """
    return _load(source, Request(None, task, layout, config, device, dtype, None, overrides))


def _split(overrides: Mapping[str, Any], model_class: Any, task: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config fields and task options among a user's keywords."""
    fields, known = model_class.Config.field_names(), spec_of_class(task, model_class).options if task else {}
    for name in overrides:
        if name not in fields and name not in known:
            hint = (
                ""
                if task or not any(name in spec.options for spec in TASKS.values())
                else "(an option of a task: pass task= too)"
            )
            raise unknown(f"field of {model_class.Config.__name__}", name, [*fields, *known], hint)
    return {k: v for k, v in overrides.items() if k in fields}, {k: v for k, v in overrides.items() if k not in fields}


def _finish(module: nn.Module, name: str | None, report: LoadReport | None) -> nn.Module:
    bare = module.model if isinstance(module, TaskModel) else module
    bare.zoo_name = name  # type: ignore[assignment]
    module.load_report = report  # type: ignore[assignment]
    return module.eval() if report is not None else module


def _load(source: Any, request: Request) -> Any:
    shown = request.shown or ("tensors in memory" if isinstance(source, Mapping) else str(source))
    source, record = locate(source)
    request = replace(request, shown=shown)
    if record is not None:
        source, request = converted(record), replace(request, name=request.name or record.name)
    if isinstance(source, Mapping):
        return _load_foreign(source, request)
    description = read_description(Path(source))
    if description is not None and request.layout in (None, layouts.OURS):
        return _load_ours(Path(source), description, request)
    return _load_foreign(source, request)


def _load_foreign(source: Any, request: Request) -> Any:
    """A checkpoint in a public layout, through its map."""
    foreign, layout = foreign_config(source, request.config), request.layout
    with opened(source) as archive:
        foreign = layouts.own_config(archive) if foreign is None else foreign
        if (
            foreign is None and request.name and registry.split(request.name)[1]
        ):  # "name.tag": what the catalogue knows of that file
            record = record_of(request.name)
            if isinstance(record.config, Mapping):
                foreign, layout = dict(record.config), layout or record.layout
        keymap = layouts.load(layout or layouts.recognise(archive, foreign))
        variant = registry.variant(registry.split(request.name)[0]) if request.name else None
        if variant is not None and variant.maps != keymap.family:
            raise CheckpointError(
                f"{request.shown} is a {keymap.family} (layout {keymap.layout}), not a {variant.maps} like "
                f"{variant.name}"
            )
        model_class = variant.model_class() if variant else class_of_maps(keymap.family)
        found = model_class.Config.from_dict(keymap.config_forward(foreign or {}, archive.tensors))
        fields, options = _split(request.overrides, model_class, request.task)
        config = override(found, fields, request.shown)
        if request.task == "sentence-embedding":
            options = {**embedding_options(source), **options}
        wanted = heads_of_task(request.task, model_class)
        plan = keymap.forward(archive.tensors, config.to_dict(), heads=wanted, architectures=architectures_of(foreign))
        check_ties(archive, plan)
        sizes = {name: info.shape for name, info in plan.outputs.items()}
        module, random = _fitted(
            model_class, config, options, sizes, replace(request, name=variant.name if variant else keymap.family)
        )
        targets = set(canonical_state(module)) - set(random)
        state: dict[str, Tensor] = {}
        left_out = dict(plan.left_out)
        for step in plan.steps:
            if targets.intersection(step.targets):
                state.update((target, tensor) for target, tensor in step.run(archive.read).items() if target in targets)
            else:
                left_out.update(dict.fromkeys(step.sources, "a part that nobody asked for"))
        assign(module, state, random, request)
    differs = {} if request.name is None else differences(registry.config(request.name), found)
    report = LoadReport(request.shown, keymap.layout, left_out, random, differs, tuple(plan.notes))
    return _finish(module, variant.name if variant else None, report)


def _load_ours(source: Path, description: Mapping[str, Any], request: Request) -> Any:
    """A folder that `save` wrote."""
    model_class, found = class_and_config(description, source)
    if request.name is not None and registry.resolve(request.name)[0].model_class() is not model_class:
        raise CheckpointError(f"{source} holds a {description['class']}, not a {request.name}")
    same_task = request.task in (None, description["task"])
    task = description["task"] if same_task else request.task
    request = replace(request, task=task, techniques=recorded(description.get("techniques", ())))
    fields, given = _split(request.overrides, model_class, request.task)
    hints = description["options"] if same_task else description.get("hints", {}).get(request.task, {})
    options = {**hints, **given}
    with open_archive(source) as archive:
        sizes = {name: info.shape for name, info in archive.tensors.items()}
        module, random = _fitted(model_class, override(found, fields, request.shown), options, sizes, request)
        if random and same_task and not given:
            raise CheckpointError(
                f"{source}: {random[0]} is missing or of another shape, though the config promises it"
            )
        targets = canonical_state(module)
        passengers = str(archive.metadata.get("zoo.passengers", "")).split()
        left_out = {
            name: "a part that nobody asked for" for name in sizes if name not in targets and name not in passengers
        }
        if strange := [name for name in left_out if not name.startswith(("heads.", "pooler."))]:
            raise CheckpointError(f"{source}: nothing in this model takes the stored tensor {strange[0]}")
        assign(module, {name: archive.read(name) for name in targets if name not in random}, random, request)
    differs = {} if request.name is None else differences(registry.config(request.name), found)
    return _finish(module, description["model"], LoadReport(request.shown, layouts.OURS, left_out, random, differs))


def _fitted(
    model_class: Any, config: Any, options: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], request: Request
) -> tuple[nn.Module, tuple[str, ...]]:
    """A module on the meta device that the stored ``sizes`` fill, and the tensors of the asked-for
    head that they don't.

    Raises CheckpointError for any other tensor that is missing or of another shape.
    """
    task = request.task
    pooled = any(name.startswith("pooler.") for name in sizes)
    if task is None and not pooled and "pooler" in config.field_names() and _pooler_has_parameters(model_class, config):
        config = config.replace(pooler=False)
    if task is not None:
        spec = spec_of_class(task, model_class)
        options = {**task_class(spec).options_from(sizes, spec, config, model_class), **options}
    module = Blueprint(model_class, config, request.name, task, options, request.techniques).on_meta()
    random = []
    for target, tensor in canonical_state(module).items():
        if sizes.get(target) == tuple(tensor.shape):
            continue
        own = target.startswith("heads.") or (target.startswith("pooler.") and not pooled)
        if task is None or not own:
            stored_as = f"has shape {sizes[target]}" if target in sizes else "is missing"
            raise CheckpointError(f"{request.shown}: {target} {stored_as}; this model needs {tuple(tensor.shape)}")
        random.append(target)
    return module, tuple(random)


def _pooler_has_parameters(model_class: Any, config: Any) -> bool:
    """Whether a model's pooler is learned; MobileBERT's may be the bare first state."""
    with shapes_only():
        pooler = model_class(config).pooler
    return pooler is not None and next(pooler.parameters(), None) is not None


def differences(named: Any, found: Any) -> dict[str, tuple[Any, Any]]:
    """The fields, free ones excepted, in which a checkpoint's config differs from the named
    variant's: (variant's, checkpoint's).
    """
    fields = [name for name in found.field_names() if name not in found.free_fields()]
    return {
        name: (getattr(named, name), getattr(found, name))
        for name in fields
        if getattr(named, name) != getattr(found, name)
    }


def override(found: Any, fields: Mapping[str, Any], shown: str) -> Any:
    """A checkpoint's config with a user's overrides, those refused that contradict its weights."""
    for key, value in fields.items():
        stored = getattr(found, key)
        if key not in found.free_fields() and value != stored:
            raise ConfigError(
                f"{key}={value!r} contradicts the weights of {shown}, which have {key}={stored!r}; leave it out"
            )
    return found.replace(**fields)


def heads_of_task(task: str | None, model_class: Any) -> tuple[str, ...]:
    """The heads whose tensors a task needs from a file."""
    if task is None:
        return ()
    return task_class(spec := spec_of_class(task, model_class)).heads_from(spec, model_class)


def check_ties(archive: Archive, plan: Plan) -> None:
    """Stored copies of another tensor must hold equal bits."""
    for copy, original in plan.ties:
        if not torch.equal(archive.read(copy), archive.read(original)):
            raise CheckpointError(
                f"{copy} is stored as a copy of {original}, but differs from it; does its config untie them?"
            )


def assign(module: nn.Module, state: Mapping[str, Tensor], random: Sequence[str], request: Request) -> None:
    """Put tensors into a module built on the meta device; the ``random`` ones are drawn. Each is
    moved and cast on its own.
    """
    prefix = "model." if isinstance(module, TaskModel) else ""
    stored = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    full = dict(state)
    for part in sorted({".".join(name.split(".")[: 2 if name.startswith("heads.") else 1]) for name in random}):
        piece = (
            module.get_submodule(part if part.startswith("heads.") else prefix + part)
            .to(request.dtype or stored)
            .to_empty(device="cpu")
        )
        initialise(piece, module.config.initializer_range, request.generator)  # type: ignore[union-attr, arg-type]
        full.update({f"{part}.{name}": tensor for name, tensor in piece.state_dict().items()})
    ready = {
        name if name.startswith("heads.") else prefix + name: tensor.to(
            device=request.device, dtype=request.dtype if tensor.is_floating_point() else None
        )
        for name, tensor in full.items()
    }
    module.load_state_dict(ready, strict=True, assign=True)
    module.requires_grad_(True)
