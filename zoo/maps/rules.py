"""The lines of a map: what each says about a tensor, and all of one layout's together.

A source is a tensor of the public layout, a target one of the zoo's. `RuleSet` is plain data:
``parsing`` makes one from a table and refuses what could mean two things, ``planning`` reads it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zoo.errors import CheckpointError
from zoo.maps.ops import Op
from zoo.maps.templates import Condition, Index, Template

# parts that torch.compile, FSDP and activation checkpointing put into the names of what they wrap
WRAPPED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
COUNTS = {"n_averaged": "how many models were averaged"}  # stand beside the tensors of the wrapped model


def holds(when: Iterable[Condition], config: Mapping[str, object]) -> bool:
    """Whether all conditions hold."""
    return all(condition.holds(config) for condition in when)


def exclusive(one: Iterable[Condition], other: Iterable[Condition]) -> bool:
    """Whether two lists of conditions can't both hold."""
    other = tuple(other)
    return any(a.excludes(b) for a in one for b in other)


@dataclass(frozen=True, kw_only=True)
class MapLine:
    """What every line about a source says. ``label`` is how the map writes it."""

    label: str
    when: tuple[Condition, ...] = ()
    head: str = ""
    bare: bool = False  # stands outside the file-level prefix

    def active(self, config: Mapping[str, object]) -> bool:
        return holds(self.when, config)

    @property
    def condition(self) -> str:
        return " and ".join(condition.text for condition in self.when)

    def values(self, config: Mapping[str, object]) -> str:
        """What the config says of the fields in the conditions."""
        return ", ".join(f"{name}={config.get(name)!r}" for c in self.when for name in c.fields)


@dataclass(frozen=True, kw_only=True)
class Rule(MapLine):
    """One line of ``[rules]`` with its word placeholders filled in."""

    sources: tuple[Template, ...]
    targets: tuple[Template, ...]
    ops: tuple[Op, ...] = ()
    over: str = ""  # the placeholder that counts the pieces of a join, split, stack or unstack
    otherwise: str = ""  # why the source is left out where `when` does not hold
    optional: bool = False
    replaces: Template | None = None  # a source that this one makes useless where both are stored

    def flipped(self) -> Rule:
        """The same rule read from right to left."""
        ops = tuple(op.inverse() for op in reversed(self.ops))
        return replace(self, sources=self.targets, targets=self.sources, ops=ops)


@dataclass(frozen=True, kw_only=True)
class Tie(MapLine):
    """A stored copy of another source."""

    copy: Template
    original: Template
    canonical: bool = False  # the layout's own files hold it, so it is always written


@dataclass(frozen=True, kw_only=True)
class Drop(MapLine):
    """A source that is left away, and why."""

    source: Template
    reason: str


@dataclass(frozen=True, kw_only=True)
class Passenger(MapLine):
    """A source that no model uses and that is carried along under its own name."""

    source: Template
    reason: str


@dataclass(frozen=True)
class Make:
    """A target that a layout implies without storing it."""

    target: str
    kind: str
    shape: tuple[int | str, ...]
    when: tuple[Condition, ...]


@dataclass(frozen=True, kw_only=True)
class InnerModel:
    """A whole model inside of a file, in a layout of its own, see `zoo.maps.joined`.

    ``name``: our prefix, and the config's field that holds its config; ``family``: the field that names its family.
    ``prefix``: of its tensors in the file; ``config``: the foreign config's key with its config; ``layouts``: a
    pattern that its layout's name has.
    """

    name: str
    family: str
    prefix: str
    config: str
    layouts: str


@dataclass(frozen=True, kw_only=True, eq=False)
class RuleSet:
    """One layout's names."""

    family: str
    layout: str
    version: int
    prefixes: tuple[str, ...] = ("",)  # the first is what the layout's own files have
    wrappers: tuple[str, ...] = ()  # prefixes that training scripts leave on every name
    recognise: Mapping[str, Any] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()  # old spelling of a part of a name, new one
    spelling: str = ""  # of `zoo.maps.spellings`: the names that the rules are written for are made by it
    bounds: Mapping[str, str] = field(default_factory=dict)  # placeholder -> the config field it counts up to
    rules: tuple[Rule, ...]
    ties: tuple[Tie, ...] = ()
    passengers: tuple[Passenger, ...] = ()
    makes: tuple[Make, ...] = ()
    drop_patterns: tuple[tuple[str, str], ...] = ()  # pattern, reason
    foreign_heads: tuple[tuple[str, str], ...] = ()  # pattern, reason
    architectures: Mapping[str, frozenset[str]] = field(default_factory=dict)  # class name -> its heads
    parts: tuple[InnerModel, ...] = ()  # whole models in layouts of their own
    by_source: Index[MapLine] = field(repr=False)
    by_target: Index[Rule] = field(repr=False)

    @property
    def heads(self) -> frozenset[str]:
        """The heads this layout has rules for."""
        return frozenset(rule.head for rule in self.rules if rule.head)

    def clean_names(self, tensors: Iterable[str]) -> list[str]:
        """The names without wrappers, prefix and old spellings: what the rules are written for."""
        return list(self.clean(tensors)[0])

    def fits(self, tensors: Iterable[str], below: bool = False) -> list[str]:
        """The names that ``[recognise]`` asks for and the file lacks; with a ``!`` those that must
        not be there. Empty: the layout fits. ``below``: look below a prefix that all names share.
        """
        names = self.clean(tensors, strict=False, below=below)[0]
        lacking = [key for key in self.recognise.get("keys", ()) if key not in names]
        return lacking + [f"!{key}" for key in self.recognise.get("absent", ()) if key in names]

    def leftovers(self, tensors: Iterable[str], below: bool = False) -> list[str]:
        """The names that no line of the map takes, not even as a head of some task."""
        patterns = [pattern for pattern, _ in (*self.drop_patterns, *self.foreign_heads)]
        return [
            name
            for name in self.clean(tensors, strict=False, below=below)[0]
            if not self.by_source.find(name) and not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]

    def clean(
        self, tensors: Iterable[str], strict: bool = True, below: bool = True
    ) -> tuple[dict[str, tuple[str, bool]], str]:
        """Clean name -> (name in the file, had it the prefix?); and the prefix. ``strict`` refuses
        two names that become one. ``below``: parts that all names begin with are taken off, until the
        names that the layout asks for are there.
        """
        originals = list(tensors)
        short = [unwrapped(name) for name in originals]
        changed = True
        while changed:
            changed = False
            for wrapper in self.wrappers:
                if short and all(name.startswith(wrapper) and name != wrapper for name in short if name not in COUNTS):
                    short, changed = [name.removeprefix(wrapper) for name in short], True
        short = self._below(short) if below else short
        prefix = self._prefix(short)
        cleaned: dict[str, tuple[str, bool]] = {}
        for original, (name, within) in zip(originals, self._bare(short, prefix), strict=True):
            if name in cleaned and strict:
                raise CheckpointError(
                    f"{self.layout}: the file holds {cleaned[name][0]!r} and {original!r}, which both mean {name!r}; "
                    "remove one of them"
                )
            cleaned.setdefault(name, (original, within))
        return cleaned, prefix

    def _prefix(self, names: Iterable[str]) -> str:
        names = tuple(names)
        return next((p for p in self.prefixes if p and any(name.startswith(p) for name in names)), "")

    def _bare(self, names: Iterable[str], prefix: str) -> Iterator[tuple[str, bool]]:
        """Each name without the prefix and in today's spelling, and whether it had the prefix."""
        for name in names:
            within = bool(prefix) and name.startswith(prefix)
            name = name[len(prefix) :] if within else name
            for old, new in self.renames:
                name = _replace_component(name, old, new)
            yield name, within

    def _below(self, names: list[str]) -> list[str]:
        """The names without the parts that all begin with, as few as it takes until those that the
        layout asks for are there; where they never are, until one meets a rule.
        """
        asked, shorter = set(self.recognise.get("keys", ())), names
        while asked:
            if asked <= {name for name, _ in self._bare(shorter, self._prefix(shorter))}:
                return shorter
            if not (first := self._shared_part(shorter)):
                break
            shorter = [name.removeprefix(first) for name in shorter]
        while (first := self._shared_part(names)) and not self._known(names):
            names = [name.removeprefix(first) for name in names]
        return names

    def _shared_part(self, names: Iterable[str]) -> str:
        """The first part of all names, with what ends it, or nothing where they differ in it; counters
        and the state of optimizers don't count.
        """
        first = ""
        for name in names:
            part = name[: min((at for at in (name.find("."), name.find("/")) if at >= 0), default=-1) + 1]
            if part != first or not part:
                if self._is_dropped(name):
                    continue
                if first or not part:
                    return ""
                first = part
        return first

    def _is_dropped(self, name: str) -> bool:
        """Whether a name, as it stands, is one that the map leaves away."""
        if any(isinstance(entry, Drop) for entry, _ in self.by_source.find(name)):
            return True
        return any(fnmatch.fnmatchcase(name, pattern) for pattern, _ in self.drop_patterns)

    def _known(self, names: Iterable[str]) -> bool:
        """Whether the map has a line for one of the names, with or without a prefix of its own."""
        for name in names:
            for old, new in self.renames:
                name = _replace_component(name, old, new)
            short = {name.removeprefix(prefix) for prefix in self.prefixes}
            if name not in COUNTS and any(self.by_source.find(one) for one in {name, *short}):
                return True
        return False


def unwrapped(name: str) -> str:
    """A name without the parts that wrappers of modules put into it."""
    if "_orig_mod" not in name and "_wrapped_module" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def _replace_component(name: str, old: str, new: str) -> str:
    """``old`` replaced where it stands as whole parts of the name."""
    start = 0
    while (at := name.find(old, start)) >= 0:
        end = at + len(old)
        if (at == 0 or name[at - 1] in "./") and (end == len(name) or name[end] in "./"):
            name, start = name[:at] + new + name[end:], at + len(new)
        else:
            start = at + 1
    return name
