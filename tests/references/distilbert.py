"""DistilBERT (Hugging Face), and its distillation losses (transformers-research-projects)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.text_models import hugging_face
from zoo.training.distillation.losses import DistilBertWeights, distilbert_losses, softened_divergence


def distillation(case: Case) -> Mapping[str, Tensor]:
    config: dict[str, Any] = case.config
    inputs = dict(case.inputs)
    logits, hidden = (inputs[name].requires_grad_() for name in ("student_logits", "student_hidden"))
    weights = DistilBertWeights(
        divergence=config["alpha_ce"],
        masked_lm=config["alpha_mlm"],
        causal_lm=config["alpha_clm"],
        logits=config["alpha_mse"],
        cosine=config["alpha_cos"],
        temperature=config["temperature"],
        labelled_only=config["restrict_ce_to_mask"],
    )
    loss, terms = distilbert_losses(
        logits,
        inputs["teacher_logits"],
        hidden,
        inputs["teacher_hidden"],
        inputs["attention_mask"],
        inputs["lm_labels"],
        weights,
    )
    loss.backward()
    if "divergence" not in terms:  # the reference computes it whatever its weight
        chosen = inputs["lm_labels"] > -1 if config["restrict_ce_to_mask"] else inputs["attention_mask"].bool()
        terms["divergence"] = softened_divergence(
            logits[chosen], inputs["teacher_logits"][chosen], config["temperature"]
        )
    names = {"divergence": "ce", "masked_lm": "mlm", "causal_lm": "clm", "logits": "mse", "cosine": "cos"}
    gradients = {"grad_student_logits": logits, "grad_student_hidden": hidden}
    return {
        "loss": loss,
        **{f"loss_{names[name]}": term for name, term in terms.items()},
        **{name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in gradients.items()},
    }


ADAPTERS: dict[str, Adapter] = {"transformers.DistilBert": hugging_face, "distiller.Distiller.step": distillation}
