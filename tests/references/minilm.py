"""MiniLM: the relation loss of a teacher's and a student's layer (MiniLMv2, and its first version
as a choice of relations).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

import zoo
from tests.references.case import Adapter, Case
from tests.references.text_models import at_real, real_of
from zoo.training.distillation.losses import projections, relation_loss

PARTS = {1: "query", 2: "key", 3: "value"}


def relations(case: Case) -> Mapping[str, Any]:
    config = case.config
    models = {}
    for role in ("teacher", "student"):
        own = {
            name.removeprefix(f"{role}."): tensor
            for name, tensor in case.weights.items()
            if name.startswith(f"{role}.")
        }
        models[role] = zoo.load(own, layout="hf-bert", config=config[role]).eval()
    layers = {"teacher": config["L"] - 1, "student": config["M"] - 1}
    given = {
        name: case.inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in case.inputs
    }
    entering: dict[str, Tensor] = {}
    projected: dict[str, dict[str, Tensor]] = {}
    for role, model in models.items():
        entering[role] = model(**given, output_hidden_states=True).hidden_states[layers[role]]
        projected[role] = projections(model.encoder.blocks[layers[role]], entering[role])
    pairs = {}
    for pair, weight in config["relations"].items():
        first, second = (PARTS[int(part)] for part in pair.split(","))
        pairs[first, second] = weight
    real = real_of(case)
    loss = relation_loss(projected["student"], projected["teacher"], config["A_r"], real, pairs)
    loss.backward()
    student = models["student"]
    attention = student.encoder.blocks[layers["student"]].attention
    return {
        "loss": loss,
        **{
            f"grad.{name}": getattr(attention, name).weight.grad
            for name in PARTS.values()
            if getattr(attention, name).weight.grad is not None
        },
        "grad.word_embeddings": student.embeddings.token.weight.grad,
        **{f"{role}_layer_input": at_real(x.detach(), real) for role, x in entering.items()},
    }


ADAPTERS: dict[str, Adapter] = {"minilmv2.MiniLM": relations}
