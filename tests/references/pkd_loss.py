"""BERT-PKD: patience on first-token states and the two losses on logits
(intersun/PKD-for-BERT-Model-Compression).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.nn import functional as F

from tests.references.case import Adapter, Case, Output
from zoo.training.distillation.losses import averaged_divergence, patience_loss

HALF = "the reference returns its patience loss in half precision"


def losses(case: Case) -> Mapping[str, Any]:
    config = case.config
    states, logits = (case.inputs[name].clone().requires_grad_() for name in ("student_patience", "student_logits"))
    patience = patience_loss(states, case.inputs["teacher_patience"], normalize=config["normalized_patience"])
    soft = averaged_divergence(logits, case.inputs["teacher_logits"], config["T"])
    hard = F.cross_entropy(logits, case.inputs["labels"])
    loss = config["alpha"] * soft + (1 - config["alpha"]) * hard
    total = loss + config["beta"] * patience
    total.backward()
    return {
        "patience_loss_half": Output(patience, tolerance=1e-3, reason=HALF),
        "kd_loss": soft,
        "ce_loss": hard,
        "distillation_loss": loss,
        "total": Output(total, tolerance=1e-3, reason=HALF),
        "grad_student_patience": Output(states.grad, tolerance=1e-3, reason=HALF),
        "grad_student_logits": logits.grad,
    }


ADAPTERS: dict[str, Adapter] = {"KD_loss": losses}
