"""The entries of a map: rules, ties, constants and what is made from them."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.maps.ops import Op
from zoo.maps.templates import Condition, Template


@dataclass(frozen=True)
class Rule:
    """One line of ``[rules]`` with its word placeholders filled in."""

    label: str
    sources: tuple[Template, ...]
    targets: tuple[Template, ...]
    ops: tuple[Op, ...] = ()
    over: str = ""  # the placeholder that counts the pieces of a join, split, stack or unstack
    when: tuple[Condition, ...] = ()
    otherwise: str = ""  # why the source is left out where `when` does not hold
    optional: bool = False
    head: str = ""
    bare: bool = False  # stands outside the file-level prefix
    replaces: Template | None = None  # a source that this one makes useless where both are stored

    def flipped(self) -> Rule:
        """The same rule read from right to left."""
        ops = tuple(op.inverse() for op in reversed(self.ops))
        return Rule(
            self.label,
            self.targets,
            self.sources,
            ops,
            self.over,
            self.when,
            self.otherwise,
            self.optional,
            self.head,
            self.bare,
        )

    @property
    def condition(self) -> str:
        return " and ".join(condition.text for condition in self.when)


@dataclass(frozen=True)
class Tie:
    """A stored copy of another source tensor."""

    label: str
    copy: Template
    original: Template
    when: tuple[Condition, ...]
    head: str
    bare: bool
    canonical: bool


@dataclass(frozen=True)
class Plain:
    """A source that is dropped or carried along, with its reason."""

    label: str
    source: Template
    reason: str
    when: tuple[Condition, ...]
    head: str
    bare: bool
    passenger: bool


@dataclass(frozen=True)
class Make:
    """A tensor of ours that a layout implies without storing it."""

    target: str
    kind: str
    shape: tuple[int | str, ...]
    when: tuple[Condition, ...]


Entry = Rule | Tie | Plain
