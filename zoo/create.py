"""The calls that everything else serves: create, load, save."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import registry
from zoo.conversion import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    class_and_config,
    class_of_maps,
    convert,
    converted,
    locate,
    opened,
    record_of,
    staged,
)
from zoo.convert import layouts
from zoo.convert.files import architectures_of, embedding_options, foreign_config, read_description
from zoo.convert.keymap import Plan
from zoo.convert.readers import Archive, open_archive
from zoo.convert.sparse_tensors import packed
from zoo.convert.writer import write_tensors
from zoo.errors import CheckpointError, ConfigError, InputError, unknown
from zoo.layers.extend import own_class
from zoo.model import initialise, shapes_only
from zoo.tasks.base import TaskModel, build_task, offers_of_class, spec_of_class, task_class
from zoo.tasks.catalogue import TASKS, require_fit
from zoo.techniques.base import Technique, apply, bare_model, recorded


@dataclass(frozen=True)
class LoadReport:
    """What happened when weights were loaded; stands at ``model.load_report``.

    ``left_out``: stored tensors that nobody asked for, each with its reason. ``random``: tensors of the asked-for head that the checkpoint
    lacks. ``differs``: config fields in which the checkpoint differs from the named variant, (variant's, checkpoint's).
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
            f"  {name}: this checkpoint has {theirs!r} where the variant has {ours!r}" for name, (ours, theirs) in self.differs.items()
        ]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Request:
    """What a user asked of `create` or `load`, carried through the steps. ``shown``: the source's name in messages."""

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


def create(
    name: str,
    *,
    pretrained: bool | str | os.PathLike[str] | Mapping[str, Tensor] = False,
    init_from: str | os.PathLike[str] | None = None,
    task: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    layout: str | None = None,
    techniques: Sequence[Technique] = (),
    **overrides: Any,
) -> Any:
    """Build a registered model, with a head where ``task`` names one.

    name: a variant, or a variant and a checkpoint tag after a dot. pretrained: True for the tag's public checkpoint (the variant's default
    tag where the name has none), or a file, a folder, ``"hub:org/name@revision"``, or tensors by their foreign names; what has no config
    beside it takes the tag's, where the name has one. overrides: config fields and the task's options (``num_labels``); on top of loaded
    weights only those fields that shape no weight. device: may be "meta". dtype: random weights are float32 unless you say, loaded ones
    come as stored. generator: draws the random weights. techniques: applied in order, see `zoo.apply`. init_from: another family's
    checkpoint (``"bert-base.google"``, a file or folder) that fills what it can by declared rules; ``model.load_report`` says what stays
    random.

    Raises UnknownNameError for a name, tag, task or field that does not exist (with the closest), ConfigError for values that contradict
    each other or the weights, TechniqueError where a technique finds no parts, TaskError where the task does not fit, CheckpointError for
    a file that is not this model, FetchError where it can't be had.
    """
    variant, _ = registry.resolve(name)
    model_class = variant.model_class()
    if task is not None:
        require_fit(task, offers_of_class(model_class), variant.name)
    fields, options = _split(overrides, model_class, task)
    if pretrained is not False and init_from is not None:
        raise ConfigError("pretrained= fills the whole model and init_from= starts a part of it from another family; give one of them")
    if pretrained is not False:
        request = Request(name, task, layout, None, device, dtype, generator, overrides)
        if pretrained is not True:
            return apply(_load(pretrained, request), *techniques, generator=generator)
        record = record_of(name)
        loaded = _load(converted(record), replace(request, name=record.name, shown=record.name))
        return apply(loaded, *techniques, generator=generator)
    config = model_class.Config.from_dict(registry.config_values(name)).replace(**fields)
    with shapes_only():
        module = apply(_build(model_class, config, task, options, variant.name), *techniques)
    module.to(dtype or torch.float32)
    module.to_empty(device=device or "cpu")
    module.init_weights(generator)  # type: ignore[operator]
    if device is None or torch.device(device).type != "meta":
        for technique in techniques:
            technique.settle(bare_model(module), generator)
    if init_from is not None:
        return _finish(module, variant.name, warm_start(module, variant, init_from)).train()
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
    the source has none beside it. task: the head wanted; a folder that `save` wrote knows its own. Loading is strict: a missing, extra or
    mis-shaped tensor is a CheckpointError, except heads nobody asked for and the asked-for head where the checkpoint lacks it;
    ``model.load_report`` names both.
    """
    return _load(source, Request(None, task, layout, config, device, dtype, None, overrides))


def save(
    model: nn.Module, folder: str | os.PathLike[str], tokenizer: Any = None, *, shard_size: int | None = None, sparse: bool = False
) -> Path:
    """Write ``config.json`` and ``model.safetensors`` (and the tokenizer's files) into a folder, all or nothing.

    The files are written beside the folder and moved in when they are whole; a folder that exists is replaced file by file. Tensors stand
    under the canonical names, a task's heads under ``heads.``. shard_size: bytes after which a new weights file begins. sparse: tensors
    with many zeros are stored by their other values alone where that is smaller; `load` and every converter here read them. -> the folder.
    """
    folder = Path(folder)
    if getattr(model, "prepared", None) is not None:
        raise InputError("this model was prepared by zoo.optimize and holds its weights in no form that can be saved; save the original")
    description = describe(model)
    if sparse and shard_size is not None:
        raise InputError("sparse=True writes one file; leave shard_size out")
    with staged(folder) as stage:
        tensors = {name: tensor.detach() for name, tensor in canonical_state(model).items()}
        tensors, how = packed(tensors) if sparse else (tensors, {})
        metadata = {"zoo.description": json.dumps(description, sort_keys=True), **how}
        write_tensors(stage / WEIGHTS_FILE, tensors, metadata, shard_size=shard_size)
        (stage / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(stage)
    return folder


def describe(model: nn.Module) -> dict[str, Any]:
    """What `save` writes into config.json: enough to build the model again."""
    bare = model.model if isinstance(model, TaskModel) else model
    applied = getattr(bare, "techniques", ())
    return {
        **({"techniques": [technique.record() for technique in applied]} if applied else {}),
        "zoo_format": FORMAT_VERSION,
        "model": getattr(bare, "zoo_name", None),
        "class": f"{own_class(bare).__module__}:{own_class(bare).__qualname__}",
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
    fields, known = model_class.Config.field_names(), spec_of_class(task, model_class).options if task else {}
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


def warm_start(module: nn.Module, variant: registry.Variant, source: str | os.PathLike[str]) -> LoadReport:
    """Fill what another family's checkpoint can start, by the declared transfer map; the report says what stays random.

    Raises UnknownNameError where no transfer is declared, CheckpointError where sizes differ.
    """
    origin, record = locate(source)
    with tempfile.TemporaryDirectory() as folder:
        if record is not None:
            origin = converted(record)
        elif read_description(Path(origin)) is None:
            convert(origin, folder + "/ours")
            origin = Path(folder) / "ours"
        description = read_description(Path(origin))
        assert description is not None
        family = next(v.maps for vs in registry.families().values() for v in vs if v.class_path == description["class"])
        known = layouts.transfers(variant.maps)
        if family not in known:
            raise unknown(f"family to start {variant.name} from", family, known)
        keymap = layouts.load(known[family])
        targets = canonical_state(module)
        with open_archive(Path(origin)) as archive:
            heads = {name.split(".")[1] for name in targets if name.startswith("heads.")}
            plan = keymap.forward(archive.tensors, module.config.to_dict(), heads=heads, inspect=True)  # type: ignore[union-attr, operator]
            started: set[str] = set()
            for step in plan.steps:
                for name, tensor in step.run(archive.read).items():
                    if name not in targets or targets[name].shape != tensor.shape:
                        wanted = tuple(targets[name].shape) if name in targets else "nothing of that name"
                        raise CheckpointError(f"{source}: {name} is {tuple(tensor.shape)} there; {variant.name} has {wanted}")
                    with torch.no_grad():
                        targets[name].copy_(tensor)
                    started.add(name)
            left_out = {**plan.left_out, **plan.dropped}
            if missed := [n for n in archive.tensors if n not in left_out and not any(n in step.sources for step in plan.steps)]:
                raise CheckpointError(f"{source}: {missed[0]} has no place in {variant.name}; do the sizes agree?")
    return LoadReport(str(source), keymap.layout, left_out, tuple(name for name in targets if name not in started))


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
        if foreign is None and request.name and registry.split(request.name)[1]:  # "name.tag": what the catalogue knows of that file
            record = record_of(request.name)
            if isinstance(record.config, Mapping):
                foreign, layout = dict(record.config), layout or record.layout
        keymap = layouts.load(layout or layouts.recognise(archive, foreign))
        variant = registry.variant(registry.split(request.name)[0]) if request.name else None
        if variant is not None and variant.maps != keymap.family:
            raise CheckpointError(
                f"{request.shown} is a {keymap.family} (layout {keymap.layout}), not a {variant.maps} like {variant.name}"
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
        module, random = _fitted(model_class, config, options, sizes, replace(request, name=variant.name if variant else keymap.family))
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
            raise CheckpointError(f"{source}: {random[0]} is missing or of another shape, though the config promises it")
        targets = canonical_state(module)
        passengers = str(archive.metadata.get("zoo.passengers", "")).split()
        left_out = {name: "a part that nobody asked for" for name in sizes if name not in targets and name not in passengers}
        if strange := [name for name in left_out if not name.startswith(("heads.", "pooler."))]:
            raise CheckpointError(f"{source}: nothing in this model takes the stored tensor {strange[0]}")
        assign(module, {name: archive.read(name) for name in targets if name not in random}, random, request)
    differs = {} if request.name is None else differences(registry.config(request.name), found)
    return _finish(module, description["model"], LoadReport(request.shown, layouts.OURS, left_out, random, differs))


def _fitted(
    model_class: Any, config: Any, options: Mapping[str, Any], sizes: Mapping[str, tuple[int, ...]], request: Request
) -> tuple[nn.Module, tuple[str, ...]]:
    """A module on the meta device that the stored ``sizes`` fill, and the tensors of the asked-for head that they don't.

    Raises CheckpointError for any other tensor that is missing or of another shape.
    """
    task = request.task
    pooled = any(name.startswith("pooler.") for name in sizes)
    if task is None and not pooled and "pooler" in config.field_names() and _pooler_has_parameters(model_class, config):
        config = config.replace(pooler=False)
    if task is not None:
        spec = spec_of_class(task, model_class)
        options = {**task_class(spec).options_from(sizes, spec, config, model_class), **options}
    with shapes_only():
        module = apply(_build(model_class, config, task, options, request.name or model_class.__name__), *request.techniques)
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
    """The fields, free ones excepted, in which a checkpoint's config differs from the named variant's: (variant's, checkpoint's)."""
    fields = [name for name in found.field_names() if name not in found.free_fields()]
    return {name: (getattr(named, name), getattr(found, name)) for name in fields if getattr(named, name) != getattr(found, name)}


def override(found: Any, fields: Mapping[str, Any], shown: str) -> Any:
    """A checkpoint's config with a user's overrides, those refused that contradict its weights."""
    for key, value in fields.items():
        stored = getattr(found, key)
        if key not in found.free_fields() and value != stored:
            raise ConfigError(f"{key}={value!r} contradicts the weights of {shown}, which have {key}={stored!r}; leave it out")
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
            raise CheckpointError(f"{copy} is stored as a copy of {original}, but differs from it; does its config untie them?")


def assign(module: nn.Module, state: Mapping[str, Tensor], random: Sequence[str], request: Request) -> None:
    """Put tensors into a module built on the meta device; the ``random`` ones are drawn. Each is moved and cast on its own."""
    prefix = "model." if isinstance(module, TaskModel) else ""
    stored = next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)
    full = dict(state)
    for part in sorted({".".join(name.split(".")[: 2 if name.startswith("heads.") else 1]) for name in random}):
        piece = (
            module.get_submodule(part if part.startswith("heads.") else prefix + part).to(request.dtype or stored).to_empty(device="cpu")
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


def open_pretrained(name: str, task: str) -> tuple[Any, Any]:
    """A trained model for a task and its tokenizer, from a pretrained name, a file or a folder."""
    return load(name, task=task), tokenizer(name)


def tokenizer(source: str | os.PathLike[str]) -> Any:
    """The tokenizer of a registered name (its default checkpoint's), a folder, a file, or ``"hub:org/name"``.

    ``.encode(text, pair)`` gives a tokenizers.Encoding, ``tokenizer(texts)`` tensors for ``model(**batch)``, ``.backend`` the
    tokenizers.Tokenizer.
    """
    from zoo.tokenization import load_tokenizer

    path, record = locate(source)
    return load_tokenizer(path, dict(record.tokenizer) if record is not None and record.tokenizer else None)
