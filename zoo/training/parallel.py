"""Several processes: `shard` for FSDP2, and what `fit` needs to run as one of several.

torchrun --nproc-per-node 8 train.py

torch.distributed.init_process_group()
model = zoo.training.shard(model)                            # parameters, gradients and states in shares
model = torch.nn.parallel.DistributedDataParallel(model)     # or: a whole copy each
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.models.base.model import bare_model, unwrapped
from zoo.tasks.processes import world
from zoo.training.fine_tuning import blocks_of


def shard(model: nn.Module, **options: Any) -> nn.Module:
    """Share out a model's parameters over the processes of a group (FSDP2's ``fully_shard``), block by
    block, in place. -> the model.

    Each block is gathered when it runs and let go after; what stands outside of blocks (embeddings,
    poolers, heads, and so tables that heads are tied to) belongs to the model and stays gathered while
    it runs. A block that runs at several depths (ALBERT) is shared out once. Single numbers (a
    temperature) stay whole, and their gradients are averaged. options: of
    ``torch.distributed.fsdp.fully_shard``, such as ``mesh=`` and ``mp_policy=``.
    """
    if not dist.is_initialized():
        raise ConfigError("there is no group of processes; start by torchrun and call init_process_group() first")
    from torch.distributed.fsdp import fully_shard

    inner = unwrapped(model)
    bare = bare_model(inner)
    for place in blocks_of(inner):
        fully_shard(bare.get_submodule(place.path), **options)
    single = {parameter for parameter in inner.parameters() if parameter.dim() == 0}
    if single:
        options["ignored_params"] = {*options.get("ignored_params", ()), *single}
    fully_shard(inner, **options)
    for parameter in single:
        parameter.register_post_accumulate_grad_hook(_averaged)
    return model


@torch.no_grad()
def _averaged(parameter: Tensor) -> None:
    """The mean of a gradient over all processes; what was averaged before is the same in all of them."""
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= world()


@contextmanager
def copies(model: nn.Module) -> Iterator[nn.Module]:
    """The model as each process of a torchrun has a copy of it (DistributedDataParallel), on its own
    device; as it is where there is one process.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield model
        return
    dist.init_process_group()
    try:
        if torch.cuda.is_available():
            model = model.to(torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))))
        yield nn.parallel.DistributedDataParallel(model)
    finally:
        dist.destroy_process_group()


def is_share(tensor: Tensor) -> bool:
    """Whether a tensor is one process's share of a whole."""
    return hasattr(tensor, "full_tensor")


def mean_over_processes(value: float, device: torch.device) -> float:
    """The mean of a number over all processes."""
    if world() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total) / world()


def gathered(tensor: Tensor) -> list[Tensor]:
    """A tensor of every process, in their order; on the CPU."""
    if world() == 1:
        return [tensor]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, tensor.cpu())
    return found
