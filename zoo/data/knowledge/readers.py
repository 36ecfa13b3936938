"""Files of triples, one by one and never all in memory: K-BERT's .spo and other tab-separated ones,
N-Triples, WordNet's, OpenKE's; and the names of what they are about."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.lines import written_lines
from zoo.errors import InputError, unknown

Triple = tuple[str, str, str]

_WORDNET_PARTS = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}

WORDNET_RELATIONS = {
    "!": "antonym", "@": "hypernym", "@i": "instance hypernym", "~": "hyponym", "~i": "instance hyponym",
    "#m": "member holonym", "#s": "substance holonym", "#p": "part holonym",
    "%m": "member meronym", "%s": "substance meronym", "%p": "part meronym", "=": "attribute", "+": "derivation",
    ";c": "domain topic", "-c": "domain topic of", ";r": "domain region", "-r": "domain region of",
    ";u": "domain usage", "-u": "domain usage of", "*": "entails", ">": "causes", "^": "also see",
    "$": "verb group", "&": "similar to", "<": "participle of", "\\": "pertains to",
}  # fmt: skip


def read_triples(path: Path | str) -> Iterator[Triple]:
    """By what the path is: a folder is WordNet's, .nt (or .nt.gz) is N-Triples, everything else
    tab-separated (.spo, .tsv, .txt, .gz).
    """
    path = Path(path)
    if path.is_dir():
        return read_wordnet(path)
    name = path.name.removesuffix(".gz")
    return read_ntriples(path) if name.endswith((".nt", ".ntriples")) else read_tsv(path)


def read_tsv(path: Path | str) -> Iterator[Triple]:
    """``subject TAB predicate TAB object`` on each line; empty lines are passed over, any other
    line is an InputError with its number.
    """
    for number, line in written_lines(path):
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) != 3 or not all(parts):
            raise InputError(f"{path}, line {number}: a triple is subject TAB predicate TAB object, got {line[:80]!r}")
        yield parts[0], parts[1], parts[2]


_NT_IRI = r"<[^<>\"{}|^`\x00-\x20]*>"
_NT_LITERAL = r"\"(?:[^\"\\]|\\.)*+\"(?:@[A-Za-z0-9-]++|\^\^<[^<>\s]*+>)?"
_NT_TERM = re.compile(rf"\s*+(?>({_NT_IRI}|_:[^\s<>]++|{_NT_LITERAL}))")  # each gives nothing back: linear in the line
_NT_END = re.compile(r"\s*+\.\s*+(?:#.*)?$")
_NT_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))")
_NT_LETTERS = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", '"': '"', "'": "'", "\\": "\\"}


def read_ntriples(path: Path | str) -> Iterator[Triple]:
    """W3C N-Triples. An IRI stands without its angle brackets, a literal as its text alone
    (language and type left away), a blank node as ``_:name``; comments and empty lines are passed
    over.
    """
    for number, line in written_lines(path):
        if line.lstrip().startswith("#"):
            continue
        terms = _nt_terms(line)
        if terms is None or terms[0].startswith('"') or not terms[1].startswith("<"):
            raise InputError(f"{path}, line {number}: not a triple of N-Triples: {line[:80]!r}")
        subject, predicate, value = (_nt_text(term, f"{path}, line {number}") for term in terms)
        if value:
            yield subject, predicate, value


def _nt_terms(line: str) -> list[str] | None:
    """The three terms of a line, None where it has others. A dot behind a blank node ends the line."""
    terms, position = list[str](), 0
    for _ in range(3):
        match = _NT_TERM.match(line, position)
        if match is None:
            return None
        term = match[1].rstrip(".") if match[1].startswith("_:") else match[1]
        terms.append(term)
        position = match.start(1) + len(term)
    return terms if _NT_END.match(line, position) else None


def _nt_text(term: str, where: str) -> str:
    text = term if term.startswith("_:") else term[1 : term.rindex('"')] if term.startswith('"') else term[1:-1]

    def letter(match: re.Match[str]) -> str:
        code = match[1] or match[2]
        if code:
            if int(code, 16) > 0x10FFFF:
                raise InputError(f"{where}: {match[0]} is no character")
            return chr(int(code, 16))
        if match[3] not in _NT_LETTERS:
            raise InputError(f"{where}: {match[0]!r} is no escape of N-Triples")
        return _NT_LETTERS[match[3]]

    return _NT_ESCAPE.sub(letter, text) if "\\" in text else text


def read_wordnet(folder: Path | str, *, glosses: bool = False) -> Iterator[Triple]:
    """WordNet's ``data.noun``, ``data.verb``, ``data.adj``, ``data.adv`` (and ``index.*`` for the
    numbers of senses).

    A synset is named ``dog.n.01``: its first word, its part of speech, the number of that word's
    sense. Triples: each pointer between synsets, ``lemma -sense-> synset`` for each of its words,
    and its gloss where ``glosses``.
    """
    parts = wordnet_parts(Path(folder))
    names = wordnet_synsets(parts)
    for letter, path in parts.items():
        for offset, words, pointers, gloss in _synsets(path):
            name = names[letter, offset]
            for word in words:
                yield word.replace("_", " "), "sense", name
            for symbol, target, part in pointers:
                other = names.get(("a" if part == "s" else part, target))
                if other is None:
                    raise InputError(
                        f"{path}: {name} points to {target} of part {part!r}, which the folder does not hold"
                    )
                yield name, WORDNET_RELATIONS.get(symbol, symbol), other
            if glosses and gloss:
                yield name, "gloss", gloss


def wordnet_parts(folder: Path) -> dict[str, Path]:
    """Part of speech -> its data file, for those that the folder holds."""
    parts = {
        letter: folder / f"data.{name}"
        for name, letter in _WORDNET_PARTS.items()
        if (folder / f"data.{name}").is_file()
    }
    if not parts:
        raise InputError(f"{folder} holds none of WordNet's data.noun, data.verb, data.adj, data.adv")
    return parts


def wordnet_synsets(parts: Mapping[str, Path]) -> dict[tuple[str, int], str]:
    """(part of speech, offset) -> the synset's name."""
    names: dict[tuple[str, int], str] = {}
    for letter, path in parts.items():
        senses = wordnet_senses(path.with_name(path.name.replace("data.", "index.")))
        seen: dict[str, int] = {}
        for offset, words, _, _ in _synsets(path):
            lemma = words[0].lower()
            seen[lemma] = seen.get(lemma, 0) + 1
            names[letter, offset] = f"{lemma}.{letter}.{senses.get((lemma, offset), seen[lemma]):02d}"
    return names


def _synsets(path: Path) -> Iterator[tuple[int, list[str], list[tuple[str, int, str]], str]]:
    """(offset, words, (symbol, target, part) once per pair of synsets, gloss) of each line of a
    data file.
    """
    for number, line in written_lines(path):
        if line.startswith("  "):  # the licence
            continue
        data, _, gloss = line.partition("|")
        fields = data.split()
        try:
            count = int(fields[3], 16)
            words = [re.sub(r"\((?:a|p|ip)\)$", "", word) for word in fields[4 : 4 + 2 * count : 2]]
            if not words:
                raise ValueError("no words")
            at = 4 + 2 * count
            pointers = [
                (fields[i], int(fields[i + 1]), fields[i + 2]) for i in range(at + 1, at + 1 + 4 * int(fields[at]), 4)
            ]
            yield int(fields[0]), words, pointers, gloss.strip()
        except (IndexError, ValueError) as error:
            raise InputError(f"{path}, line {number}: not a line of WordNet's data files: {line[:80]!r}") from error


def wordnet_senses(index: Path) -> dict[tuple[str, int], int]:
    """(lemma, offset) -> the number of the sense, from 1; empty where the index file is not
    there.
    """
    senses: dict[tuple[str, int], int] = {}
    if not index.is_file():
        return senses
    for number, line in written_lines(index):
        if line.startswith("  "):
            continue
        fields = line.split()
        try:
            offsets = fields[-int(fields[2]) :]
            senses.update({(fields[0], int(offset)): sense for sense, offset in enumerate(offsets, 1)})
        except (IndexError, ValueError) as error:
            raise InputError(f"{index}, line {number}: not a line of WordNet's index files: {line[:80]!r}") from error
    return senses


# --- names of entities


def read_entity_map(path: Path | str) -> dict[str, str]:
    """``entity_map.txt`` of ERNIE (Tsinghua): ``title TAB id`` on each line -> title: id. A title
    twice is an InputError.
    """
    return {name: rest[0] for name, rest in _by_subject(path, "title TAB id", 1)}


def read_aliases(path: Path | str) -> dict[str, list[str]]:
    """Wikidata5M's aliases: ``id TAB alias TAB alias ...`` -> id: its aliases, the usual name
    first. An id twice is an InputError.
    """
    return dict(_by_subject(path, "id TAB alias TAB alias ...", None))


def _by_subject(path: Path | str, form: str, width: int | None) -> Iterator[tuple[str, list[str]]]:
    """(first field, the others) of lines whose first field stands in no line before."""
    lines: dict[str, int] = {}
    for number, line in written_lines(path):
        subject, *rest = (part.strip() for part in line.split("\t"))
        rest = [part for part in rest if part]
        if not subject or not rest or (width is not None and len(rest) != width):
            raise InputError(f"{path}, line {number}: a line is {form}, got {line[:80]!r}")
        if subject in lines:
            raise InputError(
                f"{path}, line {number}: the subject {subject!r} stands in line {lines[subject]} already; each stands "
                "once"
            )
        lines[subject] = number
        yield subject, rest


def named(triples: Iterable[Triple], names: Mapping[str, Sequence[str]], *, skip: bool = False) -> Iterator[Triple]:
    """Triples of ids with the first of each id's ``names``, as texts spell them: what `read_tsv`
    and `read_aliases` give of Wikidata5M.

    An id without a name is an UnknownNameError; with ``skip`` its triples are left out.
    """
    for triple in triples:
        missing = [part for part in triple if not names.get(part)]
        if not missing:
            subject, predicate, value = (names[part][0] for part in triple)
            yield subject, predicate, value
        elif not skip:
            raise unknown("id", missing[0], names, hint="skip=True leaves such triples out")


# --- OpenKE


def read_openke_names(path: Path | str) -> dict[str, int]:
    """``entity2id.txt`` or ``relation2id.txt``: the count on the first line, then ``name TAB id``;
    a name or id twice is an InputError.
    """
    names: dict[str, int] = {}
    count = None
    taken: set[int] = set()
    for number, line in written_lines(path):
        line = line.rstrip()
        if count is None:
            count = _whole(line, path, number)
            continue
        name, _, identifier = line.rpartition("\t") if "\t" in line else line.rpartition(" ")
        value = _whole(identifier, path, number)
        if not name or name in names or value in taken:
            raise InputError(f"{path}, line {number}: {line!r} repeats a name or an id; each stands once")
        names[name] = value
        taken.add(value)
    if count != len(names):
        raise InputError(f"{path} promises {count} names and holds {len(names)}")
    return names


def read_openke_triples(path: Path | str) -> np.ndarray[Any, Any]:
    """``train2id.txt``: the count, then ``head tail relation`` (the relation comes last) -> int64
    (count, 3) as (head, relation, tail).
    """
    rows: list[tuple[int, int, int]] = []
    count = None
    for number, line in written_lines(path):
        if count is None:
            count = _whole(line, path, number)
            continue
        parts = line.split()
        if len(parts) != 3:
            raise InputError(f"{path}, line {number}: a line is head, tail and relation, got {line!r}")
        head, tail, relation = (_whole(part, path, number) for part in parts)
        rows.append((head, relation, tail))
    if count != len(rows):
        raise InputError(f"{path} promises {count} triples and holds {len(rows)}")
    return np.array(rows, np.int64).reshape(-1, 3)


def read_vectors(path: Path | str) -> np.ndarray[Any, Any]:
    """``entity2vec.vec``: one vector a line, id k on line k + 1 -> float32 (rows, width)."""
    rows: list[np.ndarray[Any, Any]] = []
    for number, line in written_lines(path):
        if number != len(rows) + 1:
            raise InputError(f"{path}, line {len(rows) + 1} is empty; each line is a vector, that of the id before it")
        try:
            rows.append(np.array(line.split(), np.float32))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not a line of numbers: {line[:60]!r}") from error
        if len(rows[-1]) != len(rows[0]):
            raise InputError(f"{path}, line {number} has {len(rows[-1])} numbers, the first line {len(rows[0])}")
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _whole(text: str, path: Path | str, number: int) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{path}, line {number}: a whole number should stand here, got {text!r}") from None
