"""Fine-tuning by depth, for every family by the same names: rates that fall with depth, layers that
are frozen, blocks that forget.

A part's depth is where it first runs: in a stack the place in its plan, in a schedule of several
streams the number of its step. A block that runs at several depths (ALBERT) lies at its first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from zoo.errors import ConfigError
from zoo.layers.convolution import ConvStack
from zoo.layers.extend import extend, without
from zoo.layers.schedule import Schedule
from zoo.layers.stack import Stack
from zoo.models.base.model import bare_model
from zoo.training.optimizers import NO_DECAY, Group, layerwise_groups
from zoo.training.recomputing import Checkpointed


@dataclass(frozen=True)
class Place:
    """A block: its ``path``, the ``streams`` that it writes, the ``depths`` at which it runs."""

    path: str
    streams: tuple[str, ...]
    depths: tuple[int, ...]


def blocks_of(model: nn.Module) -> list[Place]:
    """Every block of a model (or of the one inside a task model), by the paths of the bare model,
    in the order in which they run.
    """
    found: dict[str, tuple[tuple[str, ...], list[int]]] = {}
    inside: list[str] = []
    for path, part in bare_model(model).named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if isinstance(part, Stack):
            inside.append(path)
            for depth, where in enumerate(_runs(part, path)):
                found.setdefault(where, ((getattr(part, "stream", "text"),), []))[1].append(depth)
        elif isinstance(part, ConvStack):
            inside.append(path)
            for depth in range(len(part.blocks)):
                found.setdefault(f"{path}.blocks.{depth}", (("image",), []))[1].append(depth)
        elif isinstance(part, Schedule):
            inside.append(path)
            for depth, (where, writes) in enumerate(part.runs()):
                found.setdefault(f"{path}.{where}", (writes, []))[1].append(depth)
    return [Place(path, streams, tuple(depths)) for path, (streams, depths) in found.items()]


def _runs(stack: Stack, path: str) -> list[str]:
    paths: list[str] = []
    for index in stack.plan:
        block, where = stack.blocks[index], f"{path}.blocks.{index}"
        paths += _runs(block, where) if isinstance(block, Stack) else [where]
    return paths


def parameter_depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """The depth of each parameter of a model, by its name there, and the greatest.

    0: embeddings, i + 1: what runs first at depth i, the number of depths + 2: poolers, heads and
    what else stands behind the blocks.
    """
    bare = bare_model(model)
    prefix = "" if bare is model else "model."
    places = blocks_of(model)
    if not places:
        raise ConfigError(f"{type(bare).__name__} has no stack and no schedule, so its parts have no depth")
    last = 2 + 1 + max(depth for place in places for depth in place.depths)
    front = [path for path, _ in bare.named_modules() if _embeds(path)]
    depths = {}
    for name, _ in model.named_parameters():
        own = name.removeprefix(prefix) if name.startswith(prefix) else ""
        at = [place.depths[0] + 1 for place in places if own.startswith(f"{place.path}.")]
        depths[name] = at[0] if at else 0 if any(own.startswith(f"{path}.") for path in front) else last
    return depths, last


def _embeds(path: str) -> bool:
    return path.rpartition(".")[2].endswith(("embeddings", "stem"))


def layerwise_groups_of(
    model: nn.Module, rate: float, factor: float, weight_decay: float = 0.01, exempt: re.Pattern[str] | str = NO_DECAY
) -> list[Group]:
    """Groups for an optimizer in which each depth has ``factor`` times the rate of the one above
    it; heads have ``rate``.

    What is frozen is left out.
    """
    depths, last = parameter_depths(model)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return layerwise_groups(trained, rate, factor, last - 2, weight_decay, exempt, lambda name, _: depths[name])


def freeze(
    model: nn.Module, depths: Sequence[int] = (), *, embeddings: bool = False, streams: Sequence[str] = ()
) -> list[str]:
    """Freeze the blocks that run at ``depths`` (of these ``streams``; empty: of all), and the
    embeddings where asked for.

    -> the names that are frozen now. A block that also runs at a depth not named (ALBERT) is
    refused: it can't be frozen by halves.
    """
    places = blocks_of(model)
    known = sorted({depth for place in places for depth in place.depths})
    if missing := [depth for depth in depths if depth not in known]:
        raise ConfigError(f"depth {missing[0]} is none of this model's: {known[0]} to {known[-1]}")
    wanted = [p for p in places if set(p.depths) & set(depths) and (not streams or set(p.streams) & set(streams))]
    for place in wanted:
        if rest := sorted(set(place.depths) - set(depths)):
            raise ConfigError(
                f"{place.path} runs at the depths {rest} too; name all of its depths, {list(place.depths)}, or none"
            )
    bare = bare_model(model)
    paths = [place.path for place in wanted]
    if embeddings:
        paths += [path for path, _ in bare.named_modules() if path and _embeds(path)]
    prefix, names = "" if bare is model else "model.", []
    for name, parameter in model.named_parameters():
        if any(name.startswith(f"{prefix}{path}.") for path in paths):
            parameter.requires_grad_(False)
            names.append(name)
    if not names:
        raise ConfigError(
            f"nothing to freeze at depths={tuple(depths)}, streams={tuple(streams)}, embeddings={embeddings}"
        )
    return names


def checkpoint_blocks(model: nn.Module, depths: Sequence[int] = ()) -> int:
    """Let the blocks (of these ``depths``; empty: all) compute their inner results again in the
    backward pass. -> how many blocks do.

    Results, gradients and names of tensors stay as they are; memory falls to one tensor a block, a
    step takes about a third longer.
    """
    bare, count = bare_model(model), 0
    for place in blocks_of(model):
        if not depths or set(place.depths) & set(depths):
            extend(bare.get_submodule(place.path), Checkpointed)
            count += 1
    return count


def keep_blocks(model: nn.Module) -> None:
    """Undo `checkpoint_blocks`."""
    for part in list(bare_model(model).modules()):
        if isinstance(part, Checkpointed):
            part.__class__ = without(type(part), Checkpointed)
