"""`zoo.convert` and `zoo.verify`: any public checkpoint in, verified safetensors out, and the way back."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from zoo import registry
from zoo.cache import home, locked, safe_name
from zoo.convert import engine, layouts
from zoo.convert import verify as ladder
from zoo.convert.files import architectures_of, embedding_options, foreign_config, read_description
from zoo.convert.keymap import KeyMap, Plan
from zoo.convert.readers import open_archive
from zoo.errors import CheckpointError, InputError, unknown
from zoo.layers.extend import own_class
from zoo.model import shapes_only
from zoo.sources import Record, records
from zoo.techniques.base import Technique, apply, recorded

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
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
    """Turn a checkpoint into verified safetensors under our names, or with ``to=`` ours into a public layout.

    source: a file, a folder, a registered tag, ``"hub:org/name"``, or tensors under foreign names. out: a ``.safetensors`` file, or a
    folder, which gets ``model.safetensors`` and ``config.json``. layout: the source's, None = recognised. config: the foreign config,
    where none lies beside the source. to: a layout such as ``"hf-albert"``; the source must then be ours. map_file: your own map. dtype:
    cast floating tensors. shard_size: bytes after which a new file begins. dry_run: plan and check, write nothing. progress: a function of
    (bytes done, bytes in all), or True for a bar.

    All heads that the file has come along. Nothing is left behind where it fails. Raises CheckpointError, ConfigError, MapError,
    FetchError.
    """
    out = Path(out)
    path, record = locate(source)
    with _shown(progress, out) as tell:
        if to is not None:
            return _back(path, out, to, map_file, dtype, shard_size, dry_run, tell)
        return _forward(path, out, record, layout, config, map_file, dtype, shard_size, dry_run, tell)


def verify(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    layout: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> ladder.Ladder:
    """Climb hash, keys, values, ties, contract and probe for a file, a folder, a registered tag or a source; says how far it got and why.

    The result's ``ok`` is False where a rung failed that could be climbed. A registered tag brings the hash and the probe that are on
    record.
    """
    path, record = locate(source)
    probe = _probe(record) if record is not None else None
    if not isinstance(path, Mapping):
        description = read_description(path)
        if description is not None and layout in (None, layouts.OURS):
            with open_archive(path) as archive:
                model_class, found = class_and_config(description, path)
                targets = targets_of(model_class, found, shapes_of(archive), recorded(description.get("techniques", ())))
                return ladder.verify_ours(archive, targets, probe=probe)
    foreign = foreign_config(path, config if config is not None else record.config if record else None)
    with opened(path) as archive:
        foreign = layouts.own_config(archive) if foreign is None else foreign
        keymap = layouts.load(layout or (record.layout if record and record.layout else layouts.recognise(archive, foreign)))
        model_class, ours, plan = planned(keymap, archive, foreign, None)
        return ladder.verify_foreign(
            archive,
            keymap,
            ours.to_dict(),
            targets_of(model_class, ours, {name: info.shape for name, info in plan.outputs.items()}),
            architectures=architectures_of(foreign),
            foreign=foreign,
            expected_sha256=None if record is None else record.sha256,
            probe=probe,
        )


# -- the steps --------------------------------------------------------------------------------------------------------------------------


def locate(source: Any) -> tuple[Any, Record | None]:
    """A source's local path (or the tensors it is), fetched where it must be, and its record where it is a registered tag."""
    from zoo.fetch import fetch

    if isinstance(source, Mapping):
        return source, None
    if isinstance(source, str) and is_remote(source):
        return fetch(source), None
    path = Path(source)
    if path.exists():
        return path, None
    name = str(source)
    if os.sep not in name and (name in records() or registry.split(name)[0] in registry.list_models()):
        record = record_of(name)
        path = fetch(record)
        return path, narrowed(record, path)
    if os.sep not in name and "." not in name:
        raise unknown("model", name, registry.list_models(), "(and there is no such file or folder)")
    raise CheckpointError(f"{name!r} does not exist; give a file, a folder, a registered name or a source like hub:org/name")


def narrowed(record: Record, path: Path) -> Record:
    """A record as it holds for the source that its files came from: a mirror may have another layout, config or tokenizer."""
    from zoo.fetch import parse_source, provenance

    entry = provenance(path)
    came = None if entry is None else next((text for text in record.sources if str(parse_source(text)) == entry.source), None)
    return record if came is None else record.at(came)


def is_remote(source: str) -> bool:
    """Whether a source's text names something to fetch rather than a path."""
    return source.split(":", 1)[0] in ("hub", "package", "npm", "http", "https") and ":" in source


def record_of(name: str) -> Record:
    """The source record of a name, of its default tag where it has none."""
    variant, _ = registry.resolve(name)
    tag = registry.split(name)[1] or next(iter(registry.tags(variant)), None)
    found = records().get(f"{variant.name}.{tag}") if tag else None
    if found is None:
        with_sources = [n for n in records() if n.startswith(f"{variant.name}.")]
        where = f"its tags with a source: {', '.join(with_sources)}" if with_sources else "none of its tags has a public source"
        raise unknown("checkpoint", f"{variant.name}.{tag}" if tag else variant.name, records(), f"({variant.name}: {where})")
    return found


def opened(source: Any) -> Any:
    """An archive over a path, or over tensors in memory; a context manager."""
    return engine.DictArchive(source) if isinstance(source, Mapping) else open_archive(source)


def shapes_of(archive: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an archive."""
    return {name: tuple(info.shape) for name, info in archive.tensors.items()}


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
        raise CheckpointError(f"{source} was written by a newer zoo (format {description['zoo_format']}; this one knows {FORMAT_VERSION})")
    wanted = description["class"]
    known = {v.class_path: v for variants in registry.families().values() for v in variants}
    if wanted not in known:
        raise CheckpointError(f"{source} names the class {wanted!r}, which no registered model has; register it first (zoo.register)")
    model_class = known[wanted].model_class()
    return model_class, model_class.Config.from_dict(description["config"])


def planned(
    keymap: KeyMap, archive: Any, foreign: Mapping[str, Any] | None, model_class: Any | None, heads: tuple[str, ...] | None = None
) -> tuple[Any, Any, Plan]:
    """The class, our config and the plan for a foreign archive; ``heads`` None = every head that the file has."""
    model_class = model_class or class_of_maps(keymap.family)
    ours = model_class.Config.from_dict(keymap.config_forward(foreign or {}, archive.tensors))
    plan = keymap.forward(archive.tensors, ours.to_dict(), heads=heads, architectures=architectures_of(foreign))
    return model_class, ours, plan


def targets_of(
    model_class: Any, config: Any, stored: Mapping[str, tuple[int, ...]], techniques: Sequence[Technique] = ()
) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a whole file must have: the bare model's, and those of the heads that are ``stored``.

    Heads that the family declares are built to be measured; heads of a user's task (a classifier of any size) are taken as they are.
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
            else layouts.load(layout or (record.layout if record and record.layout else layouts.recognise(archive, foreign)))
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
                (stage / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
                _copy_tokenizer(path, record, stage)
    return report if to_file else replace(report, files=tuple(out / file.name for file in report.files))


def _back(
    path: Any, out: Path, to: str, map_file: Any, dtype: Any, shard_size: int | None, dry_run: bool, progress: Progress | None
) -> engine.Report:
    if isinstance(path, Mapping):
        raise InputError("the way back starts from a file or folder of ours; save the model first")
    description = read_description(path)
    if description is None:
        raise CheckpointError(f"{path} is not in our layout; convert it first, then the way back is open")
    keymap = layouts.load(Path(map_file)) if map_file else layouts.load(to)
    if tensors := [t for t in recorded(description.get("techniques", ())) if t.adds_tensors]:
        name = type(tensors[0]).__name__
        raise CheckpointError(f"{path} was saved with {name}, whose tensors {to} has no names for; merge it or leave it out first")
    model_class, config = class_and_config(description, path)
    if class_of_maps(keymap.family) is not model_class:
        raise CheckpointError(f"{path} holds a {description['class']}; the layout {to} is for {keymap.family}")
    with open_archive(path) as archive:
        return engine.convert_back(
            archive, keymap, config.to_dict(), out, dtype=dtype, shard_size=shard_size, dry_run=dry_run, progress=progress
        )


class staged:
    """A folder beside ``out`` to work in, moved into its place when whole; for a single file the writer does that by itself."""

    def __init__(self, out: Path, to_file: bool = False, dry_run: bool = False) -> None:
        if out.exists() and (out.is_dir() if to_file else not out.is_dir()):
            raise InputError(f"{out} is a {'folder' if to_file else 'file'}; give a {'file' if to_file else 'folder'}")
        self.out, self.needed, self.stage = out, not to_file and not dry_run, Path()

    def __enter__(self) -> Path:
        if self.needed:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.stage = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", suffix=".incomplete", dir=self.out.parent))
        return self.stage

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.needed:
            try:
                if kind is None:
                    publish(self.stage, self.out)
            finally:
                shutil.rmtree(self.stage, ignore_errors=True)


def publish(stage: Path, folder: Path) -> None:
    """Move a finished folder into its place; where one is there, file by file, the config last."""
    os.chmod(stage, 0o755)
    if not folder.exists():
        os.replace(stage, folder)
        return
    for path in sorted(stage.iterdir(), key=lambda p: p.name == CONFIG_FILE):
        os.replace(path, folder / path.name)


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
    """A registered checkpoint in our layout, in the cache: fetched, verified and converted once, by one process."""
    from zoo.fetch import fetch

    folder = fetch(record)
    record = narrowed(record, folder)
    foreign = foreign_config(folder, record.config)
    with open_archive(folder) as archive:
        foreign = layouts.own_config(archive) if foreign is None else foreign
        keymap = layouts.load(record.layout or layouts.recognise(archive, foreign))
    name = safe_name(f"{record.name}-{keymap.layout}-{keymap.version}-{FORMAT_VERSION}-{zoo.__version__}-{folder.name}")
    target = home() / "converted" / name
    if not (target / CONFIG_FILE).is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f"{name}.lock"):
            if not (target / CONFIG_FILE).is_file():
                _forward(folder, target, record, record.layout, record.config, None, None, None, False, None)
    return target


def _probe(record: Record) -> Callable[[], tuple[bool, str]] | None:
    """A check of recorded outputs, for a tag that has some on record (``weights/<family>/probes.toml``)."""
    from zoo.convert.probes import check, probe_of

    found = probe_of(record)
    if found is None:
        return None

    def run() -> tuple[bool, str]:
        from zoo.create import create

        return check(found, create(record.name, pretrained=True))

    return run


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

        columns = (TextColumn(str(self.out)), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        bar = self.bar = Bar(*columns, transient=True)
        bar.start()
        task = bar.add_task("convert", total=None)
        return lambda done, total: bar.update(task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
