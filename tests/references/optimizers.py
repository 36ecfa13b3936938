"""Optimiser cases: initial parameters and the gradients of each step in, the parameters after each
step out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.references.case import Case
from zoo.training.optimizers import BertAdam, clip_gradients
from zoo.training.schedules import Schedule, scheduler


def train(
    case: Case, make: Callable[[dict[str, Tensor]], BertAdam], schedule: Schedule, rate: float
) -> dict[str, Tensor]:
    """``make`` gets the named parameters; one clipped, scheduled step for each ``grad.k``."""
    start = {name.removeprefix("param0."): value for name, value in case.inputs.items() if name.startswith("param0.")}
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = make(dict(parameters))
    learning_rate = scheduler(optimizer, schedule, rate)
    after = {}
    step = 1
    while any(name.startswith(f"grad.{step}.") for name in case.inputs):
        for name, parameter in parameters.items():
            gradient = case.inputs.get(f"grad.{step}.{name}")
            parameter.grad = None if gradient is None else gradient.clone()
        clip_gradients(parameters.values(), 1.0)
        optimizer.step()
        learning_rate.step()
        after |= {f"param.{step}.{name}": parameter.detach().clone() for name, parameter in parameters.items()}
        step += 1
    return after
