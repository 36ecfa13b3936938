"""`zoo.convert`: any public checkpoint in, verified safetensors out, and the way back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import checks
from zoo.checkpoints import streaming as engine
from zoo.checkpoints.binding import CONFIG_FILE, WEIGHTS_FILE, Binding, damage, hashes
from zoo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from zoo.checkpoints.companions import copy_search, head_words, write_companions
from zoo.checkpoints.description import (
    FORMAT_VERSION,
    class_of_maps,
    describe,
    write_description,
)
from zoo.checkpoints.fetching.cache import LOCAL, Cache, CacheEntry, home, locked
from zoo.checkpoints.files import folder_of, read_description
from zoo.checkpoints.images import of_name
from zoo.checkpoints.locate import locate, narrowed
from zoo.checkpoints.sentence_modules import without_layers
from zoo.checkpoints.staging import staged
from zoo.checkpoints.streaming import Destination, Progress
from zoo.data.images.files import read_images, write_images
from zoo.errors import CheckpointError, FetchError, InputError, ZooError
from zoo.formats.archive import Archive
from zoo.formats.disk import in_use, safe_path, writing
from zoo.maps import layouts
from zoo.maps.key_map import KeyMap
from zoo.registry.records import Record
from zoo.registry.resources import VERSION
from zoo.registry.tasks import TASKS
from zoo.tasks.base import heads_of_task, spec_of_class, task_class
from zoo.tokenization import load_tokenizer
from zoo.tokenization.hints import Hints
from zoo.tokenization.load import recognise

TO_FILE = "a single file holds no config.json and no tokenizer; name a folder in its place to get them"


def convert(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    out: str | os.PathLike[str],
    *,
    layout: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    to: str | None = None,
    map_file: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
    shard_size: int | None = None,
    dry_run: bool = False,
    progress: Progress | bool | None = None,
) -> engine.Report:
    """Turn a checkpoint into verified safetensors under our names, or with ``to=`` ours into a
    public layout.

    source: a file, a folder, a registered tag, ``"hub:org/name"``, or tensors under foreign names.
    out: a ``.safetensors`` file, or a folder, which gets ``model.safetensors`` and ``config.json``.
    layout: the source's, None = recognised. config: the foreign config, where none lies beside the
    source. to: a layout such as ``"hf-albert"``; the source must then be ours, or a state_dict under
    our names with the config.json of `save` as ``config``. map_file: your own map. dtype: cast
    floating tensors. shard_size: bytes after which a new file begins. dry_run: plan and check,
    write nothing. progress: a function of (bytes done, bytes in all), or True for a bar.

    All heads that the file has come along. Nothing is left behind where it fails. Raises
    CheckpointError, ConfigError, MapError, FetchError.
    """
    path, record = locate(source)
    own_map = None if map_file is None else Path(map_file)
    with _shown(progress, Path(out)) as tell:
        destination = Destination(Path(out), dtype, shard_size, tell)
        if to is not None:
            if isinstance(path, Mapping):
                raise InputError("the way back starts from a file or folder of ours; save the model first")
            if config is None and read_description(path) is None:
                raise CheckpointError(f"{path} is not in our layout; convert it first, then the way back is open")
            with open_checkpoint(path, config=config) as checkpoint:
                if checkpoint.keymap is not None:
                    raise CheckpointError(f"{path} is not in our layout; convert it first, then the way back is open")
                return _back(checkpoint, layouts.load(own_map or to), destination, dry_run)
        with open_checkpoint(path, record=record, layout=own_map or layout, config=config) as checkpoint:
            if checkpoint.keymap is None:
                raise CheckpointError(f"{path} is in our layout already; to leave it, name a layout with to=")
            return _forward(checkpoint, record, destination, dry_run, checkpoint.kept_task())


def refusal(checkpoint: Checkpoint) -> str | None:
    """Why a foreign checkpoint would not be converted, by names, shapes and config; None where only
    its values can stand in the way.
    """
    try:
        _forward(checkpoint, None, Destination(Path("unwritten.safetensors")), dry_run=True)
    except ZooError as error:
        return str(error)
    return None


def _forward(
    checkpoint: Checkpoint,
    record: Record | None,
    destination: Destination,
    dry_run: bool = False,
    kept: tuple[str | None, str] = (None, ""),
) -> engine.Report:
    """A foreign checkpoint into a file, or a folder with its config and its tokenizer. ``kept``: the
    task that it is for, and a note.
    """
    out, source = destination.path, checkpoint.source
    found = checkpoint.plan(inspect=True)
    heads = found.heads
    asked = ["sentence-embedding", *(task for head in sorted(heads) if (task := head.replace("_", "-")) in TASKS)]
    hints = {task: options for task in asked if (options := checkpoint.hints_for(task))}
    kept_task, note = kept
    blueprint = replace(checkpoint.blueprint, name=record.variant if record else None)
    if kept_task is not None:
        blueprint = replace(blueprint, task=kept_task, options=_options(checkpoint, kept_task))
    description = describe(blueprint, hints)
    to_file, lost = out.suffix == ".safetensors", ""
    with writing(out), staged(out, to_file, dry_run) as stage:
        to, whole = replace(destination, path=out if to_file else stage / WEIGHTS_FILE), not (dry_run or to_file)
        if whole:
            if "input_ids" in blueprint.model_class.inputs:
                lost = _copy_tokenizer(source, record, stage)
            _copy_images(checkpoint, record, stage)
            copy_search(checkpoint, stage)
        binding = Binding(description, files=hashes(stage) if whole else {})
        report = engine.convert(checkpoint, checkpoint.targets(blueprint), to, dry_run=dry_run, binding=binding)
        if whole and report.content_sha256 is not None:
            write_description(stage / CONFIG_FILE, binding.described(report.content_sha256))
    if to_file and has_tokenizer(source):
        lost = "a single file holds no tokenizer; name a folder in its place to keep the source's"
    heads_lost = [] if checkpoint.keymap is None else _lost_heads(found.left_out, checkpoint.keymap)
    notes = [*report.notes, note, *heads_lost, lost]
    report = replace(report, notes=tuple(filter(None, notes)))
    return report if to_file else replace(report, files=tuple(out / file.name for file in report.files))


def _options(checkpoint: Checkpoint, task: str) -> dict[str, Any]:
    """The options of a task's head as the tensors and the config of a foreign checkpoint show them."""
    model_class, config = checkpoint.blueprint.model_class, checkpoint.blueprint.config
    spec = spec_of_class(task, model_class)
    sizes = {name: info.shape for name, info in checkpoint.plan(inspect=True).outputs.items()}
    return {**task_class(spec).options_from(sizes, spec, config, model_class), **checkpoint.hints_for(task)}


def _back(checkpoint: Checkpoint, keymap: KeyMap, destination: Destination, dry_run: bool) -> engine.Report:
    """A checkpoint of ours into a public layout."""
    source, blueprint = checkpoint.source, checkpoint.blueprint
    for technique in blueprint.techniques:
        name = type(technique).__name__
        if technique.adds_tensors:
            raise CheckpointError(
                f"{source} was saved with {name}, whose tensors {keymap.layout} has no names for; merge it or leave it "
                "out first"
            )
        if not technique.only_values:
            raise CheckpointError(
                f"{source} was saved with {technique}, which changes the outputs and which {keymap.layout} cannot say; "
                "save the model without it first"
            )
    if class_of_maps(keymap.family) is not blueprint.model_class:
        name = blueprint.model_class.__name__
        raise CheckpointError(f"{source} holds a {name}; the layout {keymap.layout} is for {keymap.family}")
    destination, notes = _held(checkpoint, destination)
    said, out, to_file = head_words(checkpoint, keymap), destination.path, destination.path.suffix == ".safetensors"
    archive, layers = without_layers(checkpoint.archive)
    if layers and (to_file or "architectures" not in keymap.config.task):
        raise CheckpointError(
            f"{source} is a sentence encoder with layers behind its pooling, which stand in folders of their own.\n"
            "Name a folder, and a layout hf-* of the Hugging Face libraries, whose sentence-transformers reads them"
        )
    with writing(out), staged(out, to_file, dry_run) as stage:
        to = destination if to_file or dry_run else replace(destination, path=stage)
        notes += (
            [TO_FILE] if to_file else [] if dry_run else write_companions(checkpoint, keymap, stage, layers, to.dtype)
        )
        heads = heads_of_task(blueprint.task, blueprint.model_class)
        report = engine.convert_back(
            archive, keymap, checkpoint.config, to, tied_heads=heads, said=said, dry_run=dry_run
        )
    files = report.files if to_file else tuple(out / file.name for file in report.files)
    return replace(report, files=files, notes=(*report.notes, *notes))


def _held(checkpoint: Checkpoint, destination: Destination) -> tuple[Destination, list[str]]:
    """Hold a file of ours against its config before it goes anywhere. -> the destination, whose dtype
    is that which holds all floats where they differ, and a remark on it.
    """
    targets = checkpoint.targets()
    checks.required(checks.check_plan(checkpoint.plan(targets, inspect=True)), checkpoint.shown)
    checks.check_kinds(checkpoint.archive.tensors, targets, cast=destination.dtype is not None)
    wide = checks.widest(checkpoint.archive.tensors, targets) if destination.dtype is None else None
    if wide is None:
        return destination, []
    return replace(destination, dtype=wide), [checks.MIXED.format(wide)]


def _lost_heads(left_out: Mapping[str, str], keymap: KeyMap) -> list[str]:
    """What to say of heads of a foreign file that don't come along."""
    foreign = {reason for _, reason in keymap.foreign_heads}
    unclear = [name for name, why in left_out.items() if why.startswith(("may be the head", "head "))]
    strange = [name for name, why in left_out.items() if why in foreign]
    found = []
    for names, hint in ((unclear, "; name its class as architectures in the config"), (strange, "")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            found.append(f"left out {names[0]!r}{more}: {left_out[names[0]]}{hint}")
    return found


def has_tokenizer(source: Any) -> bool:
    """Whether a tokenizer lies beside a checkpoint."""
    folder = folder_of(source)
    try:
        return folder is not None and bool(recognise(folder, Hints(folder)))
    except ZooError:
        return False


def _copy_tokenizer(path: Any, record: Record | None, stage: Path) -> str:
    """The checkpoint's own tokenizer beside the converted weights, where it has one. -> what to say
    where it has none.
    """
    if isinstance(path, Mapping):
        return "tensors in memory have no tokenizer, so none was written"
    folder = path if Path(path).is_dir() else Path(path).parent
    try:
        load_tokenizer(folder, dict(record.tokenizer) if record and record.tokenizer else None).save(stage)
    except ZooError as error:
        if record is not None and record.tokenizer:
            raise  # a registered checkpoint promises one
        return f"no tokenizer was written: {error}"
    return ""


def _copy_images(checkpoint: Checkpoint, record: Record | None, stage: Path) -> None:
    """How the model wants its pictures, beside the converted weights: as the registered variant says, else
    as the files beside the source do.
    """
    if "pixel_values" in checkpoint.blueprint.model_class.inputs:
        folder = folder_of(checkpoint.source)
        found = of_name(record.name) if record is not None else None
        found = read_images(folder) if found is None and folder is not None else found
        if found is not None:
            write_images(found, stage)


TRIES = 16  # where the cache is pruned, or found damaged, while it is used


def converted(record: Record) -> Path:
    """A registered checkpoint in our layout, in the cache: fetched, verified and converted once, by
    one process. Fetched files that are damaged are fetched again, a damaged conversion is made anew.
    """
    with conversion(record) as folder:
        return folder


@contextmanager
def conversion(record: Record) -> Iterator[Path]:
    """What `converted` gives, kept from being pruned while the block runs."""
    from zoo.checkpoints.fetching.fetch import fetch, provenance

    folder = fetch(record)
    with ExitStack() as kept:
        for left in reversed(range(TRIES)):
            entry = provenance(folder)
            try:
                found = _converted(record, folder, entry, kept)
                break
            except (ZooError, OSError) as error:
                if not left or not (damaged := ("it is gone",) if entry is None else Cache().damage(entry)):
                    raise
                if entry is None and folder.exists():
                    raise
                try:
                    folder = fetch(record, force=entry is not None and entry.present())
                except FetchError as again:
                    raise FetchError(f"{record.name}: {damaged[0]}, and can't be fetched again: {again}") from error
        yield found


def _converted(record: Record, folder: Path, entry: CacheEntry | None, kept: ExitStack) -> Path:
    record = narrowed(record, folder)
    with in_use(folder), open_checkpoint(folder, record=record) as checkpoint:
        if checkpoint.keymap is None:
            kept.enter_context(in_use(folder))
            return folder
        layout, version = checkpoint.layout, checkpoint.keymap.version
        made_of = folder.name if entry is not None else _as_it_is_now(checkpoint.archive)
        name = safe_path(f"{record.name}-{layout}-{version}-{FORMAT_VERSION}-{VERSION}-{made_of}")
        target = home() / "converted" / name
        if not _kept(target, kept):
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent / f"{name}.lock"):
                if not _kept(target, kept):
                    Cache().discard(target)
                    _forward(_as_fetched(checkpoint, entry), record, Destination(target))
                    kept.enter_context(in_use(target))
    return target


def _kept(target: Path, kept: ExitStack) -> bool:
    """Whether a conversion is there and whole, as far as can be told without hashing it; it then is
    kept from being pruned.
    """
    with ExitStack() as use:
        if use.enter_context(in_use(target)) and not damage(target, contents=False):
            kept.push(use.pop_all())
            return True
    return False


def _as_it_is_now(archive: Archive) -> str:
    """What tells a source that lies outside of the cache from what it was before it was changed."""
    states = [(str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns) for file in archive.files]
    return f"{hashlib.sha256(repr(states).encode()).hexdigest()[:16]}{LOCAL}"


def _as_fetched(checkpoint: Checkpoint, entry: CacheEntry | None) -> Checkpoint:
    """A checkpoint whose tensors are to have the hash that its file had when it was fetched, as its
    neighbors are found to have now.
    """
    if entry is None:
        return checkpoint
    archive = checkpoint.archive
    names = {
        file.relative_to(entry.folder).as_posix(): file for file in archive.files if file.is_relative_to(entry.folder)
    }
    if problems := Cache().damage(entry, besides=names):
        raise CheckpointError(f"{entry.source}: {problems[0]}: damaged since it was fetched")
    if checkpoint.sha256 is not None or not set(names) <= set(entry.files) or len(names) != len(archive.files):
        return checkpoint
    return replace(checkpoint, sha256=archive.joint({names[name]: entry.files[name].sha256 for name in names}))


@contextmanager
def _shown(progress: Progress | bool | None, out: Path) -> Iterator[Progress | None]:
    """A progress function from what the user passed: None, a function, or True for a bar."""
    if not isinstance(progress, bool):
        yield progress
    elif not progress:
        yield None
    else:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Bar(TextColumn(str(out)), *columns, transient=True) as bar:
            task = bar.add_task("convert", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
