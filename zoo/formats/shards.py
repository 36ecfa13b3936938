"""Checkpoints in several files, by the index that names each tensor's file."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path

from zoo.errors import CheckpointError
from zoo.formats.archive import Archive, Entry
from zoo.formats.disk import plain_name
from zoo.formats.limits import MAX_HEADER, printable
from zoo.formats.safetensors_files import load_json

MAX_SHARDS = 2048


def is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def read(path: Path, open_one: Callable[[Path], Archive]) -> Archive:
    """Open every shard that the index at ``path`` names; names must agree on both sides."""
    if path.stat().st_size > MAX_HEADER:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; an index has at most {MAX_HEADER}")
    index = load_json(path.read_bytes().removeprefix(BOM_UTF8), str(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise CheckpointError(f"{path} has no weight_map of tensor names to file names")
    files = sorted(set(weight_map.values()))
    if len(files) > MAX_SHARDS:
        raise CheckpointError(f"{path} names {len(files)} shards; at most {MAX_SHARDS} are read")
    archives = {file: open_one(path.parent / plain_name(file, path)) for file in files}
    entries: dict[str, Entry] = {}
    for file, archive in archives.items():
        for name, entry in archive.entries.items():
            if name in entries:
                raise CheckpointError(f"{path}: tensor {name!r} is in two shards, the second is {file!r}")
            if weight_map.get(name) != file:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is in shard {file!r}, the index says "
                    f"{printable(str(weight_map.get(name)))!r}"
                )
            entries[name] = Entry(entry.info, entry.load, None if entry.place is None else (file, entry.place))
    missing = [name for name in weight_map if name not in entries]
    if missing:
        raise CheckpointError(
            f"{path}: tensor {printable(missing[0])!r} is not in its shard {weight_map[missing[0]]!r} ({len(missing)} "
            "such tensors)"
        )
    details = index.get("metadata")
    return Archive(
        path,
        next(iter(archives.values())).format,
        entries,
        metadata=details if isinstance(details, dict) else {},
        refused=[f"{line} in {file}" for file, archive in archives.items() for line in archive.refused],
        files=(path, *(path.parent / file for file in files)),
    )
