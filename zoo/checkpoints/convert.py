"""`zoo.convert` and `zoo.verify`: any public checkpoint in, verified safetensors out, and the way
back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import streaming as engine
from zoo.checkpoints.description import (
    CONFIG_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    class_and_config,
    class_of_maps,
    planned,
    targets_of,
)
from zoo.checkpoints.fetching.cache import home, locked
from zoo.checkpoints.files import architectures_of, embedding_options, foreign_config, read_description
from zoo.checkpoints.locate import locate, narrowed
from zoo.checkpoints.staging import staged
from zoo.errors import CheckpointError, InputError
from zoo.formats.disk import safe_path
from zoo.formats.opening import open_archive, opened
from zoo.maps import layouts
from zoo.registry.records import Record
from zoo.registry.resources import VERSION
from zoo.techniques.base import recorded

Progress = Callable[[int, int], None]


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
    out = Path(out)
    path, record = locate(source)
    with _shown(progress, out) as tell:
        if to is not None:
            return _back(path, out, to, map_file, dtype, shard_size, dry_run, tell)
        return _forward(path, out, record, layout, config, map_file, dtype, shard_size, dry_run, tell)


# -- the steps
# ------------------------------------------------------------------------------------------------------------------


def _forward(
    path: Any,
    out: Path,
    record: Record | None,
    layout: str | None,
    config: Any,
    map_file: Any,
    dtype: Any,
    shard_size: int | None,
    dry_run: bool,
    progress: Progress | None,
) -> engine.Report:
    foreign = foreign_config(path, config if config is not None else record.config if record else None)
    with opened(path) as archive:
        if not isinstance(path, Mapping) and map_file is None and layout is None and read_description(path) is not None:
            raise CheckpointError(f"{path} is in our layout already; to leave it, name a layout with to=")
        foreign = layouts.own_config(archive) if foreign is None else foreign
        keymap = (
            layouts.load(Path(map_file))
            if map_file
            else layouts.load(
                layout or (record.layout if record and record.layout else layouts.recognise(archive, foreign))
            )
        )
        model_class, ours, plan = planned(keymap, archive, foreign, None)
        stored = {name: info.shape for name, info in plan.outputs.items()}
        description = {
            "zoo_format": FORMAT_VERSION,
            "model": record.variant if record else None,
            "class": f"{model_class.__module__}:{model_class.__qualname__}",
            "config": ours.to_dict(),
            "task": None,
            "options": {},
            "hints": {"sentence-embedding": embedding} if (embedding := embedding_options(path)) else {},
        }
        to_file = out.suffix == ".safetensors"
        with staged(out, to_file, dry_run) as stage:
            report = engine.convert(
                archive,
                keymap,
                ours.to_dict(),
                targets_of(model_class, ours, stored),
                None,
                out if to_file else stage / WEIGHTS_FILE,
                dtype=dtype,
                shard_size=shard_size,
                dry_run=dry_run,
                progress=progress,
                architectures=architectures_of(foreign),
                foreign=foreign,
                expected_sha256=None if record is None else record.sha256,
                metadata={"zoo.description": json.dumps(description, sort_keys=True)},
            )
            if not dry_run and not to_file:
                (stage / CONFIG_FILE).write_text(
                    json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8"
                )
                _copy_tokenizer(path, record, stage)
    return report if to_file else replace(report, files=tuple(out / file.name for file in report.files))


def _back(
    path: Any,
    out: Path,
    to: str,
    map_file: Any,
    dtype: Any,
    shard_size: int | None,
    dry_run: bool,
    progress: Progress | None,
) -> engine.Report:
    if isinstance(path, Mapping):
        raise InputError("the way back starts from a file or folder of ours; save the model first")
    description = read_description(path)
    if description is None:
        raise CheckpointError(f"{path} is not in our layout; convert it first, then the way back is open")
    keymap = layouts.load(Path(map_file)) if map_file else layouts.load(to)
    if tensors := [t for t in recorded(description.get("techniques", ())) if t.adds_tensors]:
        name = type(tensors[0]).__name__
        raise CheckpointError(
            f"{path} was saved with {name}, whose tensors {to} has no names for; merge it or leave it out first"
        )
    model_class, config = class_and_config(description, path)
    if class_of_maps(keymap.family) is not model_class:
        raise CheckpointError(f"{path} holds a {description['class']}; the layout {to} is for {keymap.family}")
    with open_archive(path) as archive:
        return engine.convert_back(
            archive,
            keymap,
            config.to_dict(),
            out,
            dtype=dtype,
            shard_size=shard_size,
            dry_run=dry_run,
            progress=progress,
        )


def _copy_tokenizer(path: Any, record: Record | None, stage: Path) -> None:
    """The checkpoint's own tokenizer beside the converted weights, where it has one."""
    from zoo.errors import ZooError
    from zoo.tokenization import load_tokenizer

    if isinstance(path, Mapping):
        return
    folder = path if Path(path).is_dir() else Path(path).parent
    try:
        load_tokenizer(folder, dict(record.tokenizer) if record and record.tokenizer else None).save(stage)
    except ZooError:
        if record is not None and record.tokenizer:
            raise  # a registered checkpoint promises one


def converted(record: Record) -> Path:
    """A registered checkpoint in our layout, in the cache: fetched, verified and converted once, by
    one process.
    """
    from zoo.checkpoints.fetching.fetch import fetch

    folder = fetch(record)
    record = narrowed(record, folder)
    foreign = foreign_config(folder, record.config)
    with open_archive(folder) as archive:
        foreign = layouts.own_config(archive) if foreign is None else foreign
        keymap = layouts.load(record.layout or layouts.recognise(archive, foreign))
    name = safe_path(f"{record.name}-{keymap.layout}-{keymap.version}-{FORMAT_VERSION}-{VERSION}-{folder.name}")
    target = home() / "converted" / name
    if not (target / CONFIG_FILE).is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f"{name}.lock"):
            if not (target / CONFIG_FILE).is_file():
                _forward(folder, target, record, record.layout, record.config, None, None, None, False, None)
    return target


class _shown:
    """A progress function from what the user passed: None, a function, or True for a bar."""

    def __init__(self, progress: Progress | bool | None, out: Path) -> None:
        self.progress, self.out = progress, out
        self.bar: Any = None

    def __enter__(self) -> Progress | None:
        if self.progress is None or self.progress is False:
            return None
        if self.progress is not True:
            return self.progress  # type: ignore[return-value]
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn(str(self.out)),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        bar = self.bar = Bar(*columns, transient=True)
        bar.start()
        task = bar.add_task("convert", total=None)
        return lambda done, total: bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
