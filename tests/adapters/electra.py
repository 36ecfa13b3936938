"""ELECTRA (google-research/electra): data and function cases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.adapters.case import Adapter, Case
from tests.adapters.optimizers import train
from zoo.tasks.masking import write_samples
from zoo.tasks.optim import BertAdam, decay_groups, layer_depth, layerwise_groups
from zoo.tasks.schedules import warmup_times_decay


def scatter_update(case: Case) -> dict[str, Any]:
    items = []
    for item in case.given:
        updated, written = write_samples(*(torch.tensor(item[name]) for name in ("sequence", "updates", "positions")))
        items.append({"updated": updated, "mask": written.long()})
    return {"items": items}


def our_depth(name: str, num_layers: int) -> int:
    """``electra.encoder.layer_0.dense.kernel``, the reference's variable with dots, to the depth of ours."""
    name = name.removeprefix("electra.").removeprefix("generator.")
    return layer_depth(name.replace("embeddings_project", "embeddings.projection").replace("encoder.layer_", "encoder.blocks."), num_layers)


def layerwise_adam(case: Case) -> dict[str, Tensor]:
    config = case.config
    rate, decay = config["learning_rate"], config["weight_decay_rate"]
    warmup = int(max(config["num_train_steps"] * config.get("warmup_proportion", 0), config["warmup_steps"]))
    schedule = warmup_times_decay(rate, config["num_train_steps"], warmup, config.get("lr_decay_power", 1.0))
    factor = config.get("layerwise_lr_decay_power", -1)

    def make(named: dict[str, Tensor]) -> BertAdam:
        if factor > 0:
            return BertAdam(layerwise_groups(named.items(), rate, factor, config["n_transformer_layers"], decay, depth=our_depth), lr=rate)
        return BertAdam(decay_groups(named.items(), decay), lr=rate)

    return train(case, make, schedule, rate)


ADAPTERS: dict[str, Adapter] = {"scatter_update": scatter_update, "optimization.create_optimizer": layerwise_adam}
