"""What lies beside a checkpoint: its own config, our description."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, ConfigError
from zoo.formats.disk import read_regular
from zoo.formats.plain_json import parse_json

CONFIG_NAMES = (
    *("config.json", "bert_config.json", "albert_config.json", "ernie_config.json"),
    "open_clip_config.json",
    *("ernie_vil_config.base.json", "ernie_vil_config.large.json"),
)
LARGEST_CONFIG = 16 << 20
MOST_VALUES = 1_000_000  # in a config: it may name the labels of a large classifier


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, with or without a byte order mark, with errors that name it."""
    value = json_value(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def json_value(path: Path) -> Any:
    """What a JSON file holds, an object or not."""
    try:
        return parse_json(read_regular(path, LARGEST_CONFIG), str(path), MOST_VALUES)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror}") from error


def folder_of(source: Any) -> Path | None:
    """The folder in which a source's config may lie, None for tensors in memory."""
    if isinstance(source, Mapping):
        return None
    path = Path(source)
    return path if path.is_dir() else path.parent


def read_description(source: Path) -> dict[str, Any] | None:
    """The config.json that `zoo.save` wrote into a folder (or beside a file), or None where it is
    not ours.
    """
    folder = source if source.is_dir() else source.parent
    path = folder / "config.json"
    value = read_json(path) if path.exists() else {}
    if "zoo_format" in value:
        return value
    if source.is_file() and source.suffix == ".safetensors":  # a single file of ours describes itself
        from zoo.formats.opening import open_archive

        with open_archive(source) as archive:
            text = archive.metadata.get("zoo.description")
        if isinstance(text, str):
            described = parse_json(text, f"the description in {source}")
            return described if isinstance(described, dict) and "zoo_format" in described else None
    return None


def foreign_config(
    source: Any, config: Mapping[str, Any] | str | os.PathLike[str] | None = None
) -> dict[str, Any] | None:
    """The foreign config: as given, or from the file beside the checkpoint, or None where there is
    none.

    config: a dict, a path, or a file name in the source's folder.
    """
    if isinstance(config, Mapping):
        return dict(config)
    folder = folder_of(source)
    if config is not None:
        path = Path(config)
        if not path.is_file() and folder is not None and (folder / path).is_file():
            path = folder / path
        if not path.is_file():
            raise ConfigError(f"the config {str(config)!r} does not exist; give a dict or a JSON file")
        return read_json(path)
    if folder is not None:
        for name in CONFIG_NAMES:
            if (folder / name).exists():
                return read_json(folder / name)
    return None


def architectures_of(foreign: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The classes that a foreign config says its file is for; they settle whose head an ambiguous
    name is.
    """
    named = (foreign or {}).get("architectures")
    return tuple(str(name) for name in named) if isinstance(named, list) else ()


PROBLEM_TYPES = {  # the other library's word for the loss of a classifier -> ours
    "regression": "regression",
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
}


def head_options(foreign: Mapping[str, Any] | None, known: Collection[str]) -> dict[str, Any]:
    """What a foreign config says of its classifier, as far as a task has ``known`` options for it:
    the labels' names and the kind of problem. LABEL_0, LABEL_1, ... are no names.
    """
    options: dict[str, Any] = {}
    names = (foreign or {}).get("id2label")
    if "labels" in known and isinstance(names, Mapping) and names:
        numbered = {str(number): str(name) for number, name in names.items()}
        if set(numbered) != {str(number) for number in range(len(numbered))}:
            raise ConfigError(
                f"id2label must number the labels from 0 to {len(numbered) - 1}, got {', '.join(numbered)}; leave it "
                "out of the config, or mend it"
            )
        labels = [numbered[str(number)] for number in range(len(numbered))]
        if labels != [f"LABEL_{number}" for number in range(len(labels))]:
            options["labels"] = labels
    stated = (foreign or {}).get("problem_type")
    if "problem_type" in known and stated is not None:
        if stated not in PROBLEM_TYPES:
            raise ConfigError(f"problem_type is {stated!r} in the config; known are {', '.join(PROBLEM_TYPES)}")
        options["problem_type"] = PROBLEM_TYPES[stated]
    return options
