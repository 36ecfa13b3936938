"""Contrastive losses of several systems' reference code, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.processes import in_processes
from tests.references.case import Case
from zoo.tasks.contrast import clip_loss, nt_xent, nt_xent_logits, queue_logits, queue_loss, sigmoid_loss


def leaves(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The floating inputs as leaves of a graph."""
    return {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in inputs.items()}


def learned(loss: Tensor, given: Mapping[str, Tensor], between: str = ".") -> dict[str, Tensor]:
    """A loss and its gradients, as ``grad.name``."""
    loss.backward()
    gradients = {f"grad{between}{name}": x.grad for name, x in given.items() if x.grad is not None}
    return {"loss": loss.detach(), **gradients}


def image_text(loss: Callable[..., Tensor]) -> Callable[[Case], Mapping[str, Any]]:
    """open_clip's ClipLoss and SigLipLoss in one process."""

    def adapter(case: Case) -> Mapping[str, Any]:
        given = leaves(case.inputs)
        return learned(
            loss(given["image_features"], given["text_features"], given["logit_scale"], given.get("logit_bias")), given
        )

    return adapter


def of_rank(case: Case, rank: int) -> dict[str, Tensor]:
    """The inputs of one process, by their names without its number."""
    return leaves(
        {n.removesuffix(f".{rank}"): x for n, x in case.inputs.items() if n.endswith(f".{rank}") or "." not in n}
    )


def clip_distributed(case: Case) -> Mapping[str, Any]:
    """open_clip's ClipLoss on several processes, with each pair of its two switches."""

    def work(rank: int) -> dict[str, Tensor]:
        found = {}
        for local in (False, True):
            for gradients in (False, True):
                given = of_rank(case, rank)
                loss = clip_loss(
                    given["image_features"],
                    given["text_features"],
                    given["logit_scale"],
                    given.get("logit_bias"),
                    local=local,
                    gradients=gradients,
                )
                ending = f"local{int(local)}_grad{int(gradients)}.{rank}"
                found |= {f"{name}.{ending}": x for name, x in learned(loss, given).items()}
        return found

    return {name: x for part in in_processes(work, case.config["world_size"]) for name, x in part.items()}


def siglip_distributed(case: Case) -> Mapping[str, Any]:
    def work(rank: int) -> dict[str, Tensor]:
        given = of_rank(case, rank)
        loss = sigmoid_loss(
            given["image_features"], given["text_features"], given["logit_scale"], given.get("logit_bias")
        )
        return {f"{name}.{rank}": x for name, x in learned(loss, given).items()}

    return {name: x for part in in_processes(work, case.config["world_size"]) for name, x in part.items()}


def several(alone: Callable[[Case], Any], distributed: Callable[[Case], Any]) -> Callable[[Case], Mapping[str, Any]]:
    """One adapter for one process and for several, by what the case's config says."""
    return lambda case: (distributed if case.config.get("world_size", 1) > 1 else alone)(case)


open_clip = several(image_text(clip_loss), clip_distributed)
open_siglip = several(image_text(sigmoid_loss), siglip_distributed)


def lightly(case: Case) -> Mapping[str, Any]:
    """lightly's NTXentLoss: without a bank, with one, and over several processes."""
    temperature = case.config["temperature"]
    if "bank" in case.inputs:
        return lightly_bank(case)

    def work(rank: int) -> dict[str, Tensor]:
        given = of_rank(case, rank)
        return learned(nt_xent(given["out0"], given["out1"], temperature), given)

    if case.config.get("world_size", 1) == 1:
        return work(0)
    parts = in_processes(work, case.config["world_size"])
    return {f"{name}.{rank}": x for rank, part in enumerate(parts) for name, x in part.items()}


def lightly_bank(case: Case) -> Mapping[str, Any]:
    """With a bank: our queue writes round its end; lightly drops what doesn't fit and begins anew."""
    given = leaves(case.inputs)
    bank = case.inputs["bank"]  # (size, keys)
    loss = queue_loss(given["out0"], given["out1"], bank.T, case.config["temperature"], normalize=True)
    start, keys = case.config["bank_ptr_before"], F.normalize(case.inputs["out1"], dim=1)
    fits = min(len(keys), bank.shape[1] - start)
    after = bank.clone()
    after[:, start : start + fits] = keys[:fits].T
    end = start + len(keys)
    return {**learned(loss, given), "bank_after": after, "ptr_after": torch.tensor([end if end < bank.shape[1] else 0])}


def google(case: Case) -> Mapping[str, Any]:
    """google-research/simclr's add_contrastive_loss on one replica."""
    given = leaves(case.inputs)
    temperature, normalize = case.config["temperature"], case.config.get("hidden_norm", True)
    first, second = given["hidden"].chunk(2)
    n = len(first)
    logits = nt_xent_logits(first, second, temperature, normalize=normalize)
    return {
        **learned(nt_xent(first, second, temperature, normalize=normalize, scale="both"), given),
        "logits_ab": logits[:n, n:],
        "labels": F.one_hot(torch.arange(n), 2 * n).float(),
    }


def sthalles(case: Case) -> Mapping[str, Any]:
    """sthalles/SimCLR: the partner's column first, then the others in order."""
    given = leaves(case.inputs)
    temperature = case.config["temperature"]
    first, second = given["features"].chunk(2)
    logits, rows = nt_xent_logits(first, second, temperature), 2 * len(first)
    partner = (torch.arange(rows) + len(first)) % rows
    order = [[int(partner[row]), *(c for c in range(rows) if c not in (row, int(partner[row])))] for row in range(rows)]
    return {
        **learned(nt_xent(first, second, temperature), given),
        "logits": logits.gather(1, torch.tensor(order)),
        "labels": torch.zeros(rows, dtype=torch.long),
    }


def cross_lingual(case: Case) -> Mapping[str, Any]:
    """InfoXLM's contrastive_loss: a sum, and vectors as they are."""
    given = leaves({name: case.inputs[name] for name in ("q", "k")})
    queue, tau = case.inputs["queue"], case.config["tau"]
    right = (queue_logits(given["q"], given["k"], queue, tau).argmax(1) == 0).sum()
    found = learned(queue_loss(given["q"], given["k"], queue, tau, reduction="sum"), given, "_")
    return {**found, "loss_sum": found["loss"][None], "ncorrect": right[None]}
