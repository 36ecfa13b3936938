"""From what a user calls a checkpoint (a path, a tag, a remote source) to its files and its
record.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, unknown
from zoo.registry import variants as registry
from zoo.registry.listing import list_models
from zoo.registry.records import Record, aliases, records


def locate(source: Any) -> tuple[Any, Record | None]:
    """A source's local path (or the tensors it is), fetched where it must be, and its record where
    it is a registered tag.
    """
    from zoo.checkpoints.fetching.fetch import fetch

    if isinstance(source, Mapping):
        return source, None
    if isinstance(source, str) and is_remote(source):
        return fetch(source), None
    path = Path(source)
    if path.exists() or path.with_name(path.name + ".index").is_file():  # TensorFlow's are named by their prefix
        return path, None
    name = str(source)
    if registry.split(name)[0] in list_models() and (os.sep not in name or name.lower() in aliases()):
        record = record_of(name)
        path = fetch(record)
        return path, narrowed(record, path)
    if os.sep not in name and "." not in name:
        raise unknown("model", name, list_models(), "(and there is no such file or folder)")
    raise CheckpointError(
        f"{name!r} does not exist; give a file, a folder, a registered name or a source like hub:org/name"
    )


def narrowed(record: Record, path: Path) -> Record:
    """A record as it holds for the source that its files came from: a mirror may have another
    layout, config or tokenizer.
    """
    from zoo.checkpoints.fetching.fetch import provenance
    from zoo.checkpoints.fetching.sources import parse_source

    entry = provenance(path)
    came = (
        None
        if entry is None
        else next((text for text in record.sources if str(parse_source(text)) == entry.source), None)
    )
    return record if came is None else record.at(came)


def is_remote(source: str) -> bool:
    """Whether a source's text names something to fetch rather than a path."""
    return source.split(":", 1)[0] in ("hub", "package", "http", "https") and ":" in source


def record_of(name: str) -> Record:
    """The source record of a name, of its default tag where it has none."""
    variant, _ = registry.resolve(name)
    tag = registry.split(name)[1] or next(iter(registry.tags(variant)), None)
    found = records().get(f"{variant.name}.{tag}") if tag else None
    if found is None:
        with_sources = [n for n in records() if n.startswith(f"{variant.name}.")]
        where = (
            f"its tags with a source: {', '.join(with_sources)}"
            if with_sources
            else "none of its tags has a public source"
        )
        raise unknown(
            "checkpoint", f"{variant.name}.{tag}" if tag else variant.name, records(), f"({variant.name}: {where})"
        )
    return found


def shapes_of(archive: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an archive."""
    return {name: tuple(info.shape) for name, info in archive.tensors.items()}
