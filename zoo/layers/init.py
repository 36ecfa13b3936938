"""Initialization: random weights as the papers draw them, and modules that are names and shapes
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Undrawn(TorchFunctionMode):
    """`torch.nn.init` does nothing inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build parts on the meta device: shapes without numbers. Drawing them, which would do nothing
    there, would load half of torch.
    """
    with torch.device("meta"), _Undrawn():
        yield


def initialise(module: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """Draw every Linear and Embedding of ``module`` from a normal of ``std`` cut at two of them, and
    every convolution of one of ``sqrt(2 / numbers that an output sums)`` (He et al., 2015); biases 0;
    norms 1 and 0; batch norms have seen nothing yet.

    A part with other needs defines ``init_parameters(std, generator)`` and is asked instead,
    parameters of its children excepted.
    """
    with torch.no_grad():
        for part in module.modules():
            own = getattr(part, "init_parameters", None)
            if own is not None:
                own(std, generator)
            elif isinstance(part, (nn.Linear, nn.Embedding, *CONVOLUTIONS)):
                fan_in = part.weight[0].numel() if isinstance(part, CONVOLUTIONS) else None
                truncated_normal(part.weight, std if fan_in is None else (2 / fan_in) ** 0.5, generator)
                if not isinstance(part, nn.Embedding) and part.bias is not None:
                    part.bias.zero_()
            elif isinstance(part, (nn.LayerNorm, nn.GroupNorm, *BATCH_NORMS)):
                if part.weight is not None:
                    part.weight.fill_(1)
                if part.bias is not None:
                    part.bias.zero_()
                if isinstance(part, BATCH_NORMS):
                    part.reset_running_stats()
            elif next(part.parameters(recurse=False), None) is not None:
                raise NotImplementedError(f"{type(part).__name__} has parameters of its own and no init_parameters")


def truncated_normal(weight: Tensor, std: float, generator: torch.Generator | None = None) -> None:
    """Fill with a normal of ``std`` cut at two of them (as TensorFlow's truncated normal, which BERT
    used): the inverse of its distribution function at uniform numbers.
    """
    if weight.device.type == "meta":
        return
    inside = math.erf(2 / math.sqrt(2))  # the share that lies within two deviations
    drawn = weight if weight.dtype in (torch.float32, torch.float64) else torch.empty_like(weight, dtype=torch.float32)
    drawn.uniform_(-inside, inside, generator=generator).erfinv_().mul_(std * math.sqrt(2))
    if drawn is not weight:
        weight.copy_(drawn)
