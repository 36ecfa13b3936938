"""A store of triples: subject -> its (predicate, object) pairs in file order, in arrays that are
mapped into memory, not read.

    graph = KnowledgeGraph.read("HowNet.spo", cache="hownet.graph")      builds the arrays once
    graph.facts("Berlin")                                                [("capital of", "Germany"), ...]

In the arrays: every distinct string once (bytes and offsets), triples sorted by subject, and the
strings' 64-bit hashes in order, so that a look-up is one binary search. Equal triples count once;
the order of what is kept is that of the file, whatever Python's hash seed (the reference of K-BERT
keeps sets, whose order is none).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.knowledge.readers import Triple
from zoo.errors import CheckpointError, InputError

Array = np.ndarray[Any, Any]

FORMAT = 1
_ARRAYS = ("text", "offsets", "hashes", "order", "starts", "predicates", "objects")


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


class KnowledgeGraph:
    """Build one with `from_triples`, `read` or `open`; frozen from then on."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays
        self._text, self._offsets = arrays["text"], arrays["offsets"]
        self._hashes, self._order = arrays["hashes"], arrays["order"]
        self._starts, self._predicates, self._objects = arrays["starts"], arrays["predicates"], arrays["objects"]

    # --- making one

    @classmethod
    def from_triples(cls, triples: Iterable[Triple]) -> KnowledgeGraph:
        """A graph in memory. Raises InputError for what is no triple of three non-empty strings."""
        numbers: dict[str, int] = {}
        columns = (array("i"), array("i"), array("i"))
        for position, triple in enumerate(triples):
            if len(triple) != 3 or not all(isinstance(part, str) and part for part in triple):
                raise InputError(
                    f"triple {position} must be three non-empty strings (subject, predicate, object), got {triple!r}"
                )
            for column, part in zip(columns, triple, strict=True):
                column.append(numbers.setdefault(part, len(numbers)))
        subjects, predicates, objects = (
            np.frombuffer(column, np.int32) if len(column) else np.zeros(0, np.int32) for column in columns
        )
        return cls(_arranged(list(numbers), subjects, predicates, objects))

    @classmethod
    def read(cls, path: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None) -> KnowledgeGraph:
        """Triples from a file or folder that `zoo.data.knowledge.readers.read_triples` knows: .spo, .tsv,
        .nt, or WordNet's folder.

        ``cache``: a folder for the arrays; where it holds those of this very file (by size and
        time), they are opened instead.
        """
        from zoo.data.knowledge.readers import read_triples

        source = Path(path)
        if cache is None:
            return cls.from_triples(read_triples(source))
        stamp = _stamp(source)
        folder = Path(cache)
        if (folder / "graph.json").is_file() and _described(folder).get("source") == stamp:
            return cls.open(folder)
        cls.from_triples(read_triples(source)).save(folder, stamp)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> KnowledgeGraph:
        """The arrays that `save` wrote, mapped into memory. Raises CheckpointError where they are
        no such arrays or cut short.
        """
        folder = Path(folder)
        described = _described(folder)
        if described.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder} has format {described.get('format')!r} of a knowledge graph; this version reads {FORMAT}"
            )
        arrays = {}
        for name in _ARRAYS:
            try:
                arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{folder / name}.npy can't be read: {error}") from error
        sizes = {name: len(values) for name, values in arrays.items()}
        strings, triples = described.get("strings"), described.get("triples")
        if sizes["order"] != strings or sizes["predicates"] != triples or sizes["objects"] != triples:
            raise CheckpointError(f"{folder} promises {strings} strings and {triples} triples, its arrays hold {sizes}")
        return cls(arrays)

    def save(self, folder: str | os.PathLike[str], source: object = None) -> Path:
        """Write the arrays into a folder, all or nothing. -> the folder."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, values in self._arrays.items():
                np.save(stage / f"{name}.npy", values, allow_pickle=False)
            described = {"format": FORMAT, "strings": len(self._order), "triples": len(self), "source": source}
            (stage / "graph.json").write_text(json.dumps(described), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            stage.rename(folder)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
        return folder

    # --- asking it

    def __len__(self) -> int:
        """How many distinct triples."""
        return len(self._predicates)

    def __contains__(self, subject: object) -> bool:
        """Whether anything is said of ``subject``."""
        return isinstance(subject, str) and self._range(subject) != (0, 0)

    def __repr__(self) -> str:
        return f"KnowledgeGraph({len(self):,} triples, {len(self._order):,} strings)"

    def facts(self, subject: str) -> list[tuple[str, str]]:
        """The (predicate, object) pairs of a subject in file order; none for a string that is no
        subject.
        """
        return list(self._facts(subject))

    def _facts(self, subject: str) -> Iterator[tuple[str, str]]:
        start, stop = self._range(subject)
        for at in range(start, stop):
            yield self._string(int(self._predicates[at])), self._string(int(self._objects[at]))

    def values(self, subject: str, *, predicate: bool = True, limit: int | None = None, joiner: str = "") -> list[str]:
        """What a sentence tree grafts behind a subject: predicate and object as one string,
        ``joiner`` between them, or the object alone; each once, in order.
        """
        values: dict[str, None] = {}
        if limit == 0:
            return []
        for relation, value in self._facts(subject):  # one by one: a hub of the graph has thousands, and two are wanted
            values.setdefault(relation + joiner + value if predicate else value)
            if len(values) == limit:
                break
        return list(values)

    def subjects(self) -> Iterator[str]:
        """Every subject, in the order in which the file first names them as anything."""
        for number in np.flatnonzero(np.diff(self._starts)).tolist():
            yield self._string(number)

    def triples(self) -> Iterator[Triple]:
        """Every triple, subject by subject."""
        for subject in self.subjects():
            for predicate, value in self.facts(subject):
                yield subject, predicate, value

    def _string(self, number: int) -> str:
        return self._text[self._offsets[number] : self._offsets[number + 1]].tobytes().decode()

    def _range(self, subject: str) -> tuple[int, int]:
        number = self._number(subject)
        if number is None:
            return 0, 0
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        return (start, stop) if stop > start else (0, 0)

    def _number(self, word: str) -> int | None:
        wanted = np.uint64(_hash(word))
        at = int(np.searchsorted(self._hashes, wanted))
        while at < len(self._hashes) and self._hashes[at] == wanted:
            number = int(self._order[at])
            if self._string(number) == word:
                return number
            at += 1
        return None


def _arranged(strings: list[str], subjects: Array, predicates: Array, objects: Array) -> dict[str, Array]:
    encoded = [word.encode() for word in strings]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(word) for word in encoded], out=offsets[1:])
    hashes = np.fromiter((_hash(word) for word in strings), np.uint64, len(strings))
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    # equal triples side by side, the first of them first; then subject by subject in file order
    by_triple = np.lexsort((np.arange(len(subjects)), objects, predicates, subjects))
    s, p, o = subjects[by_triple], predicates[by_triple], objects[by_triple]
    first = np.ones(len(s), bool)
    first[1:] = (s[1:] != s[:-1]) | (p[1:] != p[:-1]) | (o[1:] != o[:-1])
    kept = np.sort(by_triple[first])
    kept = kept[np.argsort(subjects[kept], kind="stable")]
    starts = np.searchsorted(subjects[kept], np.arange(len(strings) + 1))
    return {
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": offsets,
        "hashes": hashes[order],
        "order": order,
        "starts": starts.astype(np.int64),
        "predicates": predicates[kept],
        "objects": objects[kept],
    }


def _stamp(source: Path) -> list[Any]:
    files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else [source]
    try:
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    except OSError as error:
        raise InputError(f"{source} can't be read: {error.strerror}") from error


def _described(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / "graph.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is no folder of a knowledge graph: graph.json can't be read ({error})"
        ) from error
    if not isinstance(described, dict):
        raise CheckpointError(f"{folder / 'graph.json'} must hold an object, got {type(described).__name__}")
    return described
