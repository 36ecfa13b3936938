"""BERT-of-Theseus (Xu et al., 2020): while training, each group of layers is replaced by one new
layer with a chance that grows to 1.

    for each group i of n / m layers:  x = successor_i(x) with probability p, else the group's layers

The draw is one for a whole batch.
In eval mode only the successors run. The loss is the task's alone, and only the successors learn.

    zoo.apply(model, zoo.Theseus(layers=6))
    optimizer = torch.optim.AdamW(theseus.successor_parameters(model), lr=2e-5)
    schedule = theseus.LinearReplacement(model, base=0.3, rise=0.0006)   # schedule.step() after each optimizer.step()
    theseus.finish(model)                                                # an ordinary model of 6 layers
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.extend import Extension, extend, restore
from zoo.layers.init import initialise
from zoo.layers.masks import Mask
from zoo.layers.stack import Stack
from zoo.layers.trace import Trace
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model, bare_model, on_meta
from zoo.techniques.base import Technique, parts_of, refuse_read_depths
from zoo.techniques.blueprint import Blueprint


class Replacing(Extension):
    """A stack whose ``plan`` runs the successors, and which, while training, draws for each whether
    the group before it runs instead.
    """

    groups: tuple[tuple[int, ...], ...]
    plan: tuple[int, ...]
    blocks: nn.ModuleList
    rate: float
    draws: tuple[int, ...] | None

    def forward(self, x: Tensor, mask: Mask, bias: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        draws = self.draws
        if draws is None:
            draws = (
                tuple((torch.rand(len(self.plan)) < self.rate).int().tolist())
                if self.training
                else (1,) * len(self.plan)
            )
        for successor, group, drawn in zip(self.plan, self.groups, draws, strict=True):  # eq: replacement
            for index in (successor,) if drawn else group:
                x = self.blocks[index](x, mask, bias, trace)
                if trace is not None and not isinstance(self.blocks[index], Stack):
                    trace.hidden(x)
        return x


@dataclass(frozen=True, kw_only=True)
class Theseus(Technique):
    """``layers`` successors beside a stack's n layers, each for n / layers of them; they begin as
    the first layers, or at random with another ``num_heads`` or ``intermediate_size``. ``rate``:
    the first chance to be used while training; ``stack``: its path.
    """

    layers: int = 6  # successors
    rate: float = 0.5  # first chance that a successor is used
    stack: str = "encoder"  # path of the stack
    num_heads: int = 0  # of the successors; 0: the stack's
    intermediate_size: int = 0  # of the successors; 0: the stack's

    def check(self) -> None:
        check_positive(self, "layers")
        check_rate(self.rate)

    def sizes(self, model: Model) -> dict[str, int]:
        """The config fields in which the successors differ."""
        given = {name: getattr(self, name) for name in ("num_heads", "intermediate_size") if getattr(self, name)}
        if lacking := [name for name in given if name not in model.config.field_names()]:
            raise TechniqueError(f"{type(model.config).__name__} has no {lacking[0]} in which successors could differ")
        return {name: value for name, value in given.items() if value != getattr(model.config, name)}

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        part = dict(model.named_modules()).get(self.stack)
        if type(part) is not Stack:
            kind = "nothing there" if part is None else f"a {type(part).__name__}"
            raise TechniqueError(
                f"Theseus needs a plain stack of layers at {self.stack!r}; {type(model).__name__} has {kind}"
            )
        stack: Any = part
        if len(set(stack.plan)) != len(stack.plan):
            raise TechniqueError(
                f"{self.stack} runs a block at several depths, so fewer layers save no parameters; replace nothing "
                "there"
            )
        if len(stack.plan) % self.layers or self.layers >= len(stack.plan):
            raise TechniqueError(f"layers={self.layers} must divide the {len(stack.plan)} of {self.stack} and be fewer")
        refuse_read_depths(self, model)
        if getattr(model, "prefixes", None) is not None:
            raise TechniqueError(
                "the model has prefixes, which its attentions hold by reference and which copies of them would not "
                "share; apply Theseus first"
            )
        successors = [copy.deepcopy(stack.blocks[index]) for index in stack.plan[: self.layers]]
        if sizes := self.sizes(model):
            config = model.config.replace(num_layers=self.layers, **sizes)
            other = replace(Blueprint.of(model), config=config, techniques=()).on_meta()
            like = next(stack.parameters())
            successors = list(other.get_submodule(self.stack).blocks)
            for block in successors:
                block.to(like.dtype)
                if not like.is_meta:
                    block.to_empty(device=like.device)
                    initialise(block, model.config.initializer_range, generator)
        span, first = len(stack.plan) // self.layers, len(stack.blocks)
        for block in successors:
            stack.blocks.append(block.train(stack.training))
        extend(stack, Replacing)
        stack.groups = tuple(tuple(stack.plan[i * span : (i + 1) * span]) for i in range(self.layers))
        stack.plan = tuple(range(first, first + self.layers))
        stack.rate, stack.draws = self.rate, None
        return [f"{self.layers} successors, each for {span} layers of {self.stack}"]


def check_rate(rate: float) -> None:
    """Raise ConfigError unless a replacing rate lies in (0, 1]."""
    if not 0 < rate <= 1:
        raise ConfigError(f"a replacing rate must be more than 0 and at most 1, got {rate}")


def stacks_of(model: nn.Module) -> list[tuple[str, Any]]:
    """The stacks that are being replaced, with their paths."""
    found = list(parts_of(model, Replacing).items())
    if not found:
        raise TechniqueError(f"{type(bare_model(model)).__name__} has no successors; apply zoo.Theseus first")
    return found


def set_rate(model: nn.Module, rate: float) -> None:
    """The chance that a successor runs in place of its group while training."""
    check_rate(rate)
    for _, stack in stacks_of(model):
        stack.rate = rate


@contextmanager
def replacing(model: nn.Module, draws: Sequence[int]) -> Iterator[None]:
    """Inside, these draws (1 = successor) are used in place of random ones, in training and in
    eval.
    """
    stacks = stacks_of(model)
    for _, stack in stacks:
        if len(draws) != len(stack.plan):
            raise TechniqueError(f"a draw for each of the {len(stack.plan)} successors is needed, got {len(draws)}")
        stack.draws = tuple(draws)
    try:
        yield
    finally:
        for _, stack in stacks:
            stack.draws = None


def successor_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What learns: the successors' parameters. All others are the predecessor's and stay."""
    return [
        parameter
        for _, stack in stacks_of(model)
        for index in stack.plan
        for parameter in stack.blocks[index].parameters()
    ]


class ConstantReplacement:
    """The rate is ``rate`` for ``steps`` steps, then 1; with ``steps`` None it never changes."""

    def __init__(self, model: nn.Module | None, rate: float, steps: int | None) -> None:
        self.model, self.rate, self.steps, self.count = model, rate, steps, 0
        self._set(rate)

    def _set(self, rate: float) -> None:
        self.rate = rate
        if self.model is not None:
            set_rate(self.model, rate)

    def step(self) -> float:
        """After an optimizer step. -> the rate from here on."""
        self.count += 1
        if self.steps is not None and self.rate != 1.0 and self.count >= self.steps:
            self._set(1.0)
        return self.rate


class LinearReplacement(ConstantReplacement):
    """The rate is ``min(1, base + rise · t)`` after t steps."""

    def __init__(self, model: nn.Module | None, base: float, rise: float) -> None:
        super().__init__(model, base, None)
        self.base, self.rise = base, rise

    def step(self) -> float:
        self.count += 1
        self._set(min(self.rise * self.count + self.base, 1.0))  # eq: linear-rate
        return self.rate


def finish(model: nn.Module) -> None:
    """Leave the successors alone, as the layers of an ordinary, smaller model, which any layout
    takes.
    """
    bare = bare_model(model)
    if on_meta(bare):
        raise TechniqueError("a model on the meta device has not been trained; there is nothing to finish")
    done = [t for t in bare.techniques if isinstance(t, Theseus)]
    fields = {name: value for t in done for name, value in t.sizes(bare).items()}
    for path, stack in stacks_of(bare):
        count = len(stack.plan)
        if path != "encoder" or "num_layers" not in bare.config.field_names():
            raise TechniqueError(
                f"the config of {type(bare).__name__} has no number of layers for {path}; keep the successors as they "
                "are"
            )
        stack.blocks = nn.ModuleList([stack.blocks[index] for index in stack.plan])
        stack.plan = tuple(range(count))
        for name in ("groups", "rate", "draws"):
            delattr(stack, name)
        restore(stack, Replacing)
        bare.config = bare.config.replace(num_layers=count, **fields)
    bare.techniques = tuple(t for t in bare.techniques if not isinstance(t, Theseus))
