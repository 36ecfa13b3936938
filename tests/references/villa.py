"""VILLA: zhegan27/VILLA's adversarial loop over UNITER's task models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracle import way_back
from tests.references.case import Adapter, Case
from tests.references.text_models import load
from tests.references.uniter import LAYOUT, arguments
from zoo.tasks.losses import soft_answer_loss
from zoo.training.adversarial import Adversarial, attacks, scores_of

Run = Callable[[Any, dict[str, Any]], tuple[Tensor, Any]]


def settings(case: Case, kl: str) -> Adversarial:
    c = case.config
    text, image = (name in c["adv_modality"] for name in ("text", "image"))
    return Adversarial(
        steps=c["adv_steps"],
        text_lr=c["adv_lr_txt"] if text else 0.0,
        image_lr=c["adv_lr_img"] if image else 0.0,
        norm=c["norm_type"],
        max_norm=c["adv_max_norm"],
        kl_weight=c["adv_kl_weight"],
        kl=kl,  # type: ignore[arg-type]
        alternate="alter" in c["adv_modality"],
    )


def gradients(model: Any) -> dict[str, Tensor]:
    """Of every parameter, under the reference's names."""
    found = {
        name.removeprefix("model."): torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }
    return {f"grad.{name}": gradient for name, gradient in way_back(LAYOUT, model, found).items()}


def trained(case: Case, model: Any, given: Mapping[str, Any], run: Run, kl: str = "sum") -> dict[str, Any]:
    """One update's passes, in the reference's words."""
    model.train()
    task = "bce_loss" if case.inputs["targets"].is_floating_point() else "ce_loss"
    _, clean = run(model, dict(given))
    outputs: dict[str, Any] = {"clean_scores": scores_of(clean)[0].detach()}
    names = {"inputs_embeds": "txt_delta", "visual_features": "img_delta"}
    for number, attack in enumerate(attacks(run, model, given, settings(case, kl))):
        at = f"step{number}."
        kept = {names[name]: delta.detach().clone() for name, delta in attack.deltas.items()}
        attack.loss.backward(retain_graph=not attack.last)
        outputs |= {at + name: delta.flatten(0, -3) for name, delta in kept.items()}
        outputs |= {
            f"{at}{names[name]}_grad": (torch.zeros_like(delta) if delta.grad is None else delta.grad).flatten(0, -3)
            for name, delta in attack.deltas.items()
        }
        outputs[at + "loss"] = attack.loss.detach()
        endings = [""] if len(attack.task) == 1 else [f"_{k + 1}" for k in range(len(attack.task))]
        for ending, loss, output in zip(endings, attack.task, attack.outputs, strict=True):
            outputs[f"{at}{task}{ending}"] = loss.detach()
            outputs[f"{at}answer_scores{ending}"] = scores_of(output)[0].detach()
        for ending, apart in zip(endings, attack.divergence, strict=False):
            outputs[f"{at}kl_loss{ending}"] = apart.detach()
    return outputs | gradients(model)


def plain(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Any]:
    output = model(**batch)
    return output.loss, output


def answers(case: Case) -> Mapping[str, Any]:
    model = load(case, "visual-question-answering", LAYOUT)
    given, _ = arguments(case.inputs)
    return trained(case, model, {**given, "labels": case.inputs["targets"]}, plain)


def entailment(case: Case) -> Mapping[str, Any]:
    """Soft scores of three labels: binary cross entropy, summed over them."""
    model = load(case, "visual-entailment", LAYOUT)
    given, _ = arguments(case.inputs)

    def run(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        output = model(**batch)
        return soft_answer_loss(output.logits, case.inputs["targets"]), output

    return trained(case, model, given, run)


def commonsense(case: Case) -> Mapping[str, Any]:
    """The rows are choices, each judged alone; the divergence is a mean over both outputs of each."""
    model = load(case, "multiple-choice", LAYOUT)
    given, _ = arguments(case.inputs)
    shaped = {name: x if name == "position_ids" else x[None] for name, x in given.items()}
    return trained(case, model, {**shaped, "labels": case.inputs["targets"].long().view(1, -1)}, plain, "mean")


def reasoning(case: Case) -> Mapping[str, Any]:
    model = load(case, "visual-reasoning", LAYOUT)
    given, _ = arguments(case.inputs)
    if model.options["pairs"]:
        given = {name: x if name == "position_ids" else x.unflatten(0, (-1, 2)) for name, x in given.items()}
    return trained(case, model, {**given, "labels": case.inputs["targets"].long().view(-1)}, plain)


ADAPTERS: dict[str, Adapter] = {
    "train_vqa_adv": answers,
    "train_ve_adv": entailment,
    "train_vcr_adv": commonsense,
    "train_nlvr2_adv": reasoning,
}
