"""ERNIE-ViL: the fine-tuning models of PaddlePaddle/ERNIE."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load
from zoo.tasks.ranking import circle_loss

LAYOUT = "paddle-ernie-vil"
RENAMED = {
    "src_ids": "input_ids",
    "pos_ids": "position_ids",
    "sent_ids": "token_type_ids",
    "input_mask": "attention_mask",
    "image_embeddings": "visual_features",
    "image_loc": "visual_boxes",
    "image_mask": "visual_mask",
}


def arguments(case: Case) -> dict[str, Tensor]:
    """A case's inputs under our names, without their trailing axis of one; masks as integers."""
    given = {}
    for name, own in RENAMED.items():
        value = case.inputs[name]
        value = value if own in ("visual_features", "visual_boxes") else value.squeeze(-1)
        given[own] = value.long() if own.endswith("mask") else value
    return given


def encoder(case: Case) -> Mapping[str, Any]:
    model = load(case, None, LAYOUT)
    given = arguments(case)
    text, image = given["attention_mask"].bool(), given["visual_mask"].bool()
    with torch.no_grad():
        result = model(**given, output_hidden_states=True)
    outputs: dict[str, Any] = {
        "text_output": at_real(result.text.last_hidden_state, text),
        "image_output": at_real(result.image.last_hidden_state, image),
        "pooled_text": result.text.pooler_output,
        "pooled_image": result.image.pooler_output,
        "match_embedding": result.pooler_output,
    }
    outputs["match_embedding"] = result.pooler_output
    states = {"text": iter(result.text.hidden_states[1:]), "image": iter(result.image.hidden_states[1:])}
    real = {"text": text, "image": image}
    for step in model.encoder.steps:
        name = {"text": "layer", "image": "vlayer", "both": "colayer"}[step.part]
        for stream in step.writes:
            ending = f"_{stream}" if step.part == "both" else ""
            outputs[f"encoder_{name}_{step.index}{ending}"] = at_real(next(states[stream]), real[stream])
    return outputs


def answers(case: Case) -> Mapping[str, Any]:
    model = load(case, "visual-question-answering", LAYOUT)
    labels = case.inputs["labels"]
    with torch.no_grad():
        result = model(**arguments(case), labels=labels)
    prediction = result.logits.argmax(1)
    return {
        "logits": result.logits,
        "loss": result.loss.reshape(1),
        "prediction": prediction,
        "accuracy": labels.gather(1, prediction[:, None]).mean().reshape(1),
    }


def expressions(case: Case) -> Mapping[str, Any]:
    """The reference multiplies its loss by the batch size."""
    model = load(case, "grounding", LAYOUT)
    given, labels = arguments(case), case.inputs["labels"].squeeze(-1)
    real, batch = given["visual_mask"].bool(), case.config["args"]["batch_size"]
    with torch.no_grad():
        result = model(**given, labels=labels)
        each = F.binary_cross_entropy_with_logits(result.logits, labels, reduction="none")
    return {
        "logits": Output(result.logits.unsqueeze(2), where=real),
        "loss": (result.loss * batch).reshape(1),
        "loss_over_all_slots": (torch.where(real, each, 0).mean() * batch).reshape(1),
    }


def named(case: Case, prefix: str) -> Case:
    """The case with one of VCR's heads as the head over choices."""
    names = {f"{prefix}_fc.w_0": "vcr_qa_fc.w_0", f"{prefix}_fc.b_0": "vcr_qa_fc.b_0"}
    heads = {name for name in case.weights if name.startswith("vcr")}
    kept = {names.get(name, name): x for name, x in case.weights.items() if name not in heads or name in names}
    return dataclasses.replace(case, weights=kept)


def commonsense(case: Case) -> Mapping[str, Any]:
    """VCR: the choices of a question are rows; each task of the group has a head and a weight."""
    outputs: dict[str, Any] = {}
    total, right = torch.zeros(1), torch.zeros(1)
    given = arguments(case)
    groups = case.config["task_group"]
    for number, task in enumerate(groups):
        choices, prefix = int(task["num_choice"]), task.get("task_prefix", "vcr")
        fusion = {"sum": "sum", "mul": "mul"}[task.get("fusion_method", "mul")]
        model = load(named(case, prefix), "multiple-choice", LAYOUT, fusion=fusion)
        shaped = {name: x.unflatten(0, (-1, choices)) for name, x in given.items()}
        labels = case.inputs["binary_labels"].reshape(-1, choices).long()
        with torch.no_grad():
            result = model(**shaped, labels=labels)
        weight = case.inputs.get(f"task_weight_{number}", case.inputs.get("task_weight", torch.ones(1))).reshape(1)
        total = total + weight * result.loss
        softmax = result.logits.softmax(1)
        right = right + weight * (softmax.argmax(1) == case.inputs["labels"].reshape(-1)).float().mean()
        outputs |= {"logits": result.logits, "scores": result.logits, "softmax": softmax}
        outputs |= {"prediction": softmax.argmax(1), "pred": softmax.argmax(1)}
    return {**outputs, "loss": total, "accuracy": right}


def retrieval(case: Case) -> Mapping[str, Any]:
    """Groups of a right pair, pairs with wrong pictures and pairs with wrong captions."""
    model = load(case, "image-text-retrieval", LAYOUT)
    with torch.no_grad():
        logits = model(**arguments(case)).logits
    outputs: dict[str, Any] = {"logits": logits.unsqueeze(1)}
    schema = case.config["task_group"][0].get("negative_schema") if case.config.get("task_group") else None
    if schema is None:
        return outputs
    options, size = case.config.get("args", {}), len(schema) + 1
    scores = logits.reshape(-1, size).sigmoid()
    middle = (size + 1) // 2
    losses = [
        circle_loss(scores[:, :1], wrong, options.get("margin", 0.2), options.get("scale_circle", 32.0))
        for wrong in (scores[:, 1:middle], scores[:, middle:])
    ]
    labels = case.inputs["labels"].reshape(-1)[: len(scores)]
    right = (scores.argmax(1) == labels).float().mean()
    return outputs | {
        "match_score": scores,
        "loss": ((losses[0] + losses[1]) / 2).reshape(1),
        "accuracy": right.reshape(1),
    }


ADAPTERS: dict[str, Adapter] = {
    "create_vqa_model": answers,
    "create_refcoco_plus_model": expressions,
    "create_vcr_model": commonsense,
    "create_flickr_model": retrieval,
    "ErnieVilModel": encoder,
}
