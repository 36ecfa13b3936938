"""WordNet as a lexicon: which synsets a word may mean, how often each was meant, and the base forms
of inflected words.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from zoo.data.knowledge.lexicon import Candidate, EntityLexicon
from zoo.data.knowledge.readers import wordnet_parts, wordnet_senses, wordnet_synsets
from zoo.data.lines import written_lines
from zoo.errors import InputError

# how a sense key writes the part of speech; 5 is an adjective's satellite
_KINDS = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}

# WordNet's own endings of inflected words and what stands in their place
_ENDINGS = {
    "n": [
        *(("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh")),
        *(("men", "man"), ("ies", "y")),
    ],
    "v": [("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")],
    "a": [("er", ""), ("est", ""), ("er", "e"), ("est", "e")],
    "r": [],
}


class WordNetLexicon(EntityLexicon):
    """Words in lower case -> synsets (``dog.n.01``, as `read_wordnet` names them), likeliest first:
    all senses in all parts of speech.

    A prior is the share of the sense in the texts that were tagged with WordNet (``cntlist.rev``),
    each sense counted once more; without that file all are equal. A word means what it and its base
    forms do: WordNet's exceptions, or else its endings ("running" is an adjective, a noun, and the
    verb "run").
    """

    def __init__(
        self,
        entries: Mapping[str, tuple[int, list[Candidate]]],
        exceptions: Mapping[str, Iterable[tuple[str, str]]],
        max_candidates: int = 30,
    ) -> None:
        super().__init__(entries, casing="lower", max_candidates=max_candidates)
        self._exceptions = {word: tuple(bases) for word, bases in exceptions.items()}

    @classmethod
    def read_folder(cls, folder: str | os.PathLike[str], *, max_candidates: int = 30) -> WordNetLexicon:
        """WordNet's ``data.*`` and ``index.*``, and, where they are there, ``cntlist.rev`` and
        ``*.exc``.
        """
        parts = wordnet_parts(Path(folder))
        names, counts = wordnet_synsets(parts), _counts(Path(folder) / "cntlist.rev")
        found: dict[str, list[tuple[int, Candidate]]] = {}
        exceptions: dict[str, list[tuple[str, str]]] = {}
        for letter, path in parts.items():
            index = path.with_name(path.name.replace("data.", "index."))
            if not index.is_file():
                raise InputError(f"{index} is not there: it says which synsets a word may mean")
            for (lemma, offset), sense in wordnet_senses(index).items():
                if (letter, offset) not in names:
                    raise InputError(f"{index}: {lemma!r} means the synset {offset}, which {path.name} does not hold")
                count = counts.get((lemma, letter, sense), 0) + 1
                candidate = Candidate(names[letter, offset], float(count), f"{letter}{offset:08d}")
                found.setdefault(lemma.replace("_", " "), []).append((count, candidate))
            for word, bases in _exceptions(path.with_name(path.name.replace("data.", "") + ".exc")):
                exceptions.setdefault(word, []).extend((letter, base) for base in bases)
        entries = {}
        for word, senses in found.items():
            total = sum(count for count, _ in senses)
            likely = sorted(senses, key=lambda pair: -pair[0])  # equal ones stay in WordNet's order
            entries[word] = (total, [Candidate(c.entity, count / total, c.key) for count, c in likely])
        return cls(entries, exceptions, max_candidates)

    def candidates(self, mention: str) -> tuple[Candidate, ...]:
        """What ``mention`` and its base forms may mean, likeliest first; priors sum to one before a
        list is cut.
        """
        word = mention.lower()
        forms = [("", word), *self._bases(word)]
        counts: dict[str, tuple[float, str]] = {}  # key -> count, synset
        for letter, form in forms:
            if (entry := self._entries.get(form)) is None:
                continue
            for candidate in entry.candidates:
                if candidate.key.startswith(letter):
                    counts.setdefault(candidate.key, (candidate.prior * entry.frequency, candidate.entity))
        total = sum(count for count, _ in counts.values())
        found = [Candidate(entity, count / total, key) for key, (count, entity) in counts.items()]
        return tuple(sorted(found, key=lambda candidate: -candidate.prior)[: self.max_candidates])

    def _bases(self, word: str) -> Iterator[tuple[str, str]]:
        """(part of speech, base form) of an inflected word; where WordNet lists an exception, its
        endings are not looked at.
        """
        irregular = self._exceptions.get(word, ())
        yield from irregular
        for letter, endings in _ENDINGS.items():
            if any(letter == part for part, _ in irregular):
                continue
            for ending, instead in endings:
                if word.endswith(ending) and len(word) > len(ending):
                    yield letter, word.removesuffix(ending) + instead


def _counts(path: Path) -> dict[tuple[str, str, int], int]:
    """(lemma, part of speech, number of the sense) -> how often it was tagged; empty where the file
    is not there.
    """
    counts: dict[tuple[str, str, int], int] = {}
    if not path.is_file():
        return counts
    for number, line in written_lines(path):
        try:
            key, sense, count = line.split()
            lemma, _, rest = key.rpartition("%")
            counts[lemma, _KINDS[rest[0]], int(sense)] = int(count)
        except (ValueError, KeyError, IndexError) as error:
            raise InputError(
                f"{path}, line {number}: not a sense key, its number and its count: {line[:80]!r}"
            ) from error
    return counts


def _exceptions(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Inflected word, its base forms."""
    if path.is_file():
        for _, line in written_lines(path):
            word, *bases = [part.replace("_", " ") for part in line.split()]
            yield word, bases
