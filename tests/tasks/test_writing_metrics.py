"""Scores of written texts, beside what sacrebleu gives and beside the formula over plain lists."""

from __future__ import annotations

import math

import pytest

from zoo.errors import InputError
from zoo.tasks.metrics.writing import Cider, chrf


@pytest.mark.parametrize(
    ("text", "reference", "recall", "even"),  # sacrebleu 2.6.0: CHRF() and CHRF(beta=1)
    [
        ("a red dog", "a red dog", 100.0, 100.0),
        ("a red dog", "a dog", 45.43263436972764, 36.58418243571081),
        ("the cat", "a slice of pizza", 4.310344827586206, 5.263157894736842),
        ("pizza slice", "a slice of pizza", 54.90799356403107, 60.1384153440522),
        ("ab", "a", 83.33333333333334, 66.66666666666666),
        ("an apple tree in bloom", "an apple", 66.2065101448998, 43.93550135507683),
        ("", "a dog", 0.0, 0.0),
        ("xyz", "a dog", 0.0, 0.0),
    ],
)
def test_chrf_is_sacrebleus(text, reference, recall, even):
    assert 100 * chrf(text, [reference]) == pytest.approx(recall)
    assert 100 * chrf(text, [reference], beta=1) == pytest.approx(even)


def test_of_several_references_the_best_counts():
    assert 100 * chrf("a red dog", ["a cat", "the red dogs"]) == pytest.approx(47.48058651135876)
    with pytest.raises(InputError, match="must be a list of texts"):
        chrf("a", "a")
    with pytest.raises(InputError, match="at least one"):
        chrf("a", [])


CORPUS = [["a red dog runs", "the dog runs"], ["a blue cat sleeps on a mat"], ["a red cat"], ["two dogs", "a red dog"]]


def slow_cider(text, references):
    """The formula over dense vectors of all n-grams that occur anywhere."""

    def grams(sentence, n):
        words = sentence.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = 0.0
    for n in (1, 2, 3, 4):
        known = sorted({g for s in [text, *references] for g in grams(s, n)})
        rare = []
        for gram in known:
            having = sum(any(gram in grams(s, n) for s in some) for some in CORPUS)
            rare.append(math.log(len(CORPUS) / max(1, having)))
        ours = [grams(text, n).count(g) * r for g, r in zip(known, rare, strict=True)]
        for reference in references:
            theirs = [grams(reference, n).count(g) * r for g, r in zip(known, rare, strict=True)]
            product = sum(min(a, b) * b for a, b in zip(ours, theirs, strict=True))
            norm = math.dist(ours, [0] * len(ours)) * math.dist(theirs, [0] * len(theirs))
            apart = len(text.split()) - len(reference.split())
            total += 10 / 4 / len(references) * math.exp(-(apart**2) / 72) * (product / norm if norm else 0.0)
    return total


@pytest.mark.parametrize("text", ["a red dog runs", "dog dog dog", "a blue cat", "a mat", "unheard of", ""])
@pytest.mark.parametrize("number", range(4))
def test_cider_weighs_n_grams_by_how_rare_they_are(text, number):
    assert Cider(CORPUS)(text, CORPUS[number]) == pytest.approx(slow_cider(text, CORPUS[number]), abs=1e-12)


def test_cider_wants_references():
    with pytest.raises(InputError, match="corpus is empty"):
        Cider([])
    with pytest.raises(InputError, match="must be a list"):
        Cider(CORPUS)("a", "a")
