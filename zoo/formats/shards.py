"""Checkpoints in several files, by the index that names each tensor's file."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from pathlib import Path

from zoo.errors import CheckpointError
from zoo.formats.archive import Archive, Entry
from zoo.formats.disk import plain_name, read_regular
from zoo.formats.limits import MAX_HEADER, printable
from zoo.formats.safetensors_files import load_json

MAX_SHARDS = 2048


def is_index(path: Path) -> bool:
    return path.name.endswith(".index.json")


def read(path: Path, open_one: Callable[[Path], Archive]) -> Archive:
    """Open every shard that the index at ``path`` names; names must agree on both sides."""
    index = load_json(read_regular(path, MAX_HEADER).removeprefix(BOM_UTF8), str(path))
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
        metadata={**(details if isinstance(details, dict) else {}), **_said_by_all(path, archives)},
        refused=[f"{line} in {file}" for file, archive in archives.items() for line in archive.refused],
        files=(path, *(path.parent / file for file in files)),
    )


def _said_by_all(path: Path, archives: Mapping[str, Archive]) -> dict[str, object]:
    """What the headers of all shards say, of what the zoo writes into each; refused where they are of
    two saves.
    """
    first, *rest = ({k: v for k, v in a.metadata.items() if k.startswith("zoo.")} for a in archives.values())
    for file, said in zip(list(archives)[1:], rest, strict=True):
        if said != first:
            raise CheckpointError(
                f"{path}: the shards {next(iter(archives))!r} and {file!r} are of two saves; save the model again"
            )
    return first
