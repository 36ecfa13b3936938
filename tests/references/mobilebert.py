"""MobileBERT (google-research/google-research, folder mobilebert; Hugging Face)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from tests.references.text_models import hugging_face
from zoo.training.distillation.losses import TransferWeights, transfer_gates, transfer_losses


def knowledge_transfer(case: Case) -> Mapping[str, Any]:
    config: dict[str, Any] = case.config
    layers = config["num_hidden_layers"]

    def all_of(name: str, count: int, learns: bool = False) -> list[Tensor]:
        return [case.inputs[f"{name}.{k}"].clone().requires_grad_(learns) for k in range(count)]

    student, scores = all_of("student_hidden", layers + 1, True), all_of("student_attention", layers, True)
    gates = transfer_gates(config["global_step"], layers, config["num_train_steps"])
    weights = TransferWeights(
        feature_map=config["hidden_distill_factor"],
        attention=config["attention_distill_factor"],
        mean=config["beta_distill_factor"],
        variance=config["gamma_distill_factor"],
    )
    loss, terms = transfer_losses(
        student, all_of("teacher_hidden", layers + 1), scores, all_of("teacher_attention", layers), gates, weights
    )
    loss.backward()

    def gradient(x: Tensor) -> Tensor:
        return torch.zeros_like(x) if x.grad is None else x.grad

    return {
        **{f"{name}_transfer_loss": term for name, term in terms.items()},
        "total_loss": loss,
        **{f"gate.{layer}": torch.tensor(gate) for layer, gate in enumerate(gates)},
        **{f"grad_student_hidden.{k}": gradient(x) for k, x in enumerate(student)},
        **{f"grad_student_attention.{k}": gradient(x) for k, x in enumerate(scores)},
    }


ADAPTERS: dict[str, Adapter] = {"transformers.MobileBert": hugging_face, "run_pretraining.model_fn": knowledge_transfer}
