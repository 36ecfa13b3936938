"""`zoo.convert`: any public checkpoint in, verified safetensors out, and the way back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import streaming as engine
from zoo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from zoo.checkpoints.companions import head_words, write_companions
from zoo.checkpoints.description import CONFIG_FILE, FORMAT_VERSION, WEIGHTS_FILE, class_of_maps, describe
from zoo.checkpoints.fetching.cache import home, locked
from zoo.checkpoints.files import folder_of, read_description
from zoo.checkpoints.locate import locate, narrowed
from zoo.checkpoints.sentence_modules import without_layers
from zoo.checkpoints.staging import staged
from zoo.checkpoints.streaming import Destination, Progress
from zoo.errors import CheckpointError, InputError, ZooError
from zoo.formats.disk import safe_path
from zoo.maps import layouts
from zoo.maps.key_map import KeyMap
from zoo.registry.records import Record
from zoo.registry.resources import VERSION
from zoo.registry.tasks import TASKS
from zoo.tasks.base import spec_of_class, task_class
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
    source. to: a layout such as ``"hf-albert"``; the source must then be ours. map_file: your own
    map. dtype: cast floating tensors. shard_size: bytes after which a new file begins. dry_run:
    plan and check, write nothing. progress: a function of (bytes done, bytes in all), or True for a
    bar.

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
            if read_description(path) is None:
                raise CheckpointError(f"{path} is not in our layout; convert it first, then the way back is open")
            with open_checkpoint(path) as checkpoint:
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
    metadata = {"zoo.description": json.dumps(description, sort_keys=True)}
    to_file, lost = out.suffix == ".safetensors", ""
    with staged(out, to_file, dry_run) as stage:
        to = replace(destination, path=out if to_file else stage / WEIGHTS_FILE)
        report = engine.convert(checkpoint, checkpoint.targets(blueprint), to, dry_run=dry_run, metadata=metadata)
        if not dry_run and not to_file:
            (stage / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            lost = _copy_tokenizer(source, record, stage)
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
    said, out, to_file = head_words(checkpoint, keymap), destination.path, destination.path.suffix == ".safetensors"
    archive, layers = without_layers(checkpoint.archive)
    if layers and (to_file or "architectures" not in keymap.config.task):
        raise CheckpointError(
            f"{source} is a sentence encoder with layers behind its pooling, which stand in folders of their own.\n"
            "Name a folder, and a layout hf-* of the Hugging Face libraries, whose sentence-transformers reads them"
        )
    with staged(out, to_file, dry_run) as stage:
        to = destination if to_file or dry_run else replace(destination, path=stage)
        report = engine.convert_back(archive, keymap, checkpoint.config, to, said=said, dry_run=dry_run)
        notes = (
            [TO_FILE] if to_file else [] if dry_run else write_companions(checkpoint, keymap, stage, layers, to.dtype)
        )
    files = report.files if to_file else tuple(out / file.name for file in report.files)
    return replace(report, files=files, notes=(*report.notes, *notes))


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


def converted(record: Record) -> Path:
    """A registered checkpoint in our layout, in the cache: fetched, verified and converted once, by
    one process.
    """
    from zoo.checkpoints.fetching.fetch import fetch

    folder = fetch(record)
    record = narrowed(record, folder)
    with open_checkpoint(folder, record=record) as checkpoint:
        if checkpoint.keymap is None:
            return folder
        layout, version = checkpoint.layout, checkpoint.keymap.version
        name = safe_path(f"{record.name}-{layout}-{version}-{FORMAT_VERSION}-{VERSION}-{folder.name}")
        target = home() / "converted" / name
        if not (target / CONFIG_FILE).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent / f"{name}.lock"):
                if not (target / CONFIG_FILE).is_file():
                    _forward(checkpoint, record, Destination(target))
    return target


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
