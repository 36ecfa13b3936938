"""`zoo.load`: weights in our layout or a public one into a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from zoo.checkpoints.checks import MIXED, Checks, widest
from zoo.checkpoints.convert import conversion
from zoo.checkpoints.description import targets_within
from zoo.checkpoints.images import at_size, find_images
from zoo.checkpoints.locate import locate
from zoo.checkpoints.searches import find_search
from zoo.checkpoints.streaming import read
from zoo.checkpoints.tokenizer import tokenizer
from zoo.errors import CheckpointError, ConfigError, unknown, warn
from zoo.formats.archive import torch_dtype
from zoo.layers.init import initialise, shapes_only
from zoo.maps.plans import heads_of
from zoo.models.base.model import bare_model
from zoo.registry.records import Record
from zoo.registry.tasks import TASKS
from zoo.tasks.base import TaskModel, canonical_state, heads_of_task, spec_of_class, task_class
from zoo.techniques.blueprint import Blueprint


@dataclass(frozen=True)
class LoadReport:
    """What happened when weights were loaded; stands at ``model.load_report``.

    ``left_out``: stored tensors that nobody asked for, each with its reason; ``left_heads``: the heads
    among them. ``random``: tensors of
    the asked-for head that the checkpoint lacks. ``differs``: config fields in which the checkpoint
    differs from the named variant, (variant's, checkpoint's). ``checks``: what was checked on the way.
    """

    source: str
    layout: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    random: tuple[str, ...] = ()
    differs: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checks: Checks = field(default_factory=Checks)
    left_heads: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"loaded from {self.source} (layout {self.layout})"]
        lines += [f"  left out {name}: {why}" for name, why in self.left_out.items()]
        lines += [f"  starts at random: {name}" for name in self.random]
        lines += [
            f"  {name}: this checkpoint has {stored!r} where the variant has {named!r}"
            for name, (named, stored) in self.differs.items()
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def load(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    layout: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    task: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    mmap: bool = False,
    **overrides: Any,
) -> Any:
    """Load a folder or file in our layout or a known foreign one, or a dict of tensors under
    foreign names.

    layout: a public key layout, None = recognised from config and keys. config: the foreign config,
    verbatim (a dict or a JSON file), where the source has none beside it. task: the head wanted; a
    folder that `save` wrote knows its own, a foreign one where its config names the class of a
    classifier or the like, or modules.json a sentence encoder.

    Loading is strict: a missing, extra or mis-shaped tensor is a CheckpointError, except heads
    nobody asked for and the asked-for head where the checkpoint lacks it; ``model.load_report``
    names both.

    The model holds a copy of what is stored, made tensor by tensor. mmap: parameters show the file
    instead, where its layout and ``dtype`` allow it: their bytes come in when they are used, and
    several processes share them. The file then has to stay as it is while the model lives: written
    over in place, it changes the model, and cut off, it ends the process (SIGBUS). A file that is
    replaced by another of its name, as `save` does it, harms nobody.
    """
    with open_to_load(source, layout=layout, config=config, mmap=mmap) as checkpoint:
        kept, note = checkpoint.kept_task() if task in (None, "sentence-embedding") else (task, "")
        kept, note = (kept, note) if task in (None, kept) else (task, "")
        model = filled(checkpoint, kept, overrides, device=device, dtype=torch_dtype(dtype))
    if note:
        model.load_report = replace(model.load_report, notes=(*model.load_report.notes, note))
    return model


@contextmanager
def open_to_load(
    source: Any,
    *,
    name: str | None = None,
    layout: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    mmap: bool = False,
) -> Iterator[Checkpoint]:
    """Open whatever names a checkpoint; a registered tag (or its record) is converted first, once.
    ``name``: the variant that it should be of. ``mmap`` as in `load`.
    """
    path, record = (None, source) if isinstance(source, Record) else locate(source)
    shown = source.name if isinstance(source, Record) else None if isinstance(source, Mapping) else str(source)
    with ExitStack() as stack:
        if record is not None:
            path, name = stack.enter_context(conversion(record)), name or record.name
        checkpoint = open_checkpoint(path, name=name, layout=layout, config=config, shown=shown, mmap=mmap)
        yield stack.enter_context(checkpoint)


def filled(
    checkpoint: Checkpoint,
    task: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    """The model that a checkpoint holds, with the head of a ``task``, filled with its tensors; the
    ``overrides`` are config fields and options of the task.
    """
    saved, shown = checkpoint.blueprint, checkpoint.shown
    same_task = task in (None, saved.task)
    task = saved.task if same_task else task
    fields, given = split_overrides(overrides or {}, saved.model_class, task)
    known = saved.options if same_task else checkpoint.hints_for(task)
    if "num_labels" in given and "labels" not in given:  # the names are of the old labels
        known = {name: value for name, value in known.items() if name != "labels"}
    options = {**known, **given}
    resized = {k: v for k, v in fields.items() if k in saved.model_class.resizable and v != getattr(saved.config, k)}
    fields = {name: value for name, value in fields.items() if name not in resized}
    config = overridden(saved.config, fields, shown)
    checkpoint = replace(checkpoint, config=config.to_dict(), overrides=tuple(fields))
    plan = checkpoint.plan(heads=heads_of_task(task, saved.model_class))
    sizes = {name: info.shape for name, info in plan.outputs.items()}
    module, random = _fitted(replace(saved, config=config, task=task, options=options), sizes, shown)
    if random and not given and (same_task or any(name in sizes for name in random)):
        raise CheckpointError(f"{shown}: {random[0]} is missing or of another shape, though the config promises it")
    wanted = canonical_state(module).keys() - set(random)
    left_out = dict(plan.left_out)
    for step in plan.steps:
        if not wanted.isdisjoint(step.targets) or set(step.targets) <= set(plan.passengers):
            continue
        if strange := [name for name in step.targets if not name.startswith(("heads.", "pooler."))]:
            raise CheckpointError(f"{shown}: nothing in this model takes the stored tensor {strange[0]}")
        left_out.update(dict.fromkeys(step.sources, "a part that nobody asked for"))
    targets = {name: target for name, target in targets_within(module).items() if name in wanted}
    tensors, checks = read(checkpoint, plan, wanted, dtype, targets)
    mixed = widest(plan.outputs, targets) if dtype is None else None
    notes = (*plan.notes, *([] if mixed is None else [MIXED.format(mixed)]))
    begun, said = _begun(checkpoint, module, random, dtype)
    tensors, random, notes = tensors | begun, tuple(name for name in random if name not in begun), (*notes, *said)
    _draw(module, random, tensors, generator)
    prefix = "model." if isinstance(module, TaskModel) else ""
    ready = {name if name.startswith("heads.") else prefix + name: t.to(device) for name, t in tensors.items()}
    module.load_state_dict(ready, strict=True, assign=True)
    module.requires_grad_(True)
    if not isinstance(checkpoint.source, Mapping):
        home = _home(shown)
        for part in (module, bare_model(module)):
            part.find_tokenizer, part.find_images = partial(tokenizer, home), partial(find_images, home)  # type: ignore[assignment]
            part.find_search = partial(find_search, home)  # type: ignore[assignment]
    if resized:
        bare_model(module).resize(**resized)
        notes += tuple(f"{name} was {getattr(config, name)} and is {value} now" for name, value in resized.items())
    if (sized := {**fields, **resized}.get("image_size")) not in (None, getattr(saved.config, "image_size", None)):
        parts: tuple[Any, ...] = (module, bare_model(module))
        for part in parts:
            if part.find_images is not None:
                part.find_images = partial(at_size, part.find_images, {"image_size": sized})
    left = tuple(sorted(checkpoint.plan(inspect=True).heads - heads_of(wanted)))
    module.load_report = LoadReport(  # type: ignore[assignment]
        shown, checkpoint.layout, left_out, random, checkpoint.differs, (*checkpoint.notes, *notes), checks, left
    )
    announce(module, sizes)
    return module.eval()


def _home(shown: str) -> str:
    """Where the files beside a checkpoint are to be found later: a name or source as it is, a path's
    folder.
    """
    path = Path(shown).absolute()
    return str(path.parent if path.is_file() else path) if path.exists() else shown


def announce(module: Any, stored: Mapping[str, object] = MappingProxyType({})) -> None:
    """Warn of the parts of a loaded model that start at random. ``stored``: names that the checkpoint
    has; a part of which it has some is there in another shape.
    """
    report = module.load_report
    parts = sorted({".".join(name.split(".")[: 2 if name.startswith("heads.") else 1]) for name in report.random})
    for part in parts:
        there = any(name.startswith(f"{part}.") for name in stored)
        why = f"has {part} in another shape" if there else f"has no {part}"
        warn(
            f"{report.source} {why}, which {module.task} needs: it starts at random, and what it says is noise until "
            "it is trained; model.load_report.random names its tensors"
        )


def split_overrides(
    overrides: Mapping[str, Any], model_class: Any, task: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
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


def _fitted(
    blueprint: Blueprint, sizes: Mapping[str, tuple[int, ...]], shown: str
) -> tuple[nn.Module, tuple[str, ...]]:
    """A module on the meta device that the stored ``sizes`` fill, and the tensors of the asked-for
    head that they don't.

    Raises CheckpointError for any other tensor that is missing or of another shape.
    """
    task, model_class, config, options = blueprint.task, blueprint.model_class, blueprint.config, blueprint.options
    pooled = any(name.startswith("pooler.") for name in sizes)
    if (
        task is None
        and not pooled
        and "pooler" in config.field_names()
        and _pooler_has_parameters(model_class, config, len(sizes))
    ):
        config = config.replace(pooler=False)
    if task is not None:
        spec = spec_of_class(task, model_class)
        options = {**task_class(spec).options_from(sizes, spec, config, model_class), **options}
    module = replace(blueprint, config=config, options=options).on_meta(len(sizes))
    random = []
    for target, tensor in canonical_state(module).items():
        if sizes.get(target) == tuple(tensor.shape):
            continue
        own = target.startswith("heads.") or (target.startswith("pooler.") and not pooled)
        if task is None or not own:
            stored_as = f"has shape {sizes[target]}" if target in sizes else "is missing"
            raise CheckpointError(f"{shown}: {target} {stored_as}; this model needs {tuple(tensor.shape)}")
        random.append(target)
    return module, tuple(random)


def _pooler_has_parameters(model_class: Any, config: Any, stored: int) -> bool:
    """Whether a model's pooler is learned; MobileBERT's may be the bare first state."""
    with shapes_only(stored):
        pooler = model_class(config).pooler
    return pooler is not None and next(pooler.parameters(), None) is not None


def overridden(found: Any, fields: Mapping[str, Any], shown: str) -> Any:
    """A checkpoint's config with a user's overrides, those refused that contradict its weights."""
    for key, value in fields.items():
        stored = getattr(found, key)
        if key not in found.free_fields() and value != stored:
            raise ConfigError(
                f"{key}={value!r} contradicts the weights of {shown}, which have {key}={stored!r}; leave it out"
            )
    return found.replace(**fields)


def _begun(
    checkpoint: Checkpoint, module: Any, missing: Sequence[str], dtype: torch.dtype | None
) -> tuple[dict[str, Tensor], list[str]]:
    """The heads among what a checkpoint lacks that start as rows of another head which it has, where the
    family says so (`Model.head_starts`), and a note on each.
    """
    found: dict[str, Tensor] = {}
    notes = []
    for head, (other, rows) in (module.model.head_starts if isinstance(module, TaskModel) else {}).items():
        parts = [name for name in missing if name.startswith(f"heads.{head}.")]
        if not parts:
            continue
        plan = checkpoint.plan(heads=(other,))
        sources = {name: name.replace(f"heads.{head}.", f"heads.{other}.", 1) for name in parts}
        shapes = {name: tuple(tensor.shape) for name, tensor in canonical_state(module).items()}
        fitting = [
            name
            for name, source in sources.items()
            if source in plan.outputs and (len(rows), *plan.outputs[source].shape[1:]) == shapes[name]
        ]
        if fitting != parts:
            continue
        tensors, _ = read(checkpoint, plan, set(sources.values()), dtype, {})
        found |= {name: tensors[source][list(rows)] for name, source in sources.items()}
        notes.append(f"heads.{head} starts as row {', '.join(map(str, rows))} of heads.{other}")
    return found, notes


def _draw(module: Any, random: Sequence[str], tensors: dict[str, Tensor], generator: torch.Generator | None) -> None:
    """Add to ``tensors`` the parts that a checkpoint lacks, drawn in the dtype of what it has."""
    stored = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    for path in sorted({".".join(name.split(".")[: 2 if name.startswith("heads.") else 1]) for name in random}):
        holder = module.model if isinstance(module, TaskModel) and not path.startswith("heads.") else module
        part = holder.get_submodule(path).to(stored).to_empty(device="cpu")
        initialise(part, module.config.initializer_range, generator)
        tensors.update({f"{path}.{name}": tensor for name, tensor in part.state_dict().items()})
