"""Which entities a string may mean, and which row of a table an entity is."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.lines import numbered_lines
from zoo.errors import ConfigError, InputError, unknown

CASINGS = ("exact", "lower", "title")


@dataclass(frozen=True)
class Candidate:
    """An entity that a mention may mean, and how probable that is before anything is read. ``key``:
    the file's own id for it.
    """

    entity: str
    prior: float
    key: str = ""


@dataclass(frozen=True)
class _Entry:
    frequency: int
    candidates: tuple[Candidate, ...]


class EntityLexicon:
    """Mention -> candidates. ``casing`` says how a string is looked up:

    exact: as it stands. lower: both sides in lower case. title: as KnowBert does it, the string
    itself or its Title Case, whichever is the more frequent mention, and only where neither is
    known a table of lower-cased mentions.
    """

    def __init__(
        self, entries: Mapping[str, tuple[int, Sequence[Candidate]]], *, casing: str = "exact", max_candidates: int = 30
    ):
        if casing not in CASINGS:
            raise unknown("casing", casing, CASINGS)
        if max_candidates < 1:
            raise ConfigError(f"max_candidates={max_candidates} must be at least 1")
        self.casing, self.max_candidates = casing, max_candidates
        self._entries: dict[str, _Entry] = {}
        for mention, (frequency, candidates) in entries.items():
            key = mention.lower() if casing == "lower" else mention
            if not candidates or any(not candidate.prior >= 0 for candidate in candidates):
                raise InputError(
                    f"the mention {mention!r} needs at least one candidate, and priors that are not negative"
                )
            if key in self._entries:
                raise InputError(
                    f"the mention {mention!r} stands twice in the lexicon (in lower case); casing = 'title' merges them"
                )
            self._entries[key] = _Entry(frequency, tuple(candidates[:max_candidates]))
        self.lowered = _lowered(self._entries, max_candidates) if casing == "title" else {}

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str] | Iterable[str],
        *,
        casing: str = "title",
        max_candidates: int = 30,
        allowed: Collection[str] | None = None,
    ) -> EntityLexicon:
        """KnowBert's file of priors: ``mention TAB frequency TAB id,prior,name TAB ...``, likeliest
        first; or its lines.

        ``allowed``: the entities to keep (those that have a vector); the first ``max_candidates``
        of them count. Of a mention that stands twice the more frequent counts.
        """
        entries: dict[str, tuple[int, list[Candidate]]] = {}
        lines = numbered_lines(path) if isinstance(path, (str, os.PathLike)) else enumerate(path, 1)
        for number, line in lines:
            if not line.strip():
                continue
            mention, *rest = line.rstrip().split("\t")
            try:
                frequency = int(rest[0])
                found: list[Candidate] = []
                for written in rest[1:]:
                    key, prior, name = (part.strip() for part in written.split(",", 2))
                    if len(found) < max_candidates and (allowed is None or name in allowed):
                        found.append(Candidate(name, float(prior), key))
            except (IndexError, ValueError) as error:
                raise InputError(
                    f"line {number} of the priors is not mention, frequency, then id,prior,name: {line[:80]!r}"
                ) from error
            if found and (mention not in entries or frequency > entries[mention][0]):
                entries[mention] = (frequency, found)
        return cls(entries, casing=casing, max_candidates=max_candidates)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, mention: object) -> bool:
        return isinstance(mention, str) and bool(self.candidates(mention))

    def candidates(self, mention: str) -> tuple[Candidate, ...]:
        """What ``mention`` may mean, likeliest first; nothing where it is unknown."""
        if self.casing != "title":
            entry = self._entries.get(mention.lower() if self.casing == "lower" else mention)
            return () if entry is None else entry.candidates
        plain, title = self._entries.get(mention), self._entries.get(mention.title())
        if plain is None and title is None:
            return self.lowered.get(mention.lower(), ())
        if title is None or (plain is not None and plain.frequency > title.frequency):
            assert plain is not None
            return plain.candidates
        return title.candidates


def _lowered(entries: Mapping[str, _Entry], limit: int) -> dict[str, tuple[Candidate, ...]]:
    """The candidates of each mention joined with those of its lower-cased form; of several casings
    the last one in the file counts.

    Where both list an entity, the prior that the mention itself gives stays; a better one that the
    lower-cased form gives is kept beside it, of several such the last: released models were trained
    on the tables that came out so.
    """
    table = {}
    for mention, entry in entries.items():
        low = mention.lower()
        joined: dict[str, Candidate] = {}
        better: Candidate | None = None
        place = 0  # where the better one stands among equals: where the first of them was met
        for candidate in (*entry.candidates, *(entries[low].candidates if low in entries else ())):
            if candidate.key not in joined:
                joined[candidate.key] = candidate
            elif candidate.prior > joined[candidate.key].prior:
                place = len(joined) if better is None else place
                better = candidate
        found = list(joined.values())
        if better is not None:
            found.insert(place, better)
        table[low] = tuple(sorted(found, key=lambda candidate: -candidate.prior)[:limit])
    return table


def candidate_mentions(
    tokens: Sequence[str],
    lexicon: EntityLexicon,
    *,
    max_width: int = 5,
    stop_words: Collection[str] = (),
    stop_symbols: Collection[str] = (),
) -> list[tuple[tuple[int, int], tuple[Candidate, ...]]]:
    """Every span (first, last token, both included) of up to ``max_width`` tokens that the lexicon
    knows, with priors that sum to one.

    A span does not begin or end with a stop word and holds no stop symbol.
    """
    found = []
    for first in range(len(tokens)):
        if tokens[first] in stop_words:
            continue
        for last in range(first, min(first + max_width, len(tokens))):
            if tokens[last] in stop_symbols:
                break
            if tokens[last] in stop_words:
                continue
            candidates = lexicon.candidates(" ".join(tokens[first : last + 1]))
            total = sum(candidate.prior for candidate in candidates)
            if candidates:
                shares = tuple(Candidate(c.entity, c.prior / total if total else 0.0, c.key) for c in candidates)
                found.append(((first, last), shares))
    return found


class EntityTable:
    """Names of entities by row; the rows before ``names`` are ``special`` (no entity, padding,
    ...), vectors are optional.

    ERNIE (Tsinghua) has one special row, the zero vector of "no entity"; KnowBert four: padding,
    unknown, mask, null.
    """

    def __init__(
        self, names: Iterable[str], *, special: Sequence[str] = ("[none]",), vectors: np.ndarray[Any, Any] | None = None
    ):
        self.special = tuple(special)
        self.names = (*self.special, *names)
        self._rows = {name: row for row, name in enumerate(self.names)}
        if len(self._rows) != len(self.names):
            seen: set[str] = set()
            twice = next(name for name in self.names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError(f"the entity {twice!r} stands twice; each is one row")
        if vectors is not None:
            expected = len(self.names) - len(self.special)
            if vectors.ndim != 2 or len(vectors) != expected:
                raise InputError(f"{expected} entities need vectors of shape ({expected}, width), got {vectors.shape}")
            vectors = np.concatenate([np.zeros((len(self.special), vectors.shape[1]), vectors.dtype), vectors])
        self.vectors = vectors

    @classmethod
    def read(cls, names: str | os.PathLike[str], vectors: str | os.PathLike[str] | None = None) -> EntityTable:
        """OpenKE's ``entity2id.txt`` and, where given, its vectors; ids must run from 0 without
        gaps.
        """
        from zoo.data.knowledge.readers import read_openke_names, read_vectors

        numbered = sorted(read_openke_names(Path(names)).items(), key=lambda item: item[1])
        if [number for _, number in numbered] != list(range(len(numbered))):
            raise InputError(f"{os.fspath(names)} must number its entities from 0 without gaps")
        return cls((name for name, _ in numbered), vectors=None if vectors is None else read_vectors(Path(vectors)))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def row(self, name: str | None) -> int:
        """The row of an entity; None is the first special row. An unknown name is an
        UnknownNameError with the closest.
        """
        if name is None:
            return 0
        if name not in self._rows:
            raise unknown("entity", name, self.names)
        return self._rows[name]
