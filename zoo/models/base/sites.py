"""The places of a model that a technique may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from zoo.layers.schedule import Schedule
from zoo.layers.stack import Stack


@dataclass(frozen=True)
class Site:
    """A place in a model that a technique may change: ``path`` of the part, its ``role``, its
    ``stream`` and the ``depths`` at which it runs.
    """

    path: str
    role: str
    stream: str
    depths: tuple[int, ...]
    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        return self.parent.get_submodule(self.name)

    def replace(self, module: nn.Module) -> None:
        """Put another part there, under the same name."""
        setattr(self.parent, self.name, module)


def _sites(
    module: nn.Module, path: str, stream: str, own_depths: tuple[int, ...], streams: tuple[str, ...] = ()
) -> Iterator[Site]:
    """The places in a part of a stream; its children that bear one of the names in ``streams`` are those streams'."""
    roles: Mapping[str, str] = getattr(module, "roles", {})
    for name, child in module.named_children():
        depths = tuple(
            sorted({*own_depths, *getattr(child, "also_at", ())})
        )  # a part that other layers borrow runs at theirs too
        where = f"{path}.{name}" if path else name
        if name in roles and isinstance(child, nn.ModuleList):
            for index in range(len(child)):
                yield Site(
                    f"{where}.{index}", roles[name], getattr(module, "stream", stream), depths, child, str(index)
                )
        elif name in roles:
            yield Site(where, roles[name], getattr(module, "stream", stream), depths, module, name)
        if isinstance(child, Stack):
            yield from _stack_sites(child, where, getattr(child, "stream", stream))
        elif isinstance(child, Schedule):
            yield from _schedule_sites(child, where)
        else:
            own = name if name in streams else getattr(child, "stream", stream)
            yield from _sites(child, where, own, depths)


def _stack_sites(stack: Stack, path: str, stream: str) -> Iterator[Site]:
    ran: dict[str, list[int]] = {}
    for depth, where in enumerate(_runs_of(stack, path)):
        ran.setdefault(where, []).append(depth)
    for where, at in ran.items():
        yield from _sites(stack.get_submodule(where[len(path) + 1 :]), where, stream, tuple(at))


def _schedule_sites(schedule: Schedule, path: str) -> Iterator[Site]:
    """A block of one stream is that stream's; in a block of several the part named like a stream
    is, and what is left is "joint". A depth is a step's number.
    """
    ran: dict[str, tuple[tuple[str, ...], list[int]]] = {}
    for depth, (where, writes) in enumerate(schedule.runs()):
        ran.setdefault(where, (writes, []))[1].append(depth)
    for where, (writes, at) in ran.items():
        block = schedule.get_submodule(where)
        if len(writes) == 1:
            yield from _sites(block, f"{path}.{where}", writes[0], tuple(at))
        else:
            yield from _sites(block, f"{path}.{where}", "joint", tuple(at), writes)


def _runs_of(stack: Stack, path: str) -> Iterator[str]:
    for index in stack.plan:
        block, where = stack.blocks[index], f"{path}.blocks.{index}"
        if isinstance(block, Stack):
            yield from _runs_of(block, where)
        else:
            yield where
