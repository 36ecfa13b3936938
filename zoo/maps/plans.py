"""Plans: what a conversion will do, known before a tensor is read.

Source names are those of the file that is read, target names those of the file that is written:
forward the foreign layout's and the zoo's, back the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.archive import Info
from zoo.maps.ops import Op, Shape


@dataclass(frozen=True)
class PlanStep:
    """What is made in one go: the tensors to read, the operations, the tensors that come out."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    rule: str = ""
    constant: str = ""  # "identity", "zeros", "ones": made from nothing

    def run(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The targets; often views of what was read."""
        if self.constant:
            return {self.targets[0]: constant(self.constant, self.shapes[0], DTYPES[self.dtypes[0]])}
        tensors = [read(name) for name in self.sources]
        for op in self.ops:
            tensors = op.run(tensors)
        return dict(zip(self.targets, tensors, strict=True))


@dataclass(frozen=True)
class Target(Info):
    """What a model takes under a name: a shape, and a dtype in the words of safetensors, of which for
    floats only the kind counts. ``apart``: a float that need not be of the others' dtype, such as the
    scale beside weights that are stored as integers.
    """

    apart: bool = False


def constant(kind: str, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A tensor that a layout implies without storing it."""
    if kind == "identity":
        return torch.eye(*shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype) if kind == "zeros" else torch.ones(shape, dtype=dtype)


@dataclass(frozen=True)
class Plan:
    """All that a conversion will do, known before a single tensor is read."""

    layout: str
    version: int
    steps: tuple[PlanStep, ...]
    prefix: str
    heads: frozenset[str]  # heads that come out
    dropped: Mapping[str, str] = field(default_factory=dict)  # source: reason
    left_out: Mapping[str, str] = field(default_factory=dict)  # source: reason; heads nobody asked for
    ties: tuple[tuple[str, str], ...] = ()  # (copy, original): sources that must hold equal bits
    passengers: tuple[str, ...] = ()  # targets that are carried along under their own names
    checks: tuple[tuple[str, str], ...] = ()  # (source, constant): implied by the layout, so it must be exactly that
    missing: tuple[str, ...] = ()  # targets that nothing makes
    absent_heads: frozenset[str] = frozenset()  # heads asked for of which the file has no tensor
    losses: Mapping[str, str] = field(default_factory=dict)  # target: what was thrown away on the way
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()  # only with inspect=True: what would have been an error

    @property
    def outputs(self) -> dict[str, Info]:
        """Target name -> shape and dtype, in order."""
        return {
            name: Info(shape, dtype)
            for step in self.steps
            for name, shape, dtype in zip(step.targets, step.shapes, step.dtypes, strict=True)
        }

    def run(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Every target at once, for small models and tests; ``zoo.checkpoints.streaming`` writes
        them one at a time.
        """
        return {name: tensor for step in self.steps for name, tensor in step.run(read).items()}


def shape_of(target: object) -> Shape:
    """The shape of a target, given as a shape or as something that has one."""
    return tuple(cast(Shape, getattr(target, "shape", target)))


def head_of(name: str) -> str:
    """``masked_lm`` for ``heads.masked_lm.bias``; empty for a name of the backbone."""
    parts = name.split(".")
    return parts[1] if parts[0] == "heads" and len(parts) > 2 else ""


def heads_of(names: Iterable[str]) -> set[str]:
    """The heads among the zoo's names."""
    return {head for name in names if (head := head_of(name))}
