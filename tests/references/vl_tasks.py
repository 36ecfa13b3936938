"""Metrics of vision-language tasks, as the benchmarks' public code computes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.references.case import Adapter, Case, Skipped
from zoo.tasks.metrics.vision import (
    answer_scores,
    leave_one_out_scores,
    nlvr2_accuracy,
    recall,
    refcoco_accuracy,
    refcoco_iou,
    retrieval_ranks,
    soft_scores,
    vcr_accuracy,
    vqa_evaluate,
    vqa_normalize,
    vqa_punctuation,
    vqa_vocabulary_form,
    vqa_words,
)


def vqa(case: Case) -> Mapping[str, Any]:
    report = vqa_evaluate(case.given["questions"])
    return {
        "evalQA": {str(name): value for name, value in report["per_question"].items()},
        "accuracy": {
            "overall": report["overall"],
            "perQuestionType": report["per_question_type"],
            "perAnswerType": report["per_answer_type"],
        },
        "strings": [
            {
                "input": text,
                "process_punctuation": vqa_punctuation(text),
                "process_digit_article": vqa_words(text),
                "both": vqa_normalize(text),
            }
            for text in case.given["strings"]
        ],
    }


def soft(case: Case) -> Mapping[str, Any]:
    given = case.given
    best = answer_scores(torch.tensor(given["logits"]), torch.tensor(given["targets"]))
    return {
        "scores": [
            {
                "step_scores": soft_scores(answers),
                "leave_one_out_scores": leave_one_out_scores(answers, given["vocabulary"]),
            }
            for answers in given["answer_sets"]
        ],
        "validation_scores": best,
        "validation_mean": best.sum() / len(best),
        "preprocess": {text: vqa_vocabulary_form(text) for text in given["strings"]},
    }


def vcr(case: Case) -> Mapping[str, Any]:
    given = case.given
    labels = (torch.tensor(given[name]) for name in ("answer_labels", "rationale_labels"))
    return vcr_accuracy(torch.tensor(given["scores"], dtype=torch.float64), *labels)


def refcoco(case: Case) -> Mapping[str, Any]:
    report = refcoco_accuracy(case.given["items"])
    items = [{"pred": item["prediction"], "iou": item["iou"], "correct": item["correct"]} for item in report["items"]]
    pairs = [refcoco_iou(pair["box1"], pair["box2"]) for pair in case.given["pairs"]]
    return {"items": items, "accuracy": report["accuracy"], "pairs": pairs}


def retrieval(case: Case) -> Mapping[str, Any]:
    given = case.given
    number = {name: index for index, name in enumerate(given["img_ids"])}
    scores = torch.tensor(given["score_matrix"], dtype=torch.float64)
    ranks = retrieval_ranks(scores, [number[given["txt2img"][text]] for text in given["txt_ids"]])
    text_number = {name: index for index, name in enumerate(given["txt_ids"])}
    by_image = [text_number[text] for image in given["img_ids"] for text in given["img2txts"][image]]
    return {
        "recall": {direction: recall(found) for direction, found in ranks.items()},
        "i2t_ranks": ranks["i2t"],
        "t2i_ranks": [ranks["t2i"][text] for text in by_image],
        "itm_eval_as_published": Skipped(
            "UNITER's itm_eval counts hits that are none; the case's notes ask for the ranks instead"
        ),
    }


def nlvr2(case: Case) -> Mapping[str, Any]:
    labels = {example["identifier"]: example["label"] for example in case.given["examples"]}
    report = nlvr2_accuracy(labels, case.given["predictions"])
    return {"printed": [f"{name}={value}" for name, value in report.items()]}


ADAPTERS: dict[str, Adapter] = {
    "vqa-accuracy": vqa,
    "vqa-soft-scores": soft,
    "vcr-accuracy": vcr,
    "refcoco-accuracy": refcoco,
    "retrieval-recall": retrieval,
    "nlvr2-accuracy": nlvr2,
}
