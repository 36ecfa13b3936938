"""DistilBERT (Hugging Face), and its distillation losses (transformers-research-projects)."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.text_models import hugging_face
from zoo.models.base.outputs import Encoded
from zoo.tasks.losses import token_cross_entropy
from zoo.training.distillation.activations import Activations
from zoo.training.distillation.terms import Comparison, LastStates, SoftTargets


def distillation(case: Case) -> Mapping[str, Tensor]:
    config: dict[str, Any] = case.config
    inputs = dict(case.inputs)
    logits, hidden = (inputs[name].requires_grad_() for name in ("student_logits", "student_hidden"))
    labels, real = inputs["lm_labels"], inputs["attention_mask"].bool()
    student, teacher = (
        Activations(SimpleNamespace(prediction_logits=words), Encoded(states, hidden_states=(states,)), real, {}, ())
        for words, states in ((logits, hidden), (inputs["teacher_logits"], inputs["teacher_hidden"]))
    )
    seen = Comparison(student, teacher, {"labels": labels}, {}, 0, ((0, 0),))
    soft = {
        name: SoftTargets(form=form, temperature=config["temperature"], labelled_only=config["restrict_ce_to_mask"])
        for name, form in (("ce", "divergence"), ("mse", "squared"))
    }
    terms = {name: term.losses(seen)["soft_targets"][1] for name, term in soft.items()}
    terms["cos"] = LastStates(form="cosine").loss(seen)
    terms["mlm"], terms["clm"] = (
        token_cross_entropy(logits, labels),
        token_cross_entropy(logits[:, :-1], labels[:, 1:]),
    )
    counted = {name: term for name, term in terms.items() if config[f"alpha_{name}"]}
    loss = torch.stack([config[f"alpha_{name}"] * term for name, term in counted.items()]).sum()
    loss.backward()
    counted["ce"] = terms["ce"]  # the reference computes it whatever its weight
    gradients = {"grad_student_logits": logits, "grad_student_hidden": hidden}
    return {
        "loss": loss,
        **{f"loss_{name}": term for name, term in counted.items()},
        **{name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in gradients.items()},
    }


ADAPTERS: dict[str, Adapter] = {"transformers.DistilBert": hugging_face, "distiller.Distiller.step": distillation}
