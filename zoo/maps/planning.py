"""Planning: from the rules of a layout and the names and shapes of a file to a `Plan`."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from zoo.errors import CheckpointError, ConfigError, MapError, ZooError, closest
from zoo.formats.archive import Described
from zoo.maps.ops import Copies, Op, Shape, Split, Unstack, size_of
from zoo.maps.plans import Plan, PlanStep, head_of, heads_of, shape_of
from zoo.maps.rules import Drop, MapLine, Passenger, Rule, RuleSet, Tie, holds
from zoo.maps.spellings import SPELLINGS
from zoo.maps.templates import Bindings

SHOWN = 5  # problems that a message tells of
MAX_EXPECTED = 10_000  # tensors that one rule may need, where the file has fewer


class _Group(NamedTuple):
    """The tensors that one rule needs together, for one set of numbers: (place, name)."""

    rule: Rule
    bindings: dict[str, int]
    members: list[tuple[int, str]]


class Planner:
    """What both directions share: rules that wait for their tensors, steps, and what went wrong.

    ``wanted`` are the heads asked for, None = all.
    """

    def __init__(
        self, rules: RuleSet, config: Mapping[str, object], infos: Mapping[str, Described], wanted: set[str] | None
    ):
        self.rules, self.config, self.infos, self.wanted = rules, config, infos, wanted
        self.prefix = ""
        self.groups: dict[tuple[int, tuple[tuple[str, int], ...]], _Group] = {}
        self.steps: list[PlanStep] = []
        self.made: dict[str, str] = {}  # target -> the rule that makes it
        self.problems: list[str] = []
        self.dropped: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.losses: dict[str, str] = {}
        self.passengers: list[str] = []

    def directed(self, rule: Rule) -> Rule:
        """The rule as this direction reads it."""
        return rule

    def named(self, rule: Rule, target: str) -> str:
        """A target's name in the file that is written."""
        return target

    def unasked(self, head: str) -> bool:
        return bool(head) and self.wanted is not None and head not in self.wanted

    def collect(self, rule: Rule, name: str, actual: str, bindings: Bindings) -> None:
        """Put a source where its rule waits for it; a number beyond the config's is a problem."""
        for placeholder, value in bindings.items():
            bound = self.rules.bounds.get(placeholder)
            if bound is not None and value >= (limit := size_of(bound, self.config)):
                self.problems.append(f"{actual!r} has number {value}, but {bound}={limit} (numbers start at 0)")
                return
        rest = {key: value for key, value in bindings.items() if key != rule.over}
        key = (id(rule), tuple(sorted(rest.items())))
        group = self.groups.setdefault(key, _Group(self.directed(rule), rest, []))
        if rule.over in bindings:
            place = bindings[rule.over]
        else:
            place = next(i for i, source in enumerate(group.rule.sources) if source.match(name) is not None)
        group.members.append((place, actual))

    def finish(self) -> None:
        """Make a step of each group that is complete."""
        for rule, bindings, members in self.groups.values():
            members.sort()
            label, names = f"rule {rule.label!r}", tuple(name for _, name in members)
            counted = bool(rule.over) and rule.over in rule.sources[0].placeholders
            places, expected = [place for place, _ in members], range(len(members) if counted else len(rule.sources))
            if places != list(expected):
                lacking = (
                    [] if rule.over else [repr(rule.sources[i].fill(bindings)) for i in expected if i not in places]
                )
                self.problems.append(
                    f"{label} needs {', '.join(lacking)} beside {names[0]!r}"
                    if lacking
                    else f"{label} needs pieces numbered from 0 without gaps, got {_some(names)}"
                )
                continue
            try:
                step = self._step(rule, names, bindings)
            except ZooError as error:
                self.problems.append(f"{names[0]!r} ({label}): {error}")
                continue
            self.add(step)
            if lost := "; ".join(op.lost for op in step.ops if op.lost):
                self.losses.update(dict.fromkeys(step.targets, lost))

    def _step(self, rule: Rule, names: tuple[str, ...], bindings: dict[str, int]) -> PlanStep:
        infos = [self.infos[name] for name in names]
        dtypes = {info.dtype for info in infos}
        if len(dtypes) > 1:
            raise CheckpointError(f"tensors of several dtypes can't be joined: {sorted(dtypes)}")
        dtype, shapes, ops = dtypes.pop(), [tuple(info.shape) for info in infos], list[Op]()
        for op in (op.bound(self.config) for op in rule.ops):
            if op.fan == "in":
                op = op.counted(len(names))
            elif op.fan == "out" and rule.over in rule.targets[0].placeholders:
                op = op.counted(_pieces(op, shapes[0], rule))
            shapes, dtype = op.shapes(shapes), op.dtype(dtype)
            ops.append(op)
        if rule.over and rule.over in rule.targets[0].placeholders:
            filled = [rule.targets[0].fill({**bindings, rule.over: i}) for i in range(len(shapes))]
        else:
            filled = [template.fill(bindings) for template in rule.targets]
        if len(filled) != len(shapes):
            raise CheckpointError(f"rule {rule.label!r} makes {len(shapes)} tensors for {len(filled)} names")
        targets = tuple(self.named(rule, name) for name in filled)
        return PlanStep(names, targets, tuple(shapes), (dtype,) * len(targets), tuple(ops), rule.label)

    def add(self, step: PlanStep) -> None:
        for target in step.targets:
            if target in self.made:
                first = self.made[target]
                self.problems.append(f"{target!r} would be made by rule {first!r} and by rule {step.rule!r}")
                return
        self.made.update(dict.fromkeys(step.targets, step.rule))
        self.steps.append(step)

    def carry(self, passenger: Passenger, name: str, target: str) -> None:
        """A passenger's step."""
        info = self.infos[name]
        self.add(PlanStep((name,), (target,), (tuple(info.shape),), (info.dtype,), rule=passenger.label))
        self.passengers.append(target)

    def expected(self, rule: Rule) -> Iterable[dict[str, int]]:
        """Every set of numbers that the config says a rule must fire for; nothing where a
        placeholder has no bound.
        """
        names = [name for name in rule.sources[0].placeholders if name != rule.over]
        bounds = self.rules.bounds
        if any(name not in bounds for name in names):
            return []
        limits = [max(size_of(bounds[name], self.config), 0) for name in names]
        if (count := math.prod(limits)) > max(MAX_EXPECTED, len(self.infos)):
            stated = ", ".join(f"{bounds[name]}={limit}" for name, limit in zip(names, limits, strict=True))
            raise ConfigError(
                f"{self.rules.layout}: the config says {stated}, for which rule {rule.label!r} needs {count:,} "
                f"tensors; the file holds {len(self.infos):,} in all"
            )
        ranges = [range(limit) for limit in limits]
        return (dict(zip(names, numbers, strict=True)) for numbers in itertools.product(*ranges))

    def concluded(self, heads: set[str], missing: Sequence[str], what: str, inspect: bool) -> Plan:
        """The plan; with problems, and unless ``inspect``, the error that ``what`` begins."""
        if self.problems and not inspect:
            more = f"; and {len(self.problems) - SHOWN} more" if len(self.problems) > SHOWN else ""
            raise CheckpointError(f"{self.rules.layout}: {what}: {'; '.join(self.problems[:SHOWN])}{more}")
        return Plan(
            layout=self.rules.layout,
            version=self.rules.version,
            steps=tuple(self.steps),
            prefix=self.prefix,
            heads=frozenset(heads),
            dropped=self.dropped,
            left_out=self.left_out,
            passengers=tuple(self.passengers),
            missing=tuple(missing),
            losses=self.losses,
            problems=tuple(self.problems),
        )


def _pieces(op: Op, shape: Shape, rule: Rule) -> int:
    """How many tensors an operation makes whose rule counts its pieces by a placeholder."""
    if isinstance(op, Unstack):
        return shape[op.axis]
    if isinstance(op, Split | Copies) and op.parts is not None:
        return int(op.parts)
    raise MapError(f"rule {rule.label!r}: say into how many pieces with parts = a number or a config field")


class Forward(Planner):
    """From a foreign file to the zoo's names. ``stated``: the heads that the config's architecture
    has.
    """

    def __init__(
        self,
        rules: RuleSet,
        config: Mapping[str, object],
        infos: Mapping[str, Described],
        wanted: set[str] | None,
        stated: frozenset[str] | None,
    ):
        super().__init__(rules, config, infos, wanted)
        self.stated = stated
        self.names, self.prefix = rules.clean(infos)
        if rules.spelling:
            read = SPELLINGS[rules.spelling].read
            self.names = {read(name, config): where for name, where in self.names.items()}
        self.notes: list[str] = []

    def plan(self, targets: Mapping[str, object] | None, inspect: bool) -> Plan:
        copies: list[tuple[str, str]] = []  # (name in the file, clean name of what it copies)
        taken: list[tuple[Rule, str, str, dict[str, int]]] = []
        replaced: dict[str, Rule] = {}
        for name, (actual, within) in self.names.items():
            entry, bindings = self._entry_of(name, actual, within)
            if isinstance(entry, Passenger):
                self.carry(entry, actual, name)
            elif isinstance(entry, Drop):
                self.dropped[actual] = entry.reason
            elif isinstance(entry, Tie):
                copies.append((actual, entry.original.fill(bindings)))
            elif isinstance(entry, Rule):
                taken.append((entry, name, actual, bindings))
                if entry.replaces is not None:
                    replaced[entry.replaces.fill(bindings)] = entry
        ties: list[tuple[str, str]] = []
        for copy, original in copies:
            if original in self.names:
                stored = self.names[original][0]
                ties.append((copy, stored))
                self.dropped[copy] = f"a stored copy of {stored!r}"
            else:  # a writer that keeps one of two shared tensors may have kept the copy
                taken += [(rule, original, copy, bindings) for rule, bindings in self._rules_for(original)]
                self.notes.append(f"{copy!r} stands in for {original!r}, of which it is a copy")
        for rule, name, actual, bindings in taken:
            if name in replaced and rule is not replaced[name]:
                self.dropped[actual] = f"not used where {replaced[name].label!r} is stored"
            else:
                self.collect(rule, name, actual, bindings)
        self.finish()
        for make in self.rules.makes:
            if not self.unasked(head_of(make.target)) and holds(make.when, self.config):
                shape = tuple(size_of(size, self.config) for size in make.shape)
                label = f"make {make.target}"
                self.add(PlanStep((), (make.target,), (shape,), (self._float_dtype(),), rule=label, constant=make.kind))
        present = heads_of(self.made)
        if targets is None:
            absent, missing = set() if self.wanted is None else self.wanted - present, self._unmade(present)
        else:
            absent = heads_of(targets) - present
            missing = [name for name in targets if name not in self.made and head_of(name) not in absent]
            self._compare(targets)
        if missing:
            self.problems.append(f"nothing in the file makes {_some(missing)}")
        plan = self.concluded(present, missing, "the file does not fit", inspect)
        return replace(plan, ties=tuple(ties), absent_heads=frozenset(absent), notes=tuple(self.notes))

    def _rules_for(self, name: str) -> list[tuple[Rule, dict[str, int]]]:
        found = self.rules.by_source.find(name)
        return [(e, bindings) for e, bindings in found if isinstance(e, Rule) and e.active(self.config)]

    def _stands_in(self, original: str) -> bool:
        """Whether a head's copy of a tensor counts: the file lacks it, and the backbone wants it."""
        return original not in self.names and any(not rule.head for rule, _ in self._rules_for(original))

    def _float_dtype(self) -> str:
        """The float dtype that most of the file's tensors have."""
        kinds = [info.dtype for info in self.infos.values() if info.dtype in ("F64", "F32", "F16", "BF16")]
        return max(set(kinds), key=kinds.count, default="F32")

    def _entry_of(self, name: str, actual: str, within: bool) -> tuple[MapLine | None, dict[str, int]]:
        """The one entry that a source meets; None where it is left out, dropped by a pattern, or a
        problem.
        """
        hits = self.rules.by_source.find(name)
        # a drop may stand on either side of the prefix
        placed = [hit for hit in hits if not self.prefix or hit[0].bare is not within or isinstance(hit[0], Drop)]
        active = [hit for hit in placed if hit[0].active(self.config)]
        if active:
            return self._of_heads(actual, active)
        if placed:
            entry = placed[0][0]
            if isinstance(entry, Rule) and entry.otherwise:
                self.left_out[actual] = entry.otherwise
            elif self.unasked(entry.head):
                self.left_out[actual] = f"head {entry.head!r}, which nobody asked for"
            else:
                self.problems.append(
                    f"{actual!r} holds only with {entry.condition} (rule {entry.label!r}); the config says "
                    f"{entry.values(self.config)}"
                )
            return None, {}
        for patterns, noted in ((self.rules.drop_patterns, self.dropped), (self.rules.foreign_heads, self.left_out)):
            reason = next((reason for pattern, reason in patterns if fnmatch.fnmatchcase(name, pattern)), None)
            if reason is not None and not (within and noted is self.left_out):
                noted[actual] = reason
                return None, {}
        if hits:
            expected = hits[0][0]
            side = "without" if expected.bare else "with"
            hint = f"rule {expected.label!r} expects it {side} the prefix {self.prefix!r}"
        elif len(self.problems) < SHOWN:
            near = closest(name, (t.text for rule in self.rules.rules for t in rule.sources))
            hint = (
                f"closest rules: {', '.join(repr(n) for n in near)}; add a rule, a drop with its reason, or a foreign "
                "head to the map"
            )
        else:  # the search takes long, and files may hold many names
            hint = "add a rule, a drop with its reason, or a foreign head to the map"
        self.problems.append(f"{actual!r} meets no rule; {hint}")
        return None, {}

    def _of_heads(
        self, actual: str, active: list[tuple[MapLine, dict[str, int]]]
    ) -> tuple[MapLine | None, dict[str, int]]:
        """Among the heads that a name could belong to, the one that was asked for or that the
        config names.
        """
        heads = list(dict.fromkeys(entry.head for entry, _ in active))
        if heads == [""]:
            if len(active) > 1:
                met = " and ".join(repr(entry.label) for entry, _ in active)
                self.problems.append(f"{actual!r} meets {met}; one of them is too many")
                return None, {}
            return active[0]
        for entry, bindings in active:
            if isinstance(entry, Tie) and self._stands_in(entry.original.fill(bindings)):
                return entry, bindings
        chosen = [head for head in heads if self.wanted is None or head in self.wanted]
        if len(chosen) > 1 and self.stated is not None:
            chosen = [head for head in chosen if head in self.stated]
        if len(chosen) == 1:
            return next((entry, bindings) for entry, bindings in active if entry.head == chosen[0])
        if not chosen:
            self.left_out[actual] = f"head {' or '.join(map(repr, heads))}, which nobody asked for"
        else:
            why = f"may be the head {' or '.join(map(repr, chosen))}; say which one is wanted"
            if self.wanted is None:
                self.left_out[actual] = why
            else:
                self.problems.append(f"{actual!r} {why}")
        return None, {}

    def _unmade(self, present: set[str]) -> list[str]:
        """Targets of rules that the config wants and nothing makes."""
        names: dict[str, None] = {}
        for rule in self.rules.rules:
            if rule.optional or (rule.head and rule.head not in present) or not rule.active(self.config):
                continue
            first = {rule.over: 0} if rule.over else {}
            for bindings in self.expected(rule):
                names |= dict.fromkeys(template.fill({**bindings, **first}) for template in rule.targets)
        return [name for name in names if name not in self.made]

    def _compare(self, targets: Mapping[str, object]) -> None:
        """Hold names and shapes that come out against those that must."""
        made = {
            name: (step, shape) for step in self.steps for name, shape in zip(step.targets, step.shapes, strict=True)
        }
        extra = [name for name in made if name not in targets and name not in self.passengers]
        if extra:
            self.problems.append(f"the model has no place for {_some(extra)}")
        for name, target in targets.items():
            if name in made and made[name][1] != shape_of(target):
                step, shape = made[name]
                self.problems.append(
                    f"{', '.join(map(repr, step.sources))} gives {name!r} the shape {shape}, the config needs "
                    f"{shape_of(target)}"
                )


class Back(Planner):
    """From the zoo's names to a foreign file."""

    def __init__(
        self,
        rules: RuleSet,
        config: Mapping[str, object],
        infos: Mapping[str, Described],
        wanted: set[str] | None,
        prefix: str,
    ):
        super().__init__(rules, config, infos, wanted)
        self.prefix = prefix

    def directed(self, rule: Rule) -> Rule:
        return rule.flipped()

    def named(self, rule: Rule, target: str) -> str:
        if self.rules.spelling:
            target = SPELLINGS[self.rules.spelling].write(target, self.config)
        return target if rule.bare else self.prefix + target

    def plan(self, heads: set[str], ties: bool, inspect: bool) -> Plan:
        checks: list[tuple[str, str]] = []
        copies: list[tuple[Rule, str, str]] = []
        for name in self.infos:
            if self.unasked(head_of(name)):
                self.left_out[name] = f"head {head_of(name)!r}, which nobody asked for"
                continue
            hits = self.rules.by_target.find(name)
            active = [(rule, bindings) for rule, bindings in hits if rule.active(self.config)]
            if active:
                rule, bindings = next((hit for hit in active if hit[0].replaces is not None), active[0])
                self.collect(rule, name, name, bindings)
                if rule.replaces is not None:
                    copies.append((rule, rule.sources[0].fill(bindings), rule.replaces.fill(bindings)))
                continue
            makes = [make for make in self.rules.makes if make.target == name and holds(make.when, self.config)]
            if makes:
                checks.append((name, makes[0].kind))
                continue
            found = [p for p in self.rules.passengers if p.source.match(name) is not None and p.active(self.config)]
            if found:
                self.carry(found[0], name, name if found[0].bare else self.prefix + name)
            elif hits:
                rule = hits[0][0]
                self.problems.append(
                    f"{name!r} can be written only with {rule.condition}; the config says {rule.values(self.config)}"
                )
            else:
                near = closest(name, (t.text for rule in self.rules.rules for t in rule.targets))
                self.problems.append(
                    f"{name!r} has no place in this layout; closest: {', '.join(repr(n) for n in near)}"
                )
        self.finish()
        for rule, source, copy in copies:  # what a rule replaces, such files store too
            self._copy(self.named(rule, source), self.named(rule, copy), rule.label)
        self._ties(heads, ties)
        missing = self._lacking(heads)
        if missing:
            self.problems.append(f"our file lacks {_some(missing)}")
        plan = self.concluded(heads, missing, "ours can't be written in this layout", inspect)
        return replace(plan, checks=tuple(checks))

    def _ties(self, heads: set[str], all_of_them: bool) -> None:
        """Copies that a foreign file stores: those that its layout always has, or all of them."""
        for tie in self.rules.ties:
            if (
                not (all_of_them or tie.canonical)
                or not tie.active(self.config)
                or (tie.head and tie.head not in heads)
            ):
                continue
            for made in list(self.made):
                for name in {made, made.removeprefix(self.prefix)}:
                    if (bindings := tie.original.match(name)) is not None:
                        self._copy(made, ("" if tie.bare else self.prefix) + tie.copy.fill(bindings), tie.label)

    def _copy(self, made: str, copy: str, label: str) -> None:
        step = next((step for step in self.steps if made in step.targets), None)
        if step is None:
            return
        if len(step.targets) > 1:
            raise MapError(
                f"{self.rules.layout}: {copy!r} copies {made!r}, which is one of several tensors that {step.rule!r} "
                "makes"
            )
        self.add(PlanStep(step.sources, (copy,), step.shapes, step.dtypes, step.ops, label))

    def _lacking(self, heads: set[str]) -> list[str]:
        """The zoo's names that the config wants and the file has not."""
        names: dict[str, None] = {}
        for rule in self.rules.rules:
            if rule.optional or rule.replaces is not None or (rule.head and rule.head not in heads):
                continue
            if rule.active(self.config):
                templates = [template for template in rule.targets if rule.over not in template.placeholders]
                for bindings in self.expected(rule):
                    names |= dict.fromkeys(template.fill(bindings) for template in templates)
        return [name for name in names if name not in self.infos]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
