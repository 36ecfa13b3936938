"""TinyBERT: the intermediate and the prediction losses of a teacher and a student
(huawei-noah/Pretrained-Language-Model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import zoo
from tests.references.case import Adapter, Case, Output
from zoo.models.base.model import bare_model
from zoo.training.distillation.activations import activations_of
from zoo.training.distillation.losses import score_loss, soft_cross_entropy, uniform_layers

PADDING = 0  # the reference's table gives this row no gradient, also where padding is computed and counted


def prediction(case: Case) -> Mapping[str, Any]:
    logits = case.inputs["predicts"].clone().requires_grad_()
    loss = soft_cross_entropy(logits, case.inputs["targets"])
    loss.backward()
    return {"loss": loss, "grad_predicts": logits.grad}


def task_distillation(case: Case) -> Mapping[str, Any]:
    mask = case.inputs["attention_mask"]
    # the reference computes states of padding too and counts them; a matrix mask, whose padding looks at the real
    # tokens, gives them
    given = {name: case.inputs[name] for name in ("input_ids", "token_type_ids") if name in case.inputs}
    given["attention_mask"] = mask[:, None, :].expand(-1, mask.shape[1], -1)
    temperature = float(case.inputs.get("temperature", torch.tensor(1.0)))
    keys = (1 - mask)[:, None, None, :] * -10000.0
    seen, scores, logits = {}, {}, {}
    for role in ("student", "teacher"):
        own = {
            name.removeprefix(f"{role}."): tensor
            for name, tensor in case.weights.items()
            if name.startswith(f"{role}.")
        }
        fit = {name: own.pop(f"fit_dense.{name}") for name in ("weight", "bias") if f"fit_dense.{name}" in own}
        own = {name: tensor for name, tensor in own.items() if not name.startswith("cls.")}
        task = "sequence-classification" if "classifier.weight" in own else None  # none in general distillation
        model = zoo.load(own, layout="hf-bert", config=case.config[role], task=task).eval()
        seen[role] = activations_of(model, given, projected=True)
        heads = case.config[role]["num_attention_heads"]
        scores[role] = [
            _scores(q, k, heads) + keys
            for q, k in zip(*(seen[role].projected[n] for n in ("query", "key")), strict=True)
        ]
        if task:
            logits[role] = model.heads["sequence_classification"](seen[role].encoded.pooler_output.relu())
        if role == "student":
            student, dense = model, {name: tensor.clone().requires_grad_() for name, tensor in fit.items()}
    states = {role: each.states for role, each in seen.items()}
    layers = (0, *uniform_layers(len(scores["student"]), len(scores["teacher"])))
    fitted = [F.linear(state, dense["weight"], dense["bias"]) for state in states["student"]]
    attention = sum(
        score_loss(scores["student"][i - 1], scores["teacher"][layers[i] - 1]) for i in range(1, len(layers))
    )
    representation = sum(
        F.mse_loss(mine, states["teacher"][layer].detach()) for mine, layer in zip(fitted, layers, strict=True)
    )
    loss = attention + representation
    loss.backward(retain_graph=True)
    table = bare_model(student).embeddings.token.weight
    predicted: dict[str, Any] = {f"{role}_logits": each for role, each in logits.items()}
    if logits:
        hard = case.inputs.get("label_ids", case.inputs.get("labels"))
        regression = hard is not None and logits["student"].shape[1] == 1
        predicted["pred_loss"] = (
            F.mse_loss(logits["student"].flatten(), hard.flatten())
            if regression and hard is not None
            else soft_cross_entropy(logits["student"], logits["teacher"], temperature)
        )
    return {
        **predicted,
        "att_loss": attention,
        "rep_loss": representation,
        "intermediate_loss": loss,
        "loss": loss,
        "grad_intermediate.fit_dense": dense["weight"].grad,
        "grad_intermediate.word_embeddings": Output(table.grad, where=torch.arange(len(table)) != PADDING),
        **{f"{role}_atts.{i}": score for role, each in scores.items() for i, score in enumerate(each)},
        **{f"student_reps.{i}": state for i, state in enumerate(fitted)},
    }


def _scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    q, k = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key))
    return q @ k.transpose(2, 3) / q.shape[-1] ** 0.5


ADAPTERS: dict[str, Adapter] = {"soft_cross_entropy": prediction, "TinyBertFor": task_distillation}
