"""Scores of texts that a model wrote, beside right ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from zoo.errors import InputError

ORDERS = 6  # characters of the longest n-gram of chrF
WORDS = 4  # words of the longest n-gram of CIDEr-D


def chrf(text: str, references: Sequence[str], beta: float = 2.0) -> float:
    """chrF (Popović, 2015) of one text, 0 to 1, the best over its references.

    Character n-grams of 1 to 6, without spaces: precision and recall, each the mean over the orders that text and
    reference are both long enough for, and ``F = (1 + beta²) P R / (beta² P + R)``. sacrebleu's defaults, which
    gives 100 times as much.
    """
    if isinstance(references, str) or not references:
        raise InputError(f"references must be a list of texts, at least one, got {references!r}")
    return max(_chrf(text, reference, beta) for reference in references)


def _chrf(text: str, reference: str, beta: float) -> float:
    precision, recall, orders = 0.0, 0.0, 0
    found, wanted = ("".join(side.split()) for side in (text, reference))
    for order in range(1, ORDERS + 1):
        ours, theirs = _grams(found, order), _grams(wanted, order)
        if ours and theirs:
            shared = (ours & theirs).total()
            precision, recall, orders = precision + shared / ours.total(), recall + shared / theirs.total(), orders + 1
    if precision + recall == 0:
        return 0.0
    precision, recall = precision / orders, recall / orders
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)


def _grams(of: Sequence[Any], order: int) -> Counter[Any]:
    return Counter(of[start : start + order] for start in range(len(of) - order + 1))


class Cider:
    """CIDEr-D (Vedantam et al., 2015) of captions, by the rarity of n-grams in ``corpus``: the references of each
    picture, words with blanks between them.

    ``Cider(corpus)(text, references)``: 10 times the mean over n = 1 to 4 of the mean over references of the cosine
    between TF-IDF vectors, in which a caption's count is clipped to the reference's, times ``exp(-(l - l')² / 2
    sigma²)`` for their lengths. As in the COCO evaluation, except for its tokenizer.
    """

    def __init__(self, corpus: Sequence[Sequence[str]], sigma: float = 6.0) -> None:
        if not corpus:
            raise InputError("the corpus is empty; give the references of each picture")
        self.sigma, self.pictures = sigma, len(corpus)
        self.seen: Counter[tuple[str, ...]] = Counter()
        for references in corpus:
            self.seen.update({gram for text in references for gram in _word_grams(text)})

    def __call__(self, text: str, references: Sequence[str]) -> float:
        if isinstance(references, str) or not references:
            raise InputError(f"references must be a list of texts, at least one, got {references!r}")
        ours, total = self._vectors(text), 0.0
        for reference in references:
            theirs = self._vectors(reference)
            apart = len(text.split()) - len(reference.split())
            near = math.exp(-(apart**2) / (2 * self.sigma**2))
            for mine, right in zip(ours, theirs, strict=True):
                norms = math.sqrt(sum(x * x for x in mine.values()) * sum(x * x for x in right.values()))
                product = sum(min(value, right.get(gram, 0.0)) * right.get(gram, 0.0) for gram, value in mine.items())
                total += near * product / norms if norms else 0.0
        return 10 * total / len(references) / WORDS

    def _vectors(self, text: str) -> list[dict[tuple[str, ...], float]]:
        """By order of the n-grams, how often each occurs times how rare it is."""
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(WORDS)]
        for gram, count in _word_grams(text).items():
            vectors[len(gram) - 1][gram] = count * math.log(self.pictures / max(1, self.seen[gram]))
        return vectors


def _word_grams(text: str) -> Counter[tuple[str, ...]]:
    words = tuple(text.split())
    return sum((_grams(words, order) for order in range(1, WORDS + 1)), Counter())


Reward = Callable[[str, Sequence[str]], float]
"""A text and its references to a number that is better the higher it is."""
