"""Metrics of GLUE, SQuAD, MLQA, XTREME: data cases."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch

from tests.references.case import Adapter, Case
from zoo.tasks.metrics.language import (
    Mined,
    answer_f1,
    best_over_answers,
    exact_match,
    glue_metrics,
    mine_translations,
    mining_scores,
    mlqa_normalizer,
    nearest,
    normalize_answer,
    span_scores,
    squad_v1,
    squad_v2,
    squad_v2_scores,
    tag_spans,
)


def glue(case: Case) -> dict[str, Any]:
    items = [item["input"] for item in case.info["items"]]
    return {
        "items": [
            glue_metrics(item["task"], torch.tensor(item["preds"]), torch.tensor(item["labels"])) for item in items
        ]
    }


def mlqa(case: Case) -> dict[str, Any]:
    items = []
    for item in (item["input"] for item in case.info["items"]):
        normalize = mlqa_normalizer(item["lang"])
        prediction, answers = item["prediction"], item["ground_truths"]
        items.append(
            {
                "normalized_prediction": normalize(prediction),
                "exact_match": best_over_answers(partial(exact_match, normalize=normalize), prediction, answers),
                "f1": best_over_answers(partial(answer_f1, normalize=normalize), prediction, answers),
            }
        )
    return {"items": items}


def squad_1(case: Case) -> dict[str, Any]:
    """The last item scores the whole set; its words say which items have no prediction."""
    questions = [item["input"] for item in case.info["items"] if "prediction" in item["input"]]
    items: list[dict[str, Any]] = []
    for item in (item["input"] for item in case.info["items"]):
        if "whole_set" in item:
            absent = {int(number) for number in re.findall(r"\d+", item["whole_set"].split("(")[0])}
            items.append(
                squad_v1(
                    {str(k): q["prediction"] for k, q in enumerate(questions) if k not in absent},
                    {str(k): q["ground_truths"] for k, q in enumerate(questions)},
                )
            )
            continue
        prediction, answers = item["prediction"], item["ground_truths"]
        items.append(
            {
                "normalized_prediction": normalize_answer(prediction),
                "normalized_ground_truths": [normalize_answer(answer) for answer in answers],
                "exact_match": best_over_answers(exact_match, prediction, answers),
                "f1": best_over_answers(answer_f1, prediction, answers),
                "f1_each": [answer_f1(prediction, answer) for answer in answers],
            }
        )
    return {"items": items}


def squad_2(case: Case) -> dict[str, Any]:
    questions = [item["input"] for item in case.info["items"] if "prediction" in item["input"]]
    predictions = {str(k): q["prediction"] for k, q in enumerate(questions)}
    answers = {str(k): q["ground_truths"] for k, q in enumerate(questions)}
    items: list[dict[str, Any]] = []
    for item in (item["input"] for item in case.info["items"]):
        if "whole_set" in item:
            threshold = item.get("no_answer_probability_threshold", 1.0)
            items.append(
                {
                    "without_probs": squad_v2(predictions, answers),
                    "with_probs": squad_v2(predictions, answers, item["no_answer_probs"], threshold),
                }
            )
        else:
            items.append(squad_v2_scores(item["prediction"], item["ground_truths"]))
    return {"items": items}


def spans(case: Case) -> dict[str, Any]:
    items = []
    for item in (item["input"] for item in case.info["items"]):
        true, predicted = item["y_true"], item["y_pred"]
        items.append(
            span_scores(predicted, true)
            | {
                "entities_true": [[list(span) for span in tag_spans(sentence)] for sentence in true],
                "entities_pred": [[list(span) for span in tag_spans(sentence)] for sentence in predicted],
            }
        )
    return {"items": items}


def retrieval(case: Case) -> dict[str, Any]:
    """``x`` is index and source, ``y`` queries and target. The gold pairs of the BUCC part are
    stored beside its results.
    """
    x, y = case.inputs["x"], case.inputs["y"]
    neighbors = case.config.get("neighborhood", 4)
    found = {"normalized": nearest(x, y), "raw": nearest(x, y, normalize=False)}
    mined = {margin: mine_translations(x, y, neighbors, margin) for margin in ("ratio", "absolute")}
    answers: dict[str, Any] = {f"nearest_{kind}": places[:, None] for kind, places in found.items()}
    right = torch.arange(len(y))
    answers["accuracy"] = {kind: float((places == right).double().mean()) for kind, places in found.items()}
    answers |= {
        f"mined_{margin}": [[p.score, f"s{p.source}", f"t{p.target}"] for p in pairs] for margin, pairs in mined.items()
    }
    if "bucc" in case.info:
        gold = case.info["bucc"]["gold"]
        answers["bucc"] = {"gold": gold} | mining_scores(mined["ratio"], {_pair(line) for line in gold})
    return answers


def _pair(line: str) -> tuple[int, int]:
    source, target = line.split("\t")
    pair = Mined(0.0, int(source.removeprefix("s")), int(target.removeprefix("t")))
    return pair.source, pair.target


ADAPTERS: dict[str, Adapter] = {
    "glue_compute_metrics": glue,
    "evaluate_mlqa": mlqa,
    "evaluate_squad": squad_1,
    "squad_metrics": squad_2,
    "seqeval": spans,
    "utils_retrieve": retrieval,
}
