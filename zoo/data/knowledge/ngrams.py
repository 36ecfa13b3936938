"""N-grams that are worth knowing: a lexicon, where its entries occur in a text, and how such a
lexicon is found in a corpus.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.data.lines import numbered_lines
from zoo.errors import ConfigError, InputError


@dataclass(frozen=True)
class NGram:
    """Entry ``number`` of a lexicon (from 1; 0 is padding) at ``start`` .. ``start + length`` - 1
    of a text.
    """

    number: int
    start: int
    length: int


class NGramLexicon:
    """N-grams as tuples of tokens, numbered from 1; found by walking a tree, in time that grows
    with the text alone.
    """

    def __init__(self, ngrams: Iterable[Sequence[str]], *, shortest: int = 2, longest: int = 7) -> None:
        if not 1 <= shortest <= longest:
            raise ConfigError(f"1 <= shortest={shortest} <= longest={longest} must hold")
        self.shortest, self.longest = shortest, longest
        self.entries = [tuple(ngram) for ngram in ngrams]
        self._tree: dict[Any, Any] = {}
        for number, ngram in enumerate(self.entries, 1):
            if not ngram:
                raise InputError(f"n-gram {number} has no tokens")
            if len(ngram) > longest:
                continue  # numbered, and never looked for
            node = self._tree
            for token in ngram:
                node = node.setdefault(token, {})
            node[None] = number  # of two equal ones the later counts

    @classmethod
    def read(
        cls, path: str | os.PathLike[str] | Iterable[str], tokenize: Callable[[str], Sequence[str]], **limits: int
    ) -> NGramLexicon:
        """ZEN's ``ngram.txt`` or its lines, ``ngram,frequency``; ``tokenize`` cuts an n-gram into
        the model's tokens.
        """
        if isinstance(path, (str, os.PathLike)):
            path = [line for _, line in numbered_lines(path)]
        return cls([tokenize(line.rsplit(",", 1)[0]) for line in path if line.strip()], **limits)

    def __len__(self) -> int:
        return len(self.entries)

    def matches(self, tokens: Sequence[str]) -> list[NGram]:
        """Every occurrence, overlapping ones too: the shortest n-grams first, and from left to
        right.
        """
        found = [match for start in range(len(tokens)) for match in self._at(tokens, start)]
        return sorted(found, key=lambda match: (match.length, match.start))

    def _at(self, tokens: Sequence[str], start: int) -> Iterator[NGram]:
        node = self._tree
        for length, token in enumerate(tokens[start : start + self.longest], 1):
            node = node.get(token, {})
            if not node:
                return
            if None in node and length >= self.shortest:
                yield NGram(node[None], start, length)


def extract_ngrams(
    texts: Iterable[Sequence[str]], *, longest: int = 7, min_count: int = 15, min_pmi: float = 0.0
) -> list[tuple[tuple[str, ...], int]]:
    """N-grams of a corpus by pointwise mutual information, the most frequent first, with their
    counts.

    A text is cut between two neighbors x, y where ``log p(xy) / (p(x) p(y))`` is below ``min_pmi``;
    what lies between the cuts is counted in all n-grams of 2 to ``longest`` tokens, and those seen
    ``min_count`` times stay.
    """
    if longest < 2 or min_count < 1:
        raise ConfigError(f"longest={longest} must be at least 2 and min_count={min_count} at least 1")
    corpus = [list(text) for text in texts]
    single = Counter(token for text in corpus for token in text)
    double = Counter(pair for text in corpus for pair in itertools.pairwise(text))
    ones, twos = single.total(), double.total()
    bound = {
        (x, y)
        for (x, y), count in double.items()
        if math.log(count / twos) - math.log(single[x] / ones * single[y] / ones) >= min_pmi
    }
    counts: Counter[tuple[str, ...]] = Counter()
    for text in corpus:
        for start in range(len(text)):
            for end in range(start + 1, min(start + longest, len(text))):
                if (text[end - 1], text[end]) not in bound:
                    break
                counts[tuple(text[start : end + 1])] += 1
    kept = [(ngram, count) for ngram, count in counts.items() if count >= min_count]
    return sorted(kept, key=lambda item: (-item[1], item[0]))
