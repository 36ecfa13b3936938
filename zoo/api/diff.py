"""`zoo.diff`: what differs between two models or checkpoints, in words and numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.load import load
from zoo.errors import counted
from zoo.layers.init import shapes_only
from zoo.layers.stack import Stack
from zoo.models.base.model import bare_model
from zoo.registry import variants as registry
from zoo.tasks.base import TaskModel, canonical_state

MOST = 8  # tensors of each kind that are named


@dataclass(frozen=True)
class Difference:
    """What differs. ``config``: fields by name, (left's, right's), None where a side lacks it.
    ``parameters``: by part, (left's, right's) number. ``sharing``: by stack, how often each block runs.
    ``objective``: the terms of pre-training. ``techniques``, ``task``, ``family``: of both sides.
    ``tensors``: of two checkpoints, how the names and values meet; None where a side has no weights.
    """

    left: str
    right: str
    family: tuple[str, str]
    task: tuple[str | None, str | None]
    config: Mapping[str, tuple[Any, Any]]
    parameters: Mapping[str, tuple[int, int]]
    sharing: Mapping[str, tuple[str | None, str | None]]
    objective: tuple[tuple[str, ...], tuple[str, ...]]
    techniques: tuple[tuple[str, ...], tuple[str, ...]]
    tensors: Mapping[str, Any] | None = field(default=None)

    @property
    def same(self) -> bool:
        """Whether nothing differs that is looked at."""
        pairs = (self.family, self.task, self.objective, self.techniques)
        numbers = all(left == right for left, right in self.parameters.values())
        values = self.tensors is None or self.tensors["equal"] == self.tensors["all"]
        return not self.config and not self.sharing and numbers and values and all(a == b for a, b in pairs)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        """One difference a line."""
        if self.same:
            yield f"{self.left} and {self.right} are the same in all that is compared"
            return
        for what, (left, right) in (
            ("family", self.family),
            ("task", self.task),
            ("objective", self.objective),
            ("techniques", self.techniques),
        ):
            if left != right:
                yield f"{what}: {_shown(left)} | {_shown(right)}"
        for name, (left, right) in self.config.items():
            yield f"config {name}: {_shown(left)} | {_shown(right)}"
        for name, (left, right) in self.sharing.items():
            yield f"blocks of {name}: {_shown(left)} | {_shown(right)}"
        for part, (one, other) in self.parameters.items():
            if one != other:
                ratio = f", {other / one:.2f} x" if one and other else ""
                yield f"parameters of {part}: {one:,} | {other:,}{ratio}"
        if self.tensors is not None:
            found = self.tensors
            yield f"tensors: {found['equal']} of {found['all']} names hold equal values"
            for kind, title in (("left", f"only in {self.left}"), ("right", f"only in {self.right}")):
                if found[kind]:
                    yield f"  {title}: {_some(found[kind])}"
            if found["shapes"]:
                yield "  other shapes: " + _some([f"{n} {a} | {b}" for n, (a, b) in found["shapes"].items()])
            for name, share in list(found["values"].items())[:MOST]:
                yield f"  {name}: differs by {share:.2e} of its norm"
            if len(found["values"]) > MOST:
                yield f"  and {len(found['values']) - MOST} more"


def diff(left: str | os.PathLike[str], right: str | os.PathLike[str]) -> Difference:
    """Compare two registered names (what they are), or two files or folders (their weights too), or one
    with the other: sizes, sharing, norms, masks, objective, techniques, parameters by part, values.

    A name is compared as its config says, without a checkpoint.
    """
    sides = [_Side.of(source) for source in (left, right)]
    one, other = sides
    fields = {**one.config, **other.config}
    config = {n: (one.config.get(n), other.config.get(n)) for n in fields if one.config.get(n) != other.config.get(n)}
    parts = dict.fromkeys([*one.parts, *other.parts])
    stacks = dict.fromkeys([*one.sharing, *other.sharing])
    sharing = {n: (one.sharing.get(n), other.sharing.get(n)) for n in stacks}
    return Difference(
        left=one.name,
        right=other.name,
        family=(one.family, other.family),
        task=(one.task, other.task),
        config=config,
        parameters={part: (one.parts.get(part, 0), other.parts.get(part, 0)) for part in [*parts, "all"]}
        | {"all": (sum(one.parts.values()), sum(other.parts.values()))},
        sharing={name: pair for name, pair in sharing.items() if pair[0] != pair[1]},
        objective=(one.objective, other.objective),
        techniques=(one.techniques, other.techniques),
        tensors=_tensors(one.state, other.state) if one.state is not None and other.state is not None else None,
    )


@dataclass(frozen=True)
class _Side:
    name: str
    family: str
    task: str | None
    config: Mapping[str, Any]
    parts: Mapping[str, int]
    sharing: Mapping[str, str]
    objective: tuple[str, ...]
    techniques: tuple[str, ...]
    state: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, source: str | os.PathLike[str]) -> _Side:
        name = os.fspath(source)
        stored = Path(name).exists() or name.startswith("hub:")
        if stored:
            model: Any = load(name)
        else:
            variant, _ = registry.resolve(name)
            with shapes_only():
                model = variant.model_class()(registry.config(name))
        bare = bare_model(model)
        families = [f for f, variants in registry.families().items() if variants[0].model_class() in type(bare).__mro__]
        parts: dict[str, int] = {}
        for key, parameter in _named(model):
            part = ".".join(key.split(".")[: 2 if key.startswith("heads.") else 1])
            parts[part] = parts.get(part, 0) + parameter.numel()
        return cls(
            name,
            families[0] if families else type(bare).__name__,
            model.task if isinstance(model, TaskModel) else None,
            bare.config.to_dict(),
            parts,
            dict(_plans(bare)),
            tuple(term.name for term in type(bare).pretraining),
            tuple(str(each) for each in bare.techniques),
            dict(canonical_state(model)) if stored else None,
        )


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    prefix = "model." if isinstance(model, TaskModel) else ""
    for name, parameter in model.named_parameters():
        yield name.removeprefix(prefix), parameter


def _plans(model: nn.Module) -> Iterator[tuple[str, str]]:
    """How the blocks of each stack run: how many there are, and how often."""
    for path, part in model.named_modules():
        if isinstance(part, Stack):
            count, runs = len(set(part.plan)), len(part.plan)
            shown = counted(count, "block")
            yield path, f"{runs} runs of {shown}" if runs != count else f"{shown}, each once"


def _tensors(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Any]:
    both = [name for name in left if name in right]
    shapes = {n: (tuple(left[n].shape), tuple(right[n].shape)) for n in both if left[n].shape != right[n].shape}
    values = {}
    for name in both:
        if name not in shapes and not torch.equal(left[name], right[name]):
            one, other = left[name].double(), right[name].double()
            values[name] = float((one - other).norm() / one.norm().clamp(min=1e-30))
    ranked = dict(sorted(values.items(), key=lambda item: -item[1]))
    return {
        "all": len({*left, *right}),
        "equal": len(both) - len(shapes) - len(values),
        "left": [name for name in left if name not in right],
        "right": [name for name in right if name not in left],
        "shapes": shapes,
        "values": ranked,
    }


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST]) + (f", and {len(names) - MOST} more" if len(names) > MOST else "")
