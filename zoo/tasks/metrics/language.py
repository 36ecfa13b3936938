"""Metrics of language understanding: GLUE, SQuAD 1.1 and 2.0, MLQA, entity spans, sentence
retrieval and mining.

Each follows the public evaluation script of its benchmark, so that numbers can be held against
published ones; where two scripts differ (two empty answers score F1 0 in SQuAD 1.1 and 1 in 2.0) so
do the functions. Scores lie in 0..1, but those of a whole set of questions are percentages, as the
scripts print them.
"""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zoo.data.spans import tag_spans
from zoo.errors import InputError, unknown

# --- GLUE
# ------------------------------------------------------------------------------------------------------------------


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """The fraction of equal entries of two integer tensors of one shape."""
    _same_length(predictions, labels)
    return float((predictions == labels).double().mean())


def binary_f1(predictions: Tensor, labels: Tensor) -> float:
    """F1 of class 1; 0 where neither side has one."""
    _same_length(predictions, labels)
    both = int(((predictions == 1) & (labels == 1)).sum())
    either = int((predictions == 1).sum()) + int((labels == 1).sum())
    return 2 * both / either if either else 0.0


def matthews_correlation(predictions: Tensor, labels: Tensor) -> float:
    """The correlation of two labellings with any number of classes (for two: the phi coefficient);
    0 where one of them is constant.
    """
    _same_length(predictions, labels)
    classes = torch.cat([predictions, labels]).unique()
    predicted = (predictions[:, None] == classes).double()  # (examples, classes)
    expected = (labels[:, None] == classes).double()
    covariance = len(labels) * (predicted * expected).sum() - predicted.sum(0) @ expected.sum(0)
    spread = [len(labels) ** 2 - side.sum(0).square().sum() for side in (predicted, expected)]
    return float(covariance / (spread[0] * spread[1]).sqrt()) if spread[0] * spread[1] > 0 else 0.0


def pearson_correlation(x: Tensor, y: Tensor) -> float:
    """Of two vectors; NaN where one of them is constant."""
    _same_length(x, y)
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    return float((x @ y) / (x.norm() * y.norm()))


def spearman_correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's of the ranks; equal values share the average of theirs."""
    return pearson_correlation(_ranks(x), _ranks(y))


def _ranks(values: Tensor) -> Tensor:
    _, where, counts = values.unique(return_inverse=True, return_counts=True)
    average: Tensor = counts.cumsum(0).double() - (counts - 1) / 2
    return average[where]


def class_scores(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """``macro_precision``, ``macro_recall`` and ``macro_f1``: the means over the classes that either
    side names; and ``micro_f1``, which counts all entries alike.

    Two integer tensors of one shape (N,), or bool ones (N, classes) where several classes may hold
    at once. A class without a prediction has precision 0, one that never occurs recall 0.
    """
    if predictions.dim() == 2 and predictions.shape == labels.shape and len(labels):
        predicted, expected = predictions.bool(), labels.bool()
    else:
        _same_length(predictions, labels)
        classes = torch.cat([predictions, labels]).unique()
        predicted, expected = predictions[:, None] == classes, labels[:, None] == classes
    both, ours, theirs = ((predicted & expected).sum(0), predicted.sum(0), expected.sum(0))
    named = (ours + theirs) > 0
    both, ours, theirs = both[named].double(), ours[named].double(), theirs[named].double()
    if not named.any():
        return dict.fromkeys(("macro_precision", "macro_recall", "macro_f1", "micro_f1"), 0.0)
    each = {
        "macro_precision": both / ours.clamp(min=1),
        "macro_recall": both / theirs.clamp(min=1),
        "macro_f1": 2 * both / (ours + theirs),
    }
    micro = 2 * both.sum() / (ours.sum() + theirs.sum())
    return {name: float(value.mean()) for name, value in each.items()} | {"micro_f1": float(micro)}


GLUE_TASKS = ("cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "mnli-mm", "qnli", "rte", "wnli", "hans", "ax")


def glue_metrics(task: str, predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """What GLUE reports for ``task``, from integer class ids (N,), for sts-b from floats.

    ``mcc`` for cola and ax; ``acc``, ``f1`` and their mean ``acc_and_f1`` for mrpc and qqp;
    ``pearson``, ``spearmanr`` and their mean ``corr`` for sts-b; ``mnli/acc`` and ``mnli-mm/acc``;
    ``acc`` for the rest.
    """
    if task in ("cola", "ax"):
        return {"mcc": matthews_correlation(predictions, labels)}
    if task in ("mrpc", "qqp"):
        acc, f1 = accuracy(predictions, labels), binary_f1(predictions, labels)
        return {"acc": acc, "f1": f1, "acc_and_f1": (acc + f1) / 2}
    if task == "sts-b":
        pearson, spearman = pearson_correlation(predictions, labels), spearman_correlation(predictions, labels)
        return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}
    if task in ("mnli", "mnli-mm"):
        return {f"{task}/acc": accuracy(predictions, labels)}
    if task in GLUE_TASKS:
        return {"acc": accuracy(predictions, labels)}
    raise unknown("GLUE task", task, GLUE_TASKS)


def _same_length(x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape or x.dim() != 1 or not len(x):
        raise InputError(
            f"predictions and labels must be two vectors of one length, got {tuple(x.shape)} and {tuple(y.shape)}"
        )


# --- answers: SQuAD and MLQA
# ---------------------------------------------------------------------------------------------------------

Normalize = Callable[[str], str]
ENGLISH_ARTICLES = re.compile(r"\b(a|an|the)\b")
ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's: lower case, no ASCII punctuation, no ``a``, ``an``, ``the``, single spaces."""
    return " ".join(ENGLISH_ARTICLES.sub(" ", text.lower().translate(ASCII_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str, normalize: Normalize = normalize_answer) -> float:
    return float(normalize(prediction) == normalize(answer))


def answer_f1(
    prediction: str, answer: str, normalize: Normalize = normalize_answer, empty_matches: bool = False
) -> float:
    """F1 of the two bags of words. Two empty answers score 0 (SQuAD 1.1, MLQA), or 1 with
    ``empty_matches`` (SQuAD 2.0).
    """
    predicted, expected = normalize(prediction).split(), normalize(answer).split()
    if empty_matches and not (predicted and expected):
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def best_over_answers(score: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    """The score of the gold answer that fits best."""
    if not answers:
        raise InputError('answers must not be empty; an unanswerable question has the one answer ""')
    return max(score(prediction, answer) for answer in answers)


def squad_v1(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """``exact_match`` and ``f1`` in percent over all questions of ``answers``; a question without
    prediction counts as 0.
    """
    if not answers:
        raise InputError("there are no questions to score")
    totals = {"exact_match": 0.0, "f1": 0.0}
    for question, golds in answers.items():
        if question in predictions:
            totals["exact_match"] += best_over_answers(exact_match, predictions[question], golds)
            totals["f1"] += best_over_answers(answer_f1, predictions[question], golds)
    return {name: 100 * total / len(answers) for name, total in totals.items()}


def squad_v2_scores(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """``exact`` and ``f1`` of one question in 0..1; gold answers that are empty when normalised do
    not count beside others.
    """
    golds = [answer for answer in answers if normalize_answer(answer)] or [""]
    return {
        "exact": best_over_answers(exact_match, prediction, golds),
        "f1": best_over_answers(lambda p, a: answer_f1(p, a, empty_matches=True), prediction, golds),
    }


def squad_v2(
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    no_answer_probabilities: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """SQuAD 2.0 in percent: ``exact`` and ``f1``, those of ``HasAns_`` and ``NoAns_`` questions,
    and the ``best_`` ones with thresholds.

    A question is unanswerable where ``answers`` holds nothing but "". Where its no-answer
    probability is above ``threshold`` a question counts as answered by "". The best threshold is
    searched among the probabilities, 0.0 meaning "answer none". Questions without prediction are
    left out, as the script does.
    """
    has_answer = {question: any(golds) for question, golds in answers.items()}
    raw = {
        question: squad_v2_scores(predictions[question], golds)
        for question, golds in answers.items()
        if question in predictions
    }
    if not raw:
        raise InputError("no question has a prediction")
    probabilities = dict.fromkeys(predictions, 0.0) if no_answer_probabilities is None else no_answer_probabilities
    missing = sorted(set(raw) - set(probabilities))
    if missing:
        raise InputError(f"no_answer_probabilities lacks {len(missing)} of the questions, {missing[0]!r} first")
    final = {
        question: dict.fromkeys(scores, float(not has_answer[question]))
        if probabilities[question] > threshold
        else scores
        for question, scores in raw.items()
    }
    groups = {
        "": list(final),
        "HasAns_": [q for q in final if has_answer[q]],
        "NoAns_": [q for q in final if not has_answer[q]],
    }
    result: dict[str, float] = {}
    for prefix, questions in groups.items():
        if questions:
            for kind in ("exact", "f1"):
                result[f"{prefix}{kind}"] = 100 * sum(final[q][kind] for q in questions) / len(questions)
            result[f"{prefix}total"] = float(len(questions))
    order = sorted(raw, key=lambda question: probabilities[question])
    for kind in ("exact", "f1"):
        score = best = float(sum(not answerable for answerable in has_answer.values()))
        best_threshold = 0.0
        for question in order:
            if has_answer[question]:
                score += raw[question][kind]
            elif predictions[question]:
                score -= 1
            if score > best:
                best, best_threshold = score, probabilities[question]
        result[f"best_{kind}"] = 100 * best / len(raw)
        result[f"best_{kind}_thresh"] = best_threshold
    return result


MLQA_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": "ال",  # the script's pattern can match nothing else: the letters go wherever they stand
    "hi": None,
    "zh": None,
}


@cache
def _unicode_punctuation() -> frozenset[str]:
    every = map(chr, range(sys.maxunicode))
    return frozenset(c for c in every if unicodedata.category(c).startswith("P")) | frozenset(string.punctuation)


def mlqa_normalizer(language: str) -> Normalize:
    """MLQA's, by language: lower case, no Unicode punctuation, no articles; Chinese is cut at each
    of its characters.

    For ``answer_f1(prediction, answer, mlqa_normalizer("de"))`` and ``exact_match``.
    """
    if language not in MLQA_ARTICLES:
        raise unknown("MLQA language", language, MLQA_ARTICLES)
    articles = MLQA_ARTICLES[language]

    def normalize(text: str) -> str:
        punctuation = _unicode_punctuation()
        text = "".join(c for c in text.lower() if c not in punctuation)
        if articles is not None:
            text = re.sub(articles, " ", text)
        if language == "zh":
            text = re.sub("([\u4e00-\u9fa5])", r" \1 ", text)
        return " ".join(text.split())

    return normalize


# --- entity spans
# --------------------------------------------------------------------------------------------------------------------


def span_scores(predictions: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> dict[str, float]:
    """``precision``, ``recall`` and ``f1`` over the entities of all sentences together; 0 where
    nothing is there to be right.
    """
    if [len(sentence) for sentence in predictions] != [len(sentence) for sentence in labels]:
        raise InputError("predictions and labels must have the same sentences of the same lengths")
    predicted = {(number, span) for number, sentence in enumerate(predictions) for span in tag_spans(sentence)}
    expected = {(number, span) for number, sentence in enumerate(labels) for span in tag_spans(sentence)}
    correct = len(predicted & expected)
    precision = correct / len(predicted) if predicted else 0.0
    recall = correct / len(expected) if expected else 0.0
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


# --- retrieval and mining
# ------------------------------------------------------------------------------------------------------------


def nearest(index: Tensor, queries: Tensor, normalize: bool = True) -> Tensor:
    """For each row of ``queries`` (n, d) the row of ``index`` (m, d) at the smallest Euclidean
    distance, (n,) int64.

    ``normalize`` makes it the largest cosine (Tatoeba: accuracy = how often row i finds row i).
    """
    if normalize:
        index, queries = torch.nn.functional.normalize(index, dim=-1), torch.nn.functional.normalize(queries, dim=-1)
    return torch.cdist(queries.double(), index.double()).argmin(1)


class Mined(NamedTuple):
    """A pair of sentences that are held to be translations."""

    score: float
    source: int
    target: int


def mine_translations(
    source: Tensor,
    target: Tensor,
    neighbors: int = 4,
    margin: Literal["ratio", "distance", "absolute"] = "ratio",
    threshold: float = 0.0,
) -> list[Mined]:
    """Pairs of rows of ``source`` (n, d) and ``target`` (m, d), best first, each row in one pair at
    most (Artetxe & Schwenk, 2019; BUCC).

    The score of a pair is its cosine against the mean of the two averages over nearest neighbours:
    divided by it (``ratio``), less it (``distance``), or as it is (``absolute``). Each row proposes
    the best of its ``neighbors`` nearest; proposals of both sides are taken by descending score,
    those above ``threshold`` are returned.
    """
    if margin not in ("ratio", "distance", "absolute"):
        raise unknown("margin", margin, ("ratio", "distance", "absolute"))
    cosine = (
        torch.nn.functional.normalize(source, dim=-1).double()
        @ torch.nn.functional.normalize(target, dim=-1).double().T
    )  # (n, m)
    forward = cosine.topk(min(neighbors, cosine.shape[1]), dim=1)
    backward = cosine.topk(min(neighbors, cosine.shape[0]), dim=0)
    average = (forward.values.mean(1, keepdim=True) + backward.values.mean(0, keepdim=True)) / 2  # (n, m)
    scores = {"ratio": cosine / average, "distance": cosine - average, "absolute": cosine}[margin]
    best_forward = scores.gather(1, forward.indices).max(1)
    best_backward = scores.gather(0, backward.indices).max(0)
    proposals = [
        Mined(float(score), row, int(forward.indices[row, place]))
        for row, (score, place) in enumerate(zip(*best_forward, strict=True))
    ] + [
        Mined(float(score), int(backward.indices[place, column]), column)
        for column, (score, place) in enumerate(zip(*best_backward, strict=True))
    ]
    seen_source: set[int] = set()
    seen_target: set[int] = set()
    mined = []
    for pair in sorted(proposals, key=lambda proposal: -proposal.score):
        if pair.source not in seen_source and pair.target not in seen_target:
            seen_source.add(pair.source)
            seen_target.add(pair.target)
            if pair.score > threshold:
                mined.append(pair)
    return mined


def mining_scores(
    mined: Sequence[Mined], gold: set[tuple[int, int]], threshold: float | None = None
) -> dict[str, float]:
    """``precision``, ``recall``, ``f1`` in 0..1 of the pairs that score at least ``threshold``, and
    that ``threshold``.

    ``None`` takes the one with the best F1 on this data, half-way between two scores (BUCC tunes it
    on the training part).
    """
    ranked = sorted(mined, key=lambda pair: -pair.score)
    if threshold is None:
        threshold = _best_threshold(ranked, gold)
    kept = {(pair.source, pair.target) for pair in ranked if pair.score >= threshold}
    correct = len(kept & gold)
    precision, recall = (correct / len(kept), correct / len(gold)) if correct else (0.0, 0.0)
    f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
    return {"threshold": threshold, "precision": precision, "recall": recall, "f1": f1}


def _best_threshold(ranked: Sequence[Mined], gold: set[tuple[int, int]]) -> float:
    best_f1, threshold, correct = 0.0, 0.0, 0
    for extracted, pair in enumerate(ranked, start=1):
        correct += (pair.source, pair.target) in gold
        precision, recall = correct / extracted, correct / len(gold)
        f1 = 2 * precision * recall / (precision + recall) if correct else 0.0
        if f1 > best_f1:
            following = ranked[extracted].score if extracted < len(ranked) else pair.score
            best_f1, threshold = f1, (pair.score + following) / 2
    return threshold
