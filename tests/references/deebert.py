"""DeeBERT: what every off-ramp says, the two stages' losses, and where rows leave."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.case import Adapter, Case
from zoo.techniques import early_exit

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def loaded(case: Case) -> Any:
    config = {name: value for name, value in case.config.items() if name not in ("entropy_thresholds", "model_type")}
    stored = {re.sub(r"^roberta\.", "bert.", name): tensor for name, tensor in case.weights.items()}
    plain = {name: tensor for name, tensor in stored.items() if ".highway." not in name}
    model = zoo.load(plain, layout="hf-bert", config=config, task="sequence-classification")
    zoo.apply(model, zoo.EarlyExit(num_labels=config["num_labels"], dropout=0.0))
    ramps = {name.partition(".highway.")[2]: tensor for name, tensor in stored.items() if ".highway." in name}
    early_exit.exits_of(model).exits.load_state_dict(ramps)
    return model


def given_to(case: Case, *names: str) -> dict[str, Tensor]:
    """The inputs; the old RoBERTa there is a BERT whose positions stand at 2, 3, ... whatever the
    ids.
    """
    given = {name: case.inputs[name] for name in names if name in case.inputs}
    if any(name.startswith("roberta.") for name in case.weights):
        given["position_ids"] = torch.arange(case.inputs["input_ids"].shape[1]).expand_as(case.inputs["input_ids"]) + 2
    return given


def training(case: Case) -> Mapping[str, Any]:
    model = loaded(case).train()
    given = given_to(case, *INPUTS, "labels")
    ramps = early_exit.all_ramps(model, given)
    return {
        "loss_stage1": ramps.output.loss,
        "loss_stage2": early_exit.ramp_loss(model, given),
        "logits": ramps.output.logits,
        **{f"highway_logits.{layer}": logits for layer, logits in enumerate(ramps.logits)},
        **{f"highway_pooled.{layer}": pooled for layer, pooled in enumerate(ramps.pooled)},
    }


def inference(case: Case) -> Mapping[str, Any]:
    model = loaded(case).eval()
    given = given_to(case, *INPUTS)
    found: dict[str, Any] = {
        "highway_entropy": torch.stack(
            [early_exit.entropy(logits) for logits in early_exit.all_ramps(model, given).logits], 1
        )
    }
    for threshold in ("none", *case.config["entropy_thresholds"]):
        exits = early_exit.classify(model, given, threshold=-1.0 if threshold == "none" else threshold)
        found |= {f"logits.{threshold}": exits.logits, f"exit_layer.{threshold}": exits.layers}
    return found


ADAPTERS: dict[str, Adapter] = {"all-exits": training, "early-exit": inference}
