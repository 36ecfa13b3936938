"""The calls that everything else serves: create, load, save."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import registry
from zoo.convert import engine, layouts
from zoo.convert.keymap import KeyMap
from zoo.convert.readers import Archive, open_archive
from zoo.errors import CheckpointError, ConfigError, InputError, unknown
from zoo.model import initialise
from zoo.tasks.base import TaskModel, build_task, offers_of_class
from zoo.tasks.catalogue import TASKS, require_fit

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class LoadReport:
    """What happened when weights were loaded; stands at ``model.load_report``.

    ``left_out``: stored tensors that nobody asked for, each with its reason. ``random``: tensors of the asked-for head that the checkpoint lacks.
    ``differs``: config fields in which the checkpoint differs from the named variant, (variant's, checkpoint's).
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
        lines += [f"  {name}: this checkpoint has {theirs!r} where the variant has {ours!r}" for name, (ours, theirs) in self.differs.items()]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def create(
    name: str,
    *,
    pretrained: bool | str | os.PathLike[str] | Mapping[str, Tensor] = False,
    task: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    layout: str | None = None,
    **overrides: Any,
) -> Any:
    """Build a registered model, with a head where ``task`` names one.

    name: a variant, or a variant and a checkpoint tag after a dot. pretrained: True for the tag's public checkpoint (the variant's default tag
    where the name has none), or a file, a folder, ``"hub:org/name@revision"``, or tensors by their foreign names. overrides: config fields and the
    task's options (``num_labels``); on top of loaded weights only those fields that shape no weight. device: may be "meta". dtype: random weights are
    float32 unless you say, loaded ones come as stored. generator: draws the random weights.

    Raises UnknownNameError for a name, tag, task or field that does not exist (with the closest), ConfigError for values that contradict each other
    or the weights, TaskError where the task does not fit, CheckpointError for a file that is not this model, FetchError where it can't be had.
    """
    variant, tag = registry.resolve(name)
    model_class = variant.model_class()
    if task is not None:
        require_fit(task, offers_of_class(model_class), variant.name)
    fields, options = _split(overrides, model_class, task)
    if pretrained is not False:
        return _create_pretrained(name, variant, tag, pretrained, task, device, dtype, layout, fields, options, generator)
    config = model_class.Config.from_dict(registry.config_values(name)).replace(**fields)
    with torch.device("meta"):
        module = _build(model_class, config, task, options, variant.name)
    module.to(dtype or torch.float32)
    module.to_empty(device=device or "cpu")
    module.init_weights(generator)
    return _finish(module, variant.name, None)


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
    """Load a folder or file in our layout or a known foreign one, or a dict of tensors under foreign names.

    layout: a public key layout, None = recognised from config and keys. config: the foreign config, verbatim (a dict or a JSON file), where
    the source has none beside it. task: the head wanted; a folder that `save` wrote knows its own. Loading is strict: a missing, extra or mis-shaped
    tensor is a CheckpointError, except heads nobody asked for and the asked-for head where the checkpoint lacks it; ``model.load_report`` names both.
    """
    return _load(source, None, layout, config, task, device, dtype, overrides, None, None)


def save(model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None, *, shard_size: int | None = None) -> Path:
    """Write ``config.json`` and ``model.safetensors`` (and the tokenizer's files) into a folder, all or nothing.

    The files are written beside the folder and moved in when they are whole; a folder that exists is replaced file by file. Tensors stand under
    the canonical names, a task's heads under ``heads.``. shard_size: bytes after which a new weights file begins. -> the folder.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    description = describe(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".incomplete", dir=folder.parent))
    try:
        engine.write_tensors(
            {name: tensor.detach() for name, tensor in canonical_state(model).items()}, stage / WEIGHTS_FILE, shard_size=shard_size
        )
        (stage / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(stage)
        if folder.exists():
            for path in sorted(stage.iterdir(), key=lambda p: p.name == CONFIG_FILE):  # the config last: it makes the folder ours
                os.replace(path, folder / path.name)
        else:
            os.replace(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return folder


def describe(model: nn.Module) -> dict[str, Any]:
    """What `save` writes into config.json: enough to build the model again."""
    bare = model.model if isinstance(model, TaskModel) else model
    return {
        "zoo_format": FORMAT_VERSION,
        "model": getattr(bare, "zoo_name", None),
        "class": f"{type(bare).__module__}:{type(bare).__qualname__}",
        "config": bare.config.to_dict(),  # type: ignore[union-attr, operator]
        "task": model.task if isinstance(model, TaskModel) else None,
        "options": model.options if isinstance(model, TaskModel) else {},
    }


def canonical_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors under the names they have in files: the model's bare, a task's heads under ``heads.``."""
    prefix = "model." if isinstance(module, TaskModel) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in module.state_dict().items()}


# -- how it is done ---------------------------------------------------------------------------------------------------------------------


def _split(overrides: Mapping[str, Any], model_class: Any, task: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config fields and task options among a user's keywords."""
    fields, known = model_class.Config.field_names(), TASKS[task].options if task else {}
    for name in overrides:
        if name not in fields and name not in known:
            hint = "" if task or not any(name in spec.options for spec in TASKS.values()) else "(an option of a task: pass task= too)"
            raise unknown(f"field of {model_class.Config.__name__}", name, [*fields, *known], hint)
    return {k: v for k, v in overrides.items() if k in fields}, {k: v for k, v in overrides.items() if k not in fields}


def _build(model_class: Any, config: Any, task: str | None, options: Mapping[str, Any], name: str) -> nn.Module:
    return model_class(config) if task is None else build_task(task, model_class, config, options, name)


def _finish(module: nn.Module, name: str | None, report: LoadReport | None) -> nn.Module:
    bare = module.model if isinstance(module, TaskModel) else module
    bare.zoo_name = name  # type: ignore[assignment]
    module.load_report = report  # type: ignore[assignment]
    return module.eval() if report is not None else module


def _create_pretrained(
    name: str,
    variant: registry.Variant,
    tag: str | None,
    pretrained: Any,
    task: str | None,
    device: Any,
    dtype: torch.dtype | None,
    layout: str | None,
    fields: Mapping[str, Any],
    options: Mapping[str, Any],
    generator: torch.Generator | None,
) -> Any:
    overrides = {**fields, **options}
    if pretrained is not True:
        source = pretrained
        if isinstance(source, str) and is_remote(source):
            from zoo.fetch import fetch

            source = fetch(source)
        return _load(source, name, layout, None, task, device, dtype, overrides, str(pretrained) if isinstance(pretrained, str) else None, generator)
    from zoo.fetch import fetch
    from zoo.sources import records

    chosen = tag or next(iter(registry.tags(variant)), None)
    full = f"{variant.name}.{chosen}"
    record = records().get(full) if chosen else None
    if record is None:
        with_sources = [n for n in records() if n.startswith(f"{variant.name}.")]
        where = f"its tags with a source: {', '.join(with_sources)}" if with_sources else "none of its tags has a public source"
        raise unknown("checkpoint", full if chosen else variant.name, records(), f"({variant.name} itself: {where})")
    return _load(fetch(record), full, layout or record.layout, record.config, task, device, dtype, overrides, full, generator)


def is_remote(source: str) -> bool:
    """Whether a source's text names something to fetch rather than a path."""
    return source.split(":", 1)[0] in ("hub", "package", "npm", "http", "https") and ":" in source


def _load(
    source: Any,
    name: str | None,
    layout: str | None,
    config: Any,
    task: str | None,
    device: Any,
    dtype: torch.dtype | None,
    overrides: Mapping[str, Any],
    shown: str | None,
    generator: torch.Generator | None,
) -> Any:
    if isinstance(source, str) and is_remote(source):
        from zoo.fetch import fetch

        shown, source = source, fetch(source)
    if not isinstance(source, Mapping):
        ours = read_description(Path(source))
        if ours is not None and layout in (None, "zoo"):
            return _load_ours(Path(source), ours, name, task, device, dtype, overrides, generator)
    foreign = foreign_config(source, config)
    archive: Archive = engine.DictArchive(source) if isinstance(source, Mapping) else open_archive(source)  # type: ignore[assignment]
    with archive:
        keymap = KeyMap.load(layout or layouts.recognise(archive.tensors, foreign))
        values = keymap.config_forward(foreign if foreign is not None else {})
        variant = registry.variant(registry.split(name)[0]) if name else None
        model_class = variant.model_class() if variant else class_of_maps(keymap.family)
        if variant is not None and variant.maps != keymap.family:
            raise CheckpointError(f"{shown or source} holds a {keymap.family} (layout {keymap.layout}), not a {variant.maps} like {variant.name}")
        return _load_mapped(
            archive, keymap, model_class, values, name, task, device, dtype, overrides, shown or _shown(source), generator, source
        )
