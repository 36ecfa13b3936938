"""TransE (thunlp/OpenKE): scores, the three losses with their gradients, scores of every head and
tail.
"""

from __future__ import annotations

from typing import Any

from tests.references.case import Adapter, Case
from zoo.models.transe import MarginLoss, SigmoidLoss, SoftplusLoss, TransE, split_scores

LOSSES = {"margin": MarginLoss, "sigmoid": SigmoidLoss, "softplus": SoftplusLoss}


def transe(case: Case) -> dict[str, Any]:
    inputs, config = case.inputs, case.config
    model = TransE.load(case.weights, config)
    h, r, t = (inputs[name] for name in ("batch_h", "batch_r", "batch_t"))
    options = {
        "temperature" if key == "adv_temperature" else key: value
        for key, value in (config.get("loss_args") or {}).items()
    }
    score = model(h, r, t)
    loss = LOSSES[config["loss"]](**options)(*split_scores(score, config["batch_size"]))
    penalty = model.regularization(h, r, t)
    if config.get("regul_rate"):
        loss = loss + config["regul_rate"] * penalty
    if config.get("l3_regul_rate"):
        cubes = [table.weight.norm(p=3) ** 3 for table in (model.entities, model.relations)]
        loss = loss + config["l3_regul_rate"] * sum(cubes)
    loss.backward()
    everyone = inputs["candidates"]
    return {
        "score": score,
        "loss": loss.reshape(1) if config["loss"] == "margin" else loss,
        "grad_entities": model.entities.weight.grad,
        "grad_relations": model.relations.weight.grad,
        "tail_scores": model(h[:1], r[:1], everyone),
        "head_scores": model(everyone, r[:1], t[:1]),
        "regularization": penalty,
    }


ADAPTERS: dict[str, Adapter] = {"TransE": transe}
