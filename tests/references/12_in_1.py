"""12-in-1: ViLBERT with task tokens, the losses and scores of its training step, and when a stopped
task trains again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.text_models import at_real, load
from tests.references.vilbert import ADAPTERS as VILBERT
from tests.references.vilbert import layout_of
from zoo.tasks.multi_task import StopAndGo, batch_score, multi_task_loss

HEAD_OF_TYPE = {
    "VL-classifier": ("visual_question_answering", "vil_prediction"),
    "VL-classifier-GQA": ("gqa", "vil_prediction_gqa"),
    "VL-logit": ("image_text_retrieval", "vil_logit"),
    "V-logit": ("grounding", "vision_logit"),
    "V-logit-mc": ("grounding", "vision_logit"),
    "VL-binary-classifier": ("visual_reasoning", "vil_binary_prediction"),
    "VL-tri-classifier": ("visual_entailment", "vil_tri_prediction"),
}


def stop_and_go(case: Case) -> Mapping[str, Any]:
    options = dict(case.given["options"])
    control = StopAndGo(options.pop("mode"), **options)
    trace = []
    for score in case.given["scores"]:
        control.step(score)
        trace.append(
            {
                "in_stop": control.stopped,
                "best": control.best,
                "num_bad_epochs": control.bad_epochs,
                "cooldown_counter": control.cooling,
            }
        )
    return {"trace": trace}


def step_inputs(batch: Mapping[str, Tensor], process: str, task: int) -> dict[str, Tensor]:
    """A loader's batch as rows for the model: options and pictures folded into the batch, the text
    repeated.
    """
    given = {
        "input_ids": batch["question"],
        "attention_mask": batch["input_mask"],
        "token_type_ids": batch["segment_ids"],
        "visual_features": batch["features"],
        "visual_boxes": batch["spatials"],
        "visual_mask": batch["image_mask"],
    }
    text = ("input_ids", "attention_mask", "token_type_ids")
    if process == "retrieval":
        given = {name: value.flatten(0, 1) for name, value in given.items()}
    elif process == "expand":
        options = batch["question"].shape[1]
        given = {
            name: v.flatten(0, 1) if name in text else v.repeat_interleave(options, 0) for name, v in given.items()
        }
    elif process == "dialog":
        rows = batch["question"].shape[1] * batch["question"].shape[2]
        given = {name: v.flatten(0, 2) if name in text else v.repeat_interleave(rows, 0) for name, v in given.items()}
    elif process == "nlvr":
        given = {
            name: v.repeat_interleave(2, 0) if name in text else v.unflatten(1, (2, -1)).flatten(0, 1)
            for name, v in given.items()
        }
    return given | {"task_type_ids": torch.full((len(given["input_ids"]),), task)}


def losses(case: Case) -> Mapping[str, Any]:
    model = load(case, "multi-task", layout_of(case))
    outputs: dict[str, Any] = {}
    for task, about in case.config["tasks"].items():
        number = int(task.removeprefix("TASK"))
        name = f"task{number}"
        batch = {
            key.removeprefix(f"{name}."): value for key, value in case.inputs.items() if key.startswith(f"{name}.")
        }
        if not batch:
            continue
        head, theirs = HEAD_OF_TYPE[about["type"]]
        given = step_inputs(batch, about["process"], number)
        with torch.no_grad():
            scores = model(**given).scores[head]
        target, candidates = batch["target"], batch.get("multiple_choice_ids")
        if about["type"] in ("V-logit", "V-logit-mc"):
            target = target.squeeze(2)
        if about["process"] == "dialog":
            target = target.flatten()
        if candidates is not None:
            candidates = (
                candidates + 101
            )  # candidates are counted from the slot behind the whole picture and 100 detected regions
        outputs[f"{name}.loss"] = multi_task_loss(head, scores, target, candidates)
        outputs[f"{name}.score"] = batch_score(head, scores, target, candidates)
        shaped = scores.unsqueeze(-1) if head in ("grounding", "image_text_retrieval") else scores
        outputs[f"{name}.{theirs}"] = at_real(shaped, given["visual_mask"].bool()) if head == "grounding" else shaped
    return outputs


ADAPTERS: dict[str, Adapter] = {**VILBERT, "MultiTaskStopOnPlateau": stop_and_go, "ForwardModelsTrain": losses}
