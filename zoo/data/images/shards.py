"""Pictures with their texts in tar files, as WebDataset keeps them: ``0001.jpg``, ``0001.txt``,
``0001.json``, ``0002.jpg``, ...

    samples = Shards(["train-000.tar", "train-001.tar"])
    samples[3]  # {"key": "0003", "image": train-000.tar#0003.jpg, "text": "a purple hat"}

Only the headers are read at first; a picture's bytes when they are asked for. So samples have numbers, can be
shuffled, and a run goes on at any of them. Nothing is unpacked, and pickles are refused.
"""

from __future__ import annotations

import bisect
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from zoo.data.images.reading import SUFFIXES
from zoo.errors import InputError
from zoo.formats.plain_json import parse_json

SUFFIX = ".tar"
CODE = frozenset(("pyd", "pickle", "pkl", "pth", "pt"))
"""Members that only a pickle reader could read, which runs code."""
LARGEST_TEXT = 16 << 20  # bytes of a .txt or .json


@dataclass(frozen=True)
class ShardFile:
    """A file in a tar file, read when it is asked for. As text: ``shard.tar#0001.jpg``."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}#{self.name}"

    def read(self) -> bytes:
        """Its bytes."""
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                found = file.read(self.size)
        except OSError as error:
            raise InputError(f"{self} can't be read: {error.strerror or error}") from error
        if len(found) < self.size:
            raise InputError(f"{self} has {self.size:,} bytes, {self.shard} ends after {len(found):,} of them")
        return found


class Shards(Sequence[dict[str, Any]]):
    """The samples of tar files by their numbers, those of the first file first.

    A sample: ``key``; ``image``, a `ShardFile`, for a member that ends like a picture's file; ``text`` for .txt;
    the columns of .json; other members under their endings, as `ShardFile`. Members of one sample follow
    each other.
    """

    def __init__(self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> None:
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.paths = [Path(path) for path in given]
        if not self.paths:
            raise InputError("no shards were given; give at least one .tar file")

    @cached_property
    def _found(self) -> tuple[list[list[list[ShardFile]]], list[int]]:
        """The members of each sample of each shard, and how many samples there are up to each."""
        found = [list(_samples(path)) for path in self.paths]
        return found, list(itertools.accumulate(map(len, found)))

    def __len__(self) -> int:
        return self._found[1][-1]

    @overload
    def __getitem__(self, number: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, number: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, number: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        number %= len(self)
        found, ends = self._found
        shard = bisect.bisect_right(ends, number)
        return _row(found[shard][number - (ends[shard - 1] if shard else 0)])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.beginning_at(0)

    def beginning_at(self, number: int) -> Iterator[dict[str, Any]]:
        """The samples from one on, shard by shard; only the headers of those before it are read."""
        for path in self.paths:
            for members in _samples(path):
                if number:
                    number -= 1
                else:
                    yield _row(members)


def _samples(path: Path) -> Iterator[list[ShardFile]]:
    """The members of each sample of one shard."""
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; give a .tar file")
    waiting: list[ShardFile] = []
    done: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if info.isdir() or Path(info.name).name.startswith((".", "__")):
                    continue
                member = ShardFile(str(path), info.name, info.offset_data, info.size)
                if not info.isreg() or info.sparse:
                    raise InputError(f"{member} is no regular file; a shard holds nothing else")
                if waiting and _key(member) != _key(waiting[0]):
                    yield waiting
                    done.add(_key(waiting[0]))
                    waiting = []
                if _key(member) in done:
                    raise InputError(f"{member} stands apart from the rest of its sample; write them side by side")
                waiting.append(member)
    except (tarfile.TarError, OSError) as error:
        hint = "; unpack it by gunzip first" if path.suffix in (".gz", ".tgz") else ""
        raise InputError(f"{path} can't be read as a tar file: {error}{hint}") from error
    if waiting:
        yield waiting


def _key(member: ShardFile) -> str:
    """What the files of a sample have in common: the path up to the first dot of the name."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _ending(member: ShardFile) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _row(members: Sequence[ShardFile]) -> dict[str, Any]:
    """A sample as a row."""
    row: dict[str, Any] = {"key": _key(members[0])}
    for member in members:
        ending = _ending(member)
        last = ending.rpartition(".")[2]
        if last in CODE:
            raise InputError(f"{member} is a pickle, which runs code when it is read; write .txt, .json or pictures")
        name, value = ending, member
        if f".{last}" in SUFFIXES:
            name = "image" if ending == last else ending.removesuffix(f".{last}")  # 0001.left.jpg is "left"
        elif ending == "txt":
            name, value = "text", _text(member)  # type: ignore[assignment]
        elif ending == "json":
            _add_columns(row, member)
            continue
        if name in row:
            raise InputError(f"{member}: its sample has {name!r} twice")
        row[name] = value
    return row


def _text(member: ShardFile) -> str:
    if member.size > LARGEST_TEXT:
        raise InputError(f"{member} has {member.size:,} bytes; at most {LARGEST_TEXT:,} of a text are read")
    try:
        return member.read().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{member} can't be read as UTF-8 text: {error}") from error


def _add_columns(row: dict[str, Any], member: ShardFile) -> None:
    """The columns of a sample's .json; those that its other files make are kept."""
    columns = parse_json(_text(member), str(member))
    if not isinstance(columns, dict):
        raise InputError(f"{member} must hold an object with columns, got {type(columns).__name__}")
    for name, value in columns.items():
        row.setdefault(name, value)
