"""Metrics of tasks over pictures and words: VQA 2.0, VCR, RefCOCO, retrieval on Flickr30k and COCO,
NLVR2.

Each follows the public evaluation script of its benchmark, so that numbers can be held against
published ones. Shares lie in 0..1; VQA's accuracies are percentages rounded to two digits, as its
script gives them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError

# --- VQA 2.0
# ------------------------------------------------------------------------------------------------------------------

_MARKS = r';/[]"{}()=+\_-><@`,?!'
_DIGITS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS.split())}
_ARTICLES = frozenset(["a", "an", "the"])
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


@cache
def _contractions() -> dict[str, str]:
    """A contraction with one of its apostrophes missing -> the contraction; one entry of the
    benchmark's table runs the other way.
    """
    table = {}
    for word in _CONTRACTED.split():
        for place, letter in enumerate(word):
            if letter == "'":
                table[word[:place] + word[place + 1 :]] = word
    return table | {"somebody'd": "somebodyd"}


def vqa_punctuation(answer: str) -> str:
    """Marks go: without a trace where one stands beside a space anywhere, or where the text has a
    number like 1,000; else a space remains.

    A period goes unless a digit follows.
    """
    grouped = re.search(r"\d,\d", answer) is not None
    text = answer
    for mark in _MARKS:
        beside = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if grouped or beside else " ")
    return re.sub(r"\.(?!\d)", "", text)


def vqa_words(answer: str) -> str:
    """Lower case, number words up to ten as digits, no articles, contractions with their
    apostrophes, single spaces.
    """
    words = [_NUMBERS.get(word, word) for word in answer.lower().split()]
    table = _contractions()
    return " ".join(table.get(word, word) for word in words if word not in _ARTICLES)


def vqa_normalize(answer: str) -> str:
    """An answer as VQA's evaluation compares it."""
    return vqa_words(vqa_punctuation(answer))


def vqa_vocabulary_form(answer: str) -> str:
    """An answer as the usual vocabulary of 3129 answers holds it: normalized, and without
    commas.
    """
    return vqa_normalize(answer).replace(",", "")


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA's accuracy of one prediction, in 0..1: the mean over the answers of min(1, how many of
    the *others* agree / 3).

    Prediction and answers are normalized unless all answers are the same.
    """
    if not answers:
        raise InputError("a question needs its human answers, got none")
    prediction, answers = _plain(prediction), [_plain(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = vqa_normalize(prediction), [vqa_normalize(answer) for answer in answers]
    agree = sum(answer == prediction for answer in answers)
    return sum(min(1.0, (agree - (answer == prediction)) / 3) for answer in answers) / len(answers)


def _plain(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def vqa_evaluate(questions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """VQA's report on questions with ``question_id``, ``question_type``, ``answer_type``,
    ``answers`` and ``prediction``.

    -> ``per_question``, ``overall``, ``per_question_type`` and ``per_answer_type``, percentages
    rounded to two digits; totals are made from unrounded values.
    """
    if not questions:
        raise InputError("no questions to evaluate")
    each = {q["question_id"]: vqa_accuracy(q["prediction"], q["answers"]) for q in questions}
    by_kind: dict[str, dict[str, list[float]]] = {"question_type": defaultdict(list), "answer_type": defaultdict(list)}
    for question in questions:
        for kind, groups in by_kind.items():
            groups[question[kind]].append(each[question["question_id"]])

    def percent(values: Sequence[float]) -> float:
        return round(100 * sum(values) / len(values), 2)

    return {
        "per_question": {name: percent([value]) for name, value in each.items()},
        "overall": percent(list(each.values())),
        "per_question_type": {name: percent(values) for name, values in by_kind["question_type"].items()},
        "per_answer_type": {name: percent(values) for name, values in by_kind["answer_type"].items()},
    }


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """A training target from human answers in their vocabulary form: 0.3, 0.6, 0.9 or 1 for one,
    two, three or more that agree.
    """
    return {answer: (0.3, 0.6, 0.9, 1.0)[min(count, 4) - 1] for answer, count in Counter(answers).items()}


def leave_one_out_scores(answers: Sequence[str], vocabulary: Sequence[str], unknown: str = "<unk>") -> dict[str, float]:
    """The target of Pythia, MMF and VLP: the mean over those who gave it of min(1, others / 3), of
    answers in the vocabulary alone.

    The answer for what is not in the vocabulary never gets a score. Numbers are rounded to float32,
    as they enter the target.
    """
    known = set(vocabulary) - {unknown}
    scores = {}
    for answer, count in Counter(answers).items():
        if answer in known:
            each = [min(1.0, (count - (other == answer)) / 3) for other in answers]
            scores[answer] = float(torch.tensor(sum(each) / len(each), dtype=torch.float32))
    return scores


def answer_scores(logits: Tensor, targets: Tensor) -> Tensor:
    """(batch, answers) each: the soft target at the best answer, zeros elsewhere; its sum over the
    batch's size is the training score.
    """
    return torch.zeros_like(targets).scatter(1, (best := logits.argmax(1, keepdim=True)), targets.gather(1, best))


# --- VCR
# ------------------------------------------------------------------------------------------------------------------


def vcr_accuracy(scores: Tensor, answer_labels: Tensor, rationale_labels: Tensor) -> dict[str, Any]:
    """Q→A, QA→R and Q→AR from ``scores`` (items, 20): four answers, then four rationales for each
    of the four answers.

    Rationales are judged given the *right* answer; Q→AR asks for both. -> "Q->A", "QA->R", "Q->AR"
    and the hits of each item.
    """
    if scores.dim() != 2 or scores.shape[1] != 20:
        raise InputError(f"scores must be (items, 20), 4 answers then 4 x 4 rationales, got {tuple(scores.shape)}")
    answers = scores[:, :4].argmax(1) == answer_labels
    groups = scores[:, 4:].unflatten(1, (4, 4))
    right = groups[torch.arange(len(scores)), answer_labels]
    rationales = right.argmax(1) == rationale_labels
    hits = {"answer_hits": answers, "rationale_hits": rationales, "joint_hits": answers & rationales}
    shares = {
        name: float(value.double().mean())
        for name, value in zip(("Q->A", "QA->R", "Q->AR"), hits.values(), strict=True)
    }
    return {**hits, **shares}


# --- RefCOCO
# ------------------------------------------------------------------------------------------------------------------


def refcoco_iou(left: Sequence[float], right: Sequence[float]) -> float:
    """Intersection over union of two x, y, width, height boxes as RefCOCO's code counts it.

    The last pixel belongs to a box: right = x + width - 1, and widths of intersections are right -
    left + 1; boxes that share a single column or row do not meet. Areas are width · height.
    """
    x1, y1 = max(left[0], right[0]), max(left[1], right[1])
    x2 = min(left[0] + left[2] - 1, right[0] + right[2] - 1)
    y2 = min(left[1] + left[3] - 1, right[1] + right[3] - 1)
    shared = (x2 - x1 + 1) * (y2 - y1 + 1) if x1 < x2 and y1 < y2 else 0.0
    return float(shared / (left[2] * left[3] + right[2] * right[3] - shared))


def refcoco_accuracy(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over expressions with ``boxes`` (x, y, width, height), ``scores`` and the ``target`` box:
    right is an overlap of more than 0.5.
    """
    found = []
    for item in items:
        best = max(range(len(item["scores"])), key=item["scores"].__getitem__)
        overlap = refcoco_iou(item["boxes"][best], item["target"])
        found.append({"prediction": best, "iou": overlap, "correct": overlap > 0.5})
    return {"items": found, "accuracy": sum(item["correct"] for item in found) / max(len(found), 1)}


# --- retrieval
# ------------------------------------------------------------------------------------------------------------------


def retrieval_ranks(scores: Tensor, image_of: Sequence[int] | Tensor) -> dict[str, list[int]]:
    """How many stand before the first right one, from ``scores`` (texts, images), higher = better;
    ``image_of``: each text's image, or a bool tensor (texts, images), True = they belong together,
    where several may be right.

    "i2t": for each image among all texts; "t2i": for each text among all images. Equal scores stand
    in their own order.
    """
    if isinstance(image_of, Tensor) and image_of.dtype == torch.bool:
        fits, right = image_of.shape == scores.shape, image_of.to(scores.device)
    else:
        fits = scores.dim() == 2 and len(image_of) == len(scores)
        places = torch.arange(scores.shape[-1], device=scores.device)
        right = torch.as_tensor(image_of, device=scores.device)[:, None] == places  # (texts, images)
    if not fits:
        raise InputError(
            f"scores must be (texts, images) with one image for each text, got {tuple(scores.shape)} and "
            f"{tuple(image_of.shape) if isinstance(image_of, Tensor) else len(image_of)}"
        )
    if not (right.any(0).all() and right.any(1).all()):
        raise InputError("each text needs an image that is right, and each image a text")
    by_text = scores.argsort(stable=True, dim=1, descending=True)
    by_image = scores.argsort(stable=True, dim=0, descending=True)
    t2i, i2t = right.gather(1, by_text).int().argmax(1), right.gather(0, by_image).int().argmax(0)
    return {"i2t": i2t.tolist(), "t2i": t2i.tolist()}


def recall(ranks: Sequence[int], at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """R@k: the share of queries with a right one among the first k.

    UNITER's and VILLA's published code counts up to k hits too many for image retrieval; these are
    the right numbers.
    """
    if not ranks:
        raise InputError("no ranks to count")
    return {f"R@{k}": sum(rank < k for rank in ranks) / len(ranks) for k in at}


def retrieval_recall(
    scores: Tensor, image_of: Sequence[int], at: Sequence[int] = (1, 5, 10)
) -> dict[str, dict[str, float]]:
    """Recall in both directions, see `retrieval_ranks` and `recall`."""
    return {direction: recall(ranks, at) for direction, ranks in retrieval_ranks(scores, image_of).items()}


# --- NLVR2
# ------------------------------------------------------------------------------------------------------------------


def nlvr2_accuracy(labels: Mapping[str, str], predictions: Mapping[str, str]) -> dict[str, float]:
    """Accuracy, and consistency: the share of sentences all of whose picture pairs are right. Both
    map an identifier ``split-set-pair-sentence`` to a label; case and pairs that lack a prediction
    count as wrong.
    """
    if not labels:
        raise InputError("no examples to evaluate")
    right, by_sentence = 0, defaultdict(list)
    for identifier, label in labels.items():
        hit = predictions.get(identifier, "").lower() == label.lower()
        right += hit
        parts = identifier.split("-")
        by_sentence["-".join([*parts[:-2], parts[-1]])].append(hit)
    return {"accuracy": right / len(labels), "consistency": sum(map(all, by_sentence.values())) / len(by_sentence)}
