"""The catalogue: for every tag, where its public checkpoint lives, and what is known about it.

Read from ``weights/<family>/sources.toml`` without torch. A record's name is ``variant.tag``; the
first tag listed is the variant's default. ``[defaults]`` in a file holds what its records share. A
source is a string, or a table with ``source`` and what differs for that source alone (``layout``,
``format``, ``config``, ``tokenizer``, ``files``, ``optional``, ``sha256``, ``archive_sha256``,
``bytes``, ``unverified``).

A hash is written only for bytes that somebody hashed; where nobody did, ``unverified = true`` and
the first fetch notes what came.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, closest, unknown
from zoo.registry.resources import weights_folder

OPTIONS = frozenset({"rules", "level", "language"})  # words of a tokenizer's entry that name no file
KEY_MAP_ONLY = "key map tested, file never downloaded"
DOWNLOADED = "file downloaded and checked"


@dataclass(frozen=True)
class Record:
    """What is known about one public checkpoint.

    ``files`` maps each file that the checkpoint needs, besides config and tokenizer, to its sha256
    ("" = nobody hashed it); ``optional`` names those that are taken along where a source has them.
    In ``tokenizer`` strings and lists of them are file names, those of `OPTIONS` and anything else
    an option. ``config`` is the name of the file that holds it, or the foreign config itself;
    ``{}`` in a table, None here: the checkpoint holds its own.
    """

    family: str
    variant: str
    tag: str
    sources: tuple[str, ...]
    layout: str | None = None
    config: str | Mapping[str, Any] | None = "config.json"
    licence: str | None = None
    format: str | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    unverified: bool = False
    parameters: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    archive_sha256: str | None = None
    task: str | None = None
    detector: str | None = (
        None  # whose region features it was trained on, a name of `zoo.data.regions.detectors.DETECTORS`
    )
    labels: str | None = None  # names of its classifier's labels, where no config has them: a list of `label_names`
    notes: str = ""
    per_source: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.variant}.{self.tag}"

    @property
    def proof(self) -> str:
        """How far it is tested, in words: `DOWNLOADED` where somebody hashed the file, else `KEY_MAP_ONLY`."""
        if self.unverified:
            return KEY_MAP_ONLY
        others = any(self.at(source).unverified for source in self.sources)
        return f"{DOWNLOADED} (the first source)" if others else DOWNLOADED

    def at(self, source: str) -> Record:
        """The record as it holds for one of its sources alone."""
        return replace(self, sources=(source,), per_source={}, **self.per_source.get(source, {}))

    @property
    def wanted(self) -> dict[str, str]:
        """Every file that must be there besides the checkpoint, with its sha256 or ""."""
        named = dict.fromkeys([self.config] if isinstance(self.config, str) else [], "")
        for key, value in self.tokenizer.items():
            if key not in OPTIONS:
                named |= dict.fromkeys(
                    [value] if isinstance(value, str) else value if isinstance(value, tuple | list) else [], ""
                )
        return named | dict(self.files)


# what a table may say, and of which type
FIELDS: dict[str, tuple[type, ...]] = {
    "layout": (str,),
    "config": (str, dict),
    "licence": (str,),
    "format": (str,),
    "tokenizer": (dict,),
    "files": (dict,),
    "optional": (list,),
    "unverified": (bool,),
    "parameters": (int,),
    "bytes": (int,),
    "sha256": (str,),
    "archive_sha256": (str,),
    "task": (str,),
    "detector": (str,),
    "labels": (str,),
    "notes": (str,),
}
PER_SOURCE = (
    "layout",
    "format",
    "config",
    "tokenizer",
    "files",
    "optional",
    "sha256",
    "archive_sha256",
    "bytes",
    "unverified",
)


def _checked(table: Mapping[str, Any], where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in allowed:
            raise ConfigError(
                f"{where}: unknown field {key!r}; did you mean {', '.join(map(repr, closest(key, allowed)))}?"
            )
        if not isinstance(value, FIELDS[key]) or (isinstance(value, bool) and bool not in FIELDS[key]):
            expected = " or ".join(kind.__name__ for kind in FIELDS[key])
            raise ConfigError(f"{where}: {key} = {value!r} is a {type(value).__name__}; it must be a {expected}")
        values[key] = tuple(value) if isinstance(value, list) else value
    if values.get("config") == {}:  # TOML has no word for None
        values["config"] = None
    return values


def read_sources(path: Path) -> dict[str, Record]:
    """The records of one ``sources.toml``, in the order of the file; the family is the folder's
    name.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    defaults = _checked(content.pop("defaults", {}), f"{path} [defaults]", tuple(FIELDS))
    found: dict[str, Record] = {}
    for variant, tags in content.items():
        for tag, table in tags.items() if isinstance(tags, dict) else ():
            where = f"{path} [{variant}.{tag}]"
            if not isinstance(table, dict) or not table.get("sources"):
                raise ConfigError(
                    f"{where}: needs sources = [...], the places where it can be had, in the order to try them"
                )
            sources: list[str] = []
            per_source: dict[str, Mapping[str, Any]] = {}
            for entry in table.pop("sources"):
                entry = {"source": entry} if isinstance(entry, str) else dict(entry)
                text = entry.pop("source", None)
                if not isinstance(text, str):
                    raise ConfigError(f"{where}: a source is a string or a table with a string `source`, got {entry!r}")
                sources.append(text)
                if entry:
                    per_source[text] = _checked(entry, where, PER_SOURCE)
            values = defaults | _checked(table, where, tuple(FIELDS))
            record = Record(
                family=path.parent.name,
                variant=variant,
                tag=tag,
                sources=tuple(sources),
                per_source=per_source,
                **values,
            )
            found[record.name] = record
    return found


def label_names(name: str) -> list[str]:
    """The names of a data set's labels in the order of their numbers, from ``weights/_shared/labels``."""
    folder = weights_folder() / "_shared" / "labels"
    known = sorted(path.stem for path in folder.glob("*.txt"))
    if name not in known:
        raise unknown("list of labels", name, known)
    return (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()


@lru_cache(maxsize=8)
def _all_records(folder: Path) -> Mapping[str, Record]:
    found: dict[str, Record] = {}
    for path in sorted(folder.glob("*/sources.toml")):
        for name, entry in read_sources(path).items():
            if name in found:
                raise ConfigError(
                    f"{name} stands in the sources of both {found[name].family} and {entry.family}; a tag has one "
                    "record"
                )
            found[name] = entry
    return found


def records(family: str | None = None) -> dict[str, Record]:
    """Every record by name (``"albert-base.v2"``), of one family or of all; a family without public
    checkpoints has none.
    """
    return {name: entry for name, entry in _all_records(weights_folder()).items() if family in (None, entry.family)}


HUB = re.compile(r"hub:([^#@]+)")


def aliases() -> Mapping[str, str]:
    """What the hub calls our tags: ``"google-bert/bert-base-uncased"`` and, where it is no other's,
    ``"bert-base-uncased"`` -> ``"bert-base.google"``. In lower case; a name of several tags is none.
    """
    return _aliases(weights_folder())


@lru_cache(maxsize=8)
def _aliases(folder: Path) -> Mapping[str, str]:
    found: dict[str, set[str]] = {}
    for name, entry in _all_records(folder).items():
        for source in entry.sources:
            if match := HUB.match(source):
                repository = match[1].lower()
                for alias in (repository, repository.rpartition("/")[2]):
                    found.setdefault(alias, set()).add(name)
    return {alias: names.pop() for alias, names in sorted(found.items()) if len(names) == 1}


def record(name: str) -> Record:
    """The record of ``variant.tag``, or of a variant's first tag where none is named."""
    found = _all_records(weights_folder())
    if name in found:
        return found[name]
    variant, dot, tag = name.partition(".")
    tags = [entry for entry in found.values() if entry.variant == variant]
    if tags and not dot:
        return tags[0]
    if tags:
        raise unknown(f"checkpoint of {variant}", tag, [entry.tag for entry in tags])
    raise unknown("checkpoint", name, found)
