"""The map language: how a public layout's tensor names and config become ours, and ours become
theirs, from one table.

A map is data (``weights/<family>/<layout>.toml``); ``docs/convert.md`` tells how to write one. It
is checked when loaded: a name that two rules could take, a target that two rules make, an unknown
operation, a reason left out is a MapError that names the file and the rule. ``forward`` and
``back`` only plan, from names and shapes; a Plan's steps read and make the tensors one at a time.
"""

from __future__ import annotations

import fnmatch
import itertools
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from zoo.errors import CheckpointError, MapError, ZooError, closest
from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.archive import Described, Info
from zoo.maps.config_map import ConfigMap
from zoo.maps.ops import Op, Shape, Split, Unstack, parse, size_of
from zoo.maps.rules import Entry, Make, Plain, Rule, Tie
from zoo.maps.templates import Condition, Index, Template
from zoo.registry.resources import weights_folder


@dataclass(frozen=True)
class Step:
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


def constant(kind: str, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A tensor that a layout implies without storing it."""
    if kind == "identity":
        return torch.eye(*shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype) if kind == "zeros" else torch.ones(shape, dtype=dtype)


@dataclass(frozen=True)
class Plan:
    """All that a conversion will do, known before a single tensor is read. Names are the archive's
    own on the source side.
    """

    layout: str
    version: int
    steps: tuple[Step, ...]
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
        """Every target at once: for small models and tests; ``engine`` streams instead."""
        return {name: tensor for step in self.steps for name, tensor in step.run(read).items()}


class KeyMap:
    """One layout's names and config, both ways; frozen and checked once it exists."""

    def __init__(self, table: Mapping[str, Any], where: str, path: Path | None = None):
        _Builder(self, table, where).build()
        self.where, self.path = where, path

    family: str
    layout: str
    version: int
    prefixes: tuple[str, ...]
    wrappers: tuple[str, ...]
    recognise: Mapping[str, Any]
    renames: tuple[tuple[str, str], ...]
    bounds: Mapping[str, str]
    rules: tuple[Rule, ...]
    ties: tuple[Tie, ...]
    plains: tuple[Plain, ...]
    makes: tuple[Make, ...]
    drop_patterns: tuple[tuple[str, str], ...]
    foreign_heads: tuple[tuple[str, str], ...]
    architectures: Mapping[str, frozenset[str]]
    config: ConfigMap
    _sources: Index[Entry]
    _targets: Index[Rule]

    @classmethod
    def load(cls, name: Path | str) -> KeyMap:
        """A map by its layout's name (``hf-bert``) or from a file of the user's own."""
        if isinstance(name, Path) or str(name).endswith(".toml"):
            path = Path(name)
        else:
            from zoo.maps.layouts import path_of

            path = path_of(str(name))
        return cls(read_table(path), str(path.name), path)

    def __repr__(self) -> str:
        return f"KeyMap({self.layout!r}, version {self.version}, {len(self.rules)} rules)"

    @property
    def heads(self) -> frozenset[str]:
        """The heads this layout has rules for."""
        return frozenset(rule.head for rule in self.rules if rule.head)

    # --- config
    # --------------------------------------------------------------------------------------------------------------

    def config_forward(
        self, foreign: Mapping[str, object], tensors: Mapping[str, Described] | Iterable[str] | None = None
    ) -> dict[str, object]:
        """Our config fields from a foreign config; with the file's tensors also those that only
        their names (a pooler) or shapes (the rows of a table) show.
        """
        names = None if tensors is None else self._clean(tensors)[0]
        shapes = (
            {name: tensors[actual].shape for name, (actual, _) in names.items()}
            if names and isinstance(tensors, Mapping)
            else None
        )
        return self.config.forward(foreign, names, shapes)

    def config_back(self, ours: Mapping[str, object], heads: Collection[str] = ()) -> dict[str, object]:
        """The foreign config for ours, loadable by the other library; ``heads`` choose the
        architecture it names.
        """
        foreign = self.config.back(ours)
        names = [name for name, parts in self.architectures.items() if parts == frozenset(heads)]
        return {"architectures": names[:1], **foreign} if names else foreign

    def task_options(self, foreign: Mapping[str, object]) -> dict[str, object]:
        """Labels and the like that a foreign config holds for its task's head."""
        return self.config.task_options(foreign)

    # --- names
    # --------------------------------------------------------------------------------------------------------------

    def clean_names(self, tensors: Iterable[str]) -> list[str]:
        """The names without wrappers, prefix and old spellings: what the rules are written for."""
        return list(self._clean(tensors)[0])

    def fits(self, tensors: Iterable[str]) -> list[str]:
        """The names that ``[recognise]`` asks for and the file lacks; with a ``!`` those that must
        not be there. Empty: the layout fits.
        """
        names = self._clean(tensors, strict=False)[0]
        lacking = [key for key in self.recognise.get("keys", ()) if key not in names]
        return lacking + [f"!{key}" for key in self.recognise.get("absent", ()) if key in names]

    def _clean(self, tensors: Iterable[str], strict: bool = True) -> tuple[dict[str, tuple[str, bool]], str]:
        """Rule-side name -> (name in the file, had it the prefix?); and the prefix. ``strict``
        refuses two names that become one.
        """
        originals = list(tensors)
        short = originals
        changed = True
        while changed:
            changed = False
            for wrapper in self.wrappers:
                if short and all(name.startswith(wrapper) and name != wrapper for name in short):
                    short, changed = [name[len(wrapper) :] for name in short], True
        prefix = next((p for p in self.prefixes if p and any(name.startswith(p) for name in short)), "")
        cleaned: dict[str, tuple[str, bool]] = {}
        for original, name in zip(originals, short, strict=True):
            within = bool(prefix) and name.startswith(prefix)
            name = name[len(prefix) :] if within else name
            for old, new in self.renames:
                name = _replace_component(name, old, new)
            if name in cleaned and strict:
                raise CheckpointError(
                    f"{self.layout}: the file holds {cleaned[name][0]!r} and {original!r}, which both mean {name!r}; "
                    "remove one of them"
                )
            cleaned.setdefault(name, (original, within))
        return cleaned, prefix

    # --- planning
    # --------------------------------------------------------------------------------------------------------------

    def forward(
        self,
        tensors: Mapping[str, Described],
        config: Mapping[str, object],
        *,
        heads: Collection[str] | None = None,
        architectures: Iterable[str] = (),
        targets: Mapping[str, object] | None = None,
        inspect: bool = False,
    ) -> Plan:
        """The plan from a foreign file to ours. ``config`` holds our fields.

        ``heads`` are those wanted (None: those among ``targets``, or every head that the file has).
        ``architectures`` are the foreign config's words for what the file is; they settle whose
        head an ambiguous name is. ``targets`` are the names and shapes that must come out. With
        ``inspect`` problems are listed in the plan, not raised.
        """
        return _Forward(self, tensors, config, heads, architectures, targets).plan(inspect)

    def back(
        self,
        targets: Mapping[str, object],
        config: Mapping[str, object],
        *,
        heads: Collection[str] | None = None,
        ties: bool = False,
        prefix: str | None = None,
        inspect: bool = False,
    ) -> Plan:
        """The plan from ours (names -> shapes or infos) to the foreign layout. ``ties`` writes
        stored copies too, as old files have them.

        Encoders alone get bare names where the layout knows them; with a head, or where it does
        not, the canonical prefix.
        """
        return _Back(self, targets, config, heads, ties, prefix).plan(inspect)


# --- reading and checking a map
# -------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> dict[str, Any]:
    """A map file with its includes merged in; the file's own entries win."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MapError(f"{path}: the map can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MapError(f"{path}: not a valid TOML file: {error}") from error
    includes = table.pop("include", [])
    for name in reversed(includes):
        candidates = [path.parent / f"{name}.toml", weights_folder() / "_shared" / f"{name}.toml"]
        found = next((c for c in candidates if c.is_file()), None)
        if found is None:
            raise MapError(f"{path}: include {name!r} is neither beside the map nor in weights/_shared")
        table = _merged(read_table(found), table)
    return table


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        merged[key] = (
            _merged(merged[key], value)
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            else value
        )
    return merged


_TABLES = {
    "family",
    "layout",
    "version",
    "title",
    "prefixes",
    "wrappers",
    "recognise",
    "placeholders",
    "renames",
    "rules",
    "tie",
    "drop",
    "passenger",
    "make",
    "foreign_heads",
    "architectures",
    "config",
}
_RULE_OPTIONS = {"to", "from", "op", "over", "when", "otherwise", "optional", "head", "bare", "replaces"}


class _Builder:
    """Turns a table into a KeyMap and refuses one that could mean two things."""

    def __init__(self, keymap: KeyMap, table: Mapping[str, Any], where: str):
        self.map, self.table, self.where = keymap, table, where
        self.words: dict[str, dict[str, str]] = {}  # word placeholders: {name: {their word: our word}}
        self.used_words: set[str] = set()
        self.fields: set[str] | None = None

    def build(self) -> None:
        table, where = self.table, self.where
        for key in table:
            if key not in _TABLES:
                raise MapError(f"{where}: unknown table [{key}]; closest: {', '.join(closest(key, _TABLES))}")
        for key, kind in (("family", str), ("layout", str), ("version", int)):
            if not isinstance(table.get(key), kind):
                raise MapError(f"{where}: a map states {key}, got {table.get(key)!r}")
        keymap = self.map
        keymap.family, keymap.layout, keymap.version = table["family"], table["layout"], table["version"]
        keymap.prefixes = tuple(table.get("prefixes", [""]))
        keymap.wrappers = tuple(table.get("wrappers", []))
        keymap.recognise = dict(table.get("recognise", {}))
        keymap.renames = tuple(table.get("renames", {}).items())
        keymap.config = ConfigMap.parse(table.get("config", {}), keymap.layout, where)
        if "config" in table:
            self.fields = keymap.config.fields
        self._placeholders()
        keymap.rules = tuple(
            rule for label, written in table.get("rules", {}).items() for rule in self._rules(label, written)
        )
        if not keymap.rules:
            raise MapError(f"{where}: a map has [rules]; this one has none")
        keymap.ties = tuple(
            tie for label, written in table.get("tie", {}).items() for tie in self._ties(label, written)
        )
        keymap.drop_patterns = tuple(
            (label, self._reason("drop", label, written))
            for label, written in table.get("drop", {}).items()
            if "*" in label
        )
        keymap.foreign_heads = tuple(
            (label, self._reason("foreign_heads", label, written))
            for label, written in table.get("foreign_heads", {}).items()
        )
        keymap.plains = tuple(
            plain
            for part in ("drop", "passenger")
            for label, written in table.get(part, {}).items()
            if part == "passenger" or "*" not in label
            for plain in self._plains(part, label, written)
        )
        keymap.makes = tuple(self._make(target, written) for target, written in table.get("make", {}).items())
        for name in sorted(set(self.words) - self.used_words):
            if name in table.get("placeholders", {}):
                raise MapError(f"{where}: placeholder {{{name}}} is declared and no rule uses it")
        self._architectures()
        self._ambiguities()

    def _placeholders(self) -> None:
        bounds = {}
        for name, written in {"p": ["weight", "bias"], **self.table.get("placeholders", {})}.items():
            if isinstance(written, str):
                if self.fields is not None and written not in self.fields:
                    raise MapError(
                        f"{self.where}: placeholder {{{name}}} counts up to {written!r}, which [config] does not make"
                    )
                bounds[name] = written
            elif isinstance(written, Mapping):
                self.words[name] = {str(theirs): str(ours) for theirs, ours in written.items()}
            else:
                self.words[name] = {str(word): str(word) for word in written}
        self.map.bounds = bounds

    def _label(self, part: str, label: str) -> str:
        return f"{self.where}: [{part}] {label!r}"

    def _template(self, text: str, where: str) -> Template:
        try:
            return Template.parse(text)
        except MapError as error:
            raise MapError(f"{where}: {error}") from None

    def _expanded(
        self, theirs: Sequence[str], ours: Sequence[str], where: str
    ) -> Iterable[tuple[list[str], list[str]]]:
        """Every filling of the word placeholders: their words on the left, ours on the right."""
        left = {word for word in self.words for text in theirs if f"{{{word}}}" in text}
        right = {word for word in self.words for text in ours if f"{{{word}}}" in text}
        if ours and left != right:
            raise MapError(f"{where}: placeholder {{{sorted(left ^ right)[0]}}} stands on one side only")
        self.used_words |= left
        names = sorted(left)
        for choice in itertools.product(*(self.words[name].items() for name in names)):
            filled_theirs, filled_ours = list(theirs), list(ours)
            for name, (their_word, our_word) in zip(names, choice, strict=True):
                filled_theirs = [text.replace(f"{{{name}}}", their_word) for text in filled_theirs]
                filled_ours = [text.replace(f"{{{name}}}", our_word) for text in filled_ours]
            yield filled_theirs, filled_ours

    def _conditions(self, written: object, where: str) -> tuple[Condition, ...]:
        texts = [] if written is None else [written] if isinstance(written, str) else list(cast(list[str], written))
        try:
            return tuple(Condition.parse(text, self.fields) for text in texts)
        except MapError as error:
            raise MapError(f"{where}: {error}") from None

    def _rules(self, label: str, written: object) -> Iterable[Rule]:
        where = self._label("rules", label)
        options: dict[str, Any] = (
            {"to": written} if isinstance(written, str) else dict(written) if isinstance(written, Mapping) else {}
        )
        if "to" not in options:
            raise MapError(f'{where}: write our name, or a table with "to", got {written!r}')
        theirs, ours = _list(options.get("from", label)), _list(options["to"])
        op = options.get("op")
        loose = {key: value for key, value in options.items() if key not in _RULE_OPTIONS}
        if loose and not isinstance(op, str):
            raise MapError(
                f"{where}: unknown option {sorted(loose)[0]!r}; there are {', '.join(sorted(_RULE_OPTIONS))}"
            )
        ops = parse({"op": op, **loose} if loose else op, where)
        over = str(options.get("over", ""))
        fan_in, fan_out = any(o.fan == "in" for o in ops), any(o.fan == "out" for o in ops)
        several = [len(names) > 1 or (bool(over) and f"{{{over}}}" in names[0]) for names in (theirs, ours)]
        if several != [fan_in, fan_out]:
            raise MapError(
                f"{where}: {len(theirs)} name(s) to {len(ours)} with operations {[o.name for o in ops]}: join and "
                "stack take several names "
                "to one, split and unstack one to several; with `over` one name with that placeholder stands for "
                "several"
            )
        if over and (len(theirs) > 1 or len(ours) > 1 or not (fan_in or fan_out) or (fan_in and fan_out)):
            raise MapError(f"{where}: `over` goes with one name on each side and one join, stack, split or unstack")
        try:
            ops = tuple(
                o.counted(len(theirs) if o.fan == "in" else len(ours)) if o.fan and not over else o for o in ops
            )
        except MapError as error:
            raise MapError(f"{where}: {error}") from None
        when = self._conditions(options.get("when"), where)
        head = str(options.get("head", ""))
        for their_texts, our_texts in self._expanded(theirs, ours, where):
            sources = tuple(self._template(text, where) for text in their_texts)
            targets = tuple(self._template(text, where) for text in our_texts)
            self._same_placeholders(sources, targets, over, where)
            if head and not all(text.startswith(f"heads.{head}.") for text in our_texts):
                raise MapError(
                    f"{where}: a rule of head {head!r} makes names under 'heads.{head}.', got {our_texts[0]!r}"
                )
            if not head and any(text.startswith("heads.") for text in our_texts):
                raise MapError(
                    f"{where}: {our_texts[0]!r} belongs to a head; say head = {our_texts[0].split('.')[1]!r}"
                )
            replaces = options.get("replaces")
            yield Rule(
                label,
                sources,
                targets,
                ops,
                over,
                when,
                str(options.get("otherwise", "")),
                bool(options.get("optional", False)),
                head,
                bool(options.get("bare", bool(head))),
                None if replaces is None else self._template(str(replaces), where),
            )

    def _same_placeholders(
        self, sources: Sequence[Template], targets: Sequence[Template], over: str, where: str
    ) -> None:
        sets = [set(template.placeholders) - {over} for template in (*sources, *targets)]
        for other in sets[1:]:
            if other != sets[0]:
                raise MapError(f"{where}: placeholder {{{sorted(sets[0] ^ other)[0]}}} stands on one side only")
        if over and not any(over in template.placeholders for template in (*sources, *targets)):
            raise MapError(f"{where}: `over` names {{{over}}}, which stands in no name")

    def _reason(self, part: str, label: str, written: object) -> str:
        reason = written.get("reason") if isinstance(written, Mapping) else written
        if not isinstance(reason, str) or not reason.strip():
            raise MapError(f"{self._label(part, label)}: a reason is missing; say why these tensors can go")
        return reason

    def _plains(self, part: str, label: str, written: object) -> Iterable[Plain]:
        where = self._label(part, label)
        reason = self._reason(part, label, written)
        options = dict(written) if isinstance(written, Mapping) else {}
        unknown = set(options) - {"reason", "when", "head", "bare"}
        if unknown:
            raise MapError(f"{where}: unknown option {sorted(unknown)[0]!r}; there are reason, when, head, bare")
        when, head = self._conditions(options.get("when"), where), str(options.get("head", ""))
        for texts, _ in self._expanded([label], [], where):
            template = self._template(texts[0], where)
            yield Plain(label, template, reason, when, head, bool(options.get("bare", bool(head))), part == "passenger")

    def _ties(self, label: str, written: object) -> Iterable[Tie]:
        where = self._label("tie", label)
        options = {"of": written} if isinstance(written, str) else dict(written) if isinstance(written, Mapping) else {}
        unknown = set(options) - {"of", "when", "head", "bare", "canonical"}
        if unknown or not isinstance(options.get("of"), str):
            raise MapError(
                f"{where}: write the name it copies, or a table with of, when, head, bare, canonical; got {written!r}"
            )
        when, head = self._conditions(options.get("when"), where), str(options.get("head", ""))
        for texts, _ in self._expanded([label], [], where):
            copy, original = self._template(texts[0], where), self._template(str(options["of"]), where)
            self._same_placeholders([copy], [original], "", where)
            if not any(original.overlaps(source) for rule in self.map.rules for source in rule.sources):
                raise MapError(f"{where}: it copies {original.text!r}, which no rule takes")
            yield Tie(
                label,
                copy,
                original,
                when,
                head,
                bool(options.get("bare", bool(head))),
                bool(options.get("canonical", False)),
            )

    def _make(self, target: str, written: object) -> Make:
        where = self._label("make", target)
        if (
            not isinstance(written, Mapping)
            or written.get("value") not in ("identity", "zeros", "ones")
            or not written.get("shape")
        ):
            raise MapError(
                f'{where}: write {{ value = "identity" or "zeros" or "ones", shape = [...], when = ... }}, got '
                f"{written!r}"
            )
        return Make(
            target, str(written["value"]), tuple(written["shape"]), self._conditions(written.get("when"), where)
        )

    def _architectures(self) -> None:
        self.map.architectures = {name: frozenset(heads) for name, heads in self.table.get("architectures", {}).items()}
        for name, heads in self.map.architectures.items():
            for head in heads:
                if head not in self.map.heads:
                    raise MapError(
                        f"{self.where}: [architectures] {name} has head {head!r}, which no rule makes; there are "
                        f"{sorted(self.map.heads)}"
                    )

    def _ambiguities(self) -> None:
        keymap = self.map
        sources: Index[Entry] = Index()
        bare_files = "" in keymap.prefixes
        entries: list[tuple[Template, Entry]] = [(source, rule) for rule in keymap.rules for source in rule.sources]
        entries += [(tie.copy, tie) for tie in keymap.ties] + [(plain.source, plain) for plain in keymap.plains]
        for template, entry in entries:
            for _, other in sources.near(template):
                apart = entry.bare is not other.bare and not bare_files
                if other is entry or not (apart or _exclusive(entry, other)):
                    raise MapError(
                        f"{self.where}: {template.text!r} could meet {other.label!r} and {entry.label!r}; "
                        "make their conditions exclude each other"
                    )
            sources.add(template, entry)
            for pattern, _ in (*keymap.drop_patterns, *keymap.foreign_heads):
                if entry.head == "" and not entry.bare and fnmatch.fnmatchcase(template.text, pattern):
                    raise MapError(
                        f"{self.where}: pattern {pattern!r} would take {template.text!r}, which has its own entry "
                        f"{entry.label!r}"
                    )
        targets: Index[Rule] = Index()
        for rule in keymap.rules:
            for template in rule.targets:
                for _, other in targets.near(template):
                    replaced = any(
                        a.replaces is not None and any(a.replaces.overlaps(source) for source in b.sources)
                        for a, b in ((rule, other), (other, rule))
                    )
                    if other is rule or not (replaced or any(a.excludes(b) for a in rule.when for b in other.when)):
                        raise MapError(
                            f"{self.where}: {template.text!r} is made by {other.label!r} and by {rule.label!r}; "
                            "each of our names is made once"
                        )
                targets.add(template, rule)
        for make in keymap.makes:
            for rule, _ in targets.find(make.target):
                if not any(a.excludes(b) for a in rule.when for b in make.when):
                    raise MapError(
                        f"{self.where}: {make.target!r} is made by [make] and by {rule.label!r}; each of our names is "
                        "made once"
                    )
        keymap._sources, keymap._targets = sources, targets


def _list(written: object) -> list[str]:
    return [written] if isinstance(written, str) else [str(text) for text in cast(list[object], written)]


def _exclusive(a: Entry, b: Entry) -> bool:
    """Two entries may share a name if their conditions can't both hold, or if they are two heads of
    which the caller picks one.
    """
    return any(x.excludes(y) for x in a.when for y in b.when) or bool(a.head and b.head and a.head != b.head)


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


# --- planning
# ------------------------------------------------------------------------------------------------------------------


class _Planner:
    """What both directions share: groups of names that make one step, and the list of problems."""

    def __init__(self, keymap: KeyMap, config: Mapping[str, object]):
        self.map, self.config = keymap, config
        self.problems: list[str] = []
        self.groups: dict[
            tuple[int, tuple[tuple[str, int], ...]], tuple[Rule, dict[str, int], list[tuple[int, str]]]
        ] = {}
        self.steps: list[Step] = []
        self.losses: dict[str, str] = {}
        self.made: dict[str, str] = {}

    def active(self, entry: Entry) -> bool:
        return all(condition.holds(self.config) for condition in entry.when)

    def collect(
        self, rule: Rule, sources: tuple[Template, ...], name: str, actual: str, bindings: dict[str, int]
    ) -> None:
        """Put a name where its rule waits for it."""
        rest = {key: value for key, value in bindings.items() if key != rule.over}
        key = (id(rule), tuple(sorted(rest.items())))
        position = (
            bindings[rule.over]
            if rule.over in bindings
            else next(i for i, source in enumerate(sources) if source.match(name) is not None)
        )
        self.groups.setdefault(key, (rule, rest, []))[2].append((position, actual))

    def finish(self, flipped: bool, infos: Mapping[str, Described], name_of: Callable[[Rule, str], str]) -> None:
        for rule, bindings, members in self.groups.values():
            read = rule.flipped() if flipped else rule
            members.sort()
            label = f"rule {rule.label!r}"
            positions = [position for position, _ in members]
            wanted = len(members) if rule.over and rule.over in read.sources[0].placeholders else len(read.sources)
            if positions != list(range(wanted)):
                lacking = (
                    [read.sources[i].fill(bindings) for i in range(wanted) if i not in positions]
                    if not rule.over
                    else []
                )
                self.problems.append(
                    f"{label} needs {', '.join(repr(x) for x in lacking)} beside {members[0][1]!r}"
                    if lacking
                    else f"{label} needs pieces numbered from 0 without gaps, got {_some([name for _, name in members])}"
                )
                continue
            names = tuple(name for _, name in members)
            try:
                step = self._step(read, names, bindings, [infos[name] for name in names], name_of, label)
            except ZooError as error:
                self.problems.append(f"{names[0]!r} ({label}): {error}")
                continue
            self.add(step)
            lost = "; ".join(op.lost for op in step.ops if op.lost)
            if lost:
                self.losses.update(dict.fromkeys(step.targets, lost))

    def _step(
        self,
        rule: Rule,
        names: tuple[str, ...],
        bindings: dict[str, int],
        infos: Sequence[Described],
        name_of: Callable[[Rule, str], str],
        label: str,
    ) -> Step:
        ops = tuple(op.bound(self.config) for op in rule.ops)
        dtypes = {info.dtype for info in infos}
        if len(dtypes) > 1:
            raise CheckpointError(f"tensors of several dtypes can't be joined: {sorted(dtypes)}")
        dtype = dtypes.pop()
        shapes: list[Shape] = [tuple(info.shape) for info in infos]
        final: list[Op] = []
        for op in ops:
            if op.fan == "in":
                op = op.counted(len(names))
            elif op.fan == "out" and rule.over:
                op = op.counted(self._pieces(op, shapes[0], rule))
            shapes, dtype = op.shapes(shapes), op.dtype(dtype)
            final.append(op)
        if rule.over and rule.over in rule.targets[0].placeholders:
            targets = tuple(name_of(rule, rule.targets[0].fill({**bindings, rule.over: i})) for i in range(len(shapes)))
        else:
            targets = tuple(name_of(rule, template.fill(bindings)) for template in rule.targets)
        if len(targets) != len(shapes):
            raise CheckpointError(f"{label} makes {len(shapes)} tensors for {len(targets)} names")
        return Step(names, targets, tuple(shapes), (dtype,) * len(targets), tuple(final), rule.label)

    def _pieces(self, op: Op, shape: Shape, rule: Rule) -> int:
        if isinstance(op, Unstack):
            return shape[op.axis]
        if isinstance(op, Split) and op.parts is not None:
            return int(op.parts)
        raise MapError(f"rule {rule.label!r}: say into how many pieces with parts = a number or a config field")

    def add(self, step: Step) -> None:
        for target in step.targets:
            if target in self.made:
                self.problems.append(
                    f"{target!r} would be made by rule {self.made[target]!r} and by rule {step.rule!r}"
                )
                return
        self.made.update(dict.fromkeys(step.targets, step.rule))
        self.steps.append(step)

    def bound_problem(self, rule: Rule, bindings: Mapping[str, int], name: str) -> str | None:
        for placeholder, value in bindings.items():
            field = self.map.bounds.get(placeholder)
            if field is not None and value >= (limit := size_of(field, self.config)):
                return f"{name!r} has number {value}, but {field}={limit} (numbers start at 0)"
        return None

    def expected(self, rule: Rule) -> Iterable[dict[str, int]]:
        """Every set of numbers that the config says a rule must fire for; nothing where a
        placeholder has no bound.
        """
        names = [name for name in rule.sources[0].placeholders if name != rule.over]
        if any(name not in self.map.bounds for name in names):
            return []
        ranges = [range(size_of(self.map.bounds[name], self.config)) for name in names]
        return (dict(zip(names, numbers, strict=True)) for numbers in itertools.product(*ranges))

    def refuse(self, what: str) -> None:
        if self.problems:
            shown = "; ".join(self.problems[:5])
            more = f"; and {len(self.problems) - 5} more" if len(self.problems) > 5 else ""
            raise CheckpointError(f"{self.map.layout}: {what}: {shown}{more}")


class _Forward(_Planner):
    def __init__(
        self,
        keymap: KeyMap,
        tensors: Mapping[str, Described],
        config: Mapping[str, object],
        heads: Collection[str] | None,
        architectures: Iterable[str],
        targets: Mapping[str, object] | None,
    ):
        super().__init__(keymap, config)
        self.tensors, self.targets = tensors, targets
        self.wanted = set(heads) if heads is not None else None if targets is None else heads_of(targets)
        named = [keymap.architectures[name] for name in architectures if name in keymap.architectures]
        self.stated: frozenset[str] | None = frozenset().union(*named) if named else None
        self.names, self.prefix = keymap._clean(tensors)

    def plan(self, inspect: bool) -> Plan:
        dropped: dict[str, str] = {}
        left_out: dict[str, str] = {}
        passengers: list[str] = []
        copies: list[tuple[Tie, str, str]] = []
        notes: list[str] = []
        replaced: dict[str, Rule] = {}
        taken: list[tuple[Rule, str, str, dict[str, int]]] = []
        for name, (actual, within) in self.names.items():
            entry, bindings = self._entry_of(name, actual, within, left_out, dropped)
            if entry is None:
                continue
            if isinstance(entry, Plain):
                if entry.passenger:
                    info = self.tensors[actual]
                    self.add(Step((actual,), (name,), (tuple(info.shape),), (info.dtype,), rule=entry.label))
                    passengers.append(name)
                else:
                    dropped[actual] = entry.reason
            elif isinstance(entry, Tie):
                copies.append((entry, actual, entry.original.fill(bindings)))
            else:
                problem = self.bound_problem(entry, bindings, actual)
                if problem:
                    self.problems.append(problem)
                    continue
                taken.append((entry, name, actual, bindings))
                if entry.replaces is not None:
                    replaced[entry.replaces.fill(bindings)] = entry
        ties: list[tuple[str, str]] = []
        for _, copy, original in copies:
            if original in self.names:
                ties.append((copy, self.names[original][0]))
                dropped[copy] = f"a stored copy of {self.names[original][0]!r}"
            else:
                # a writer that keeps one of two shared tensors may have kept the copy
                found = [(r, b) for r, b in self.map._sources.find(original) if isinstance(r, Rule) and self.active(r)]
                taken.extend((rule, original, copy, bindings) for rule, bindings in found)
                notes.append(f"{copy!r} stands in for {original!r}, of which it is a copy")
        for rule, name, actual, bindings in taken:
            if name in replaced and rule is not replaced[name]:
                dropped[actual] = f"not used where {replaced[name].label!r} is stored"
            else:
                self.collect(rule, rule.sources, name, actual, bindings)
        self.finish(False, self.tensors, lambda rule, name: name)
        for make in self.map.makes:
            unasked = bool(head_of(make.target)) and self.wanted is not None and head_of(make.target) not in self.wanted
            if not unasked and all(condition.holds(self.config) for condition in make.when):
                shape = tuple(size_of(size, self.config) for size in make.shape)
                self.add(
                    Step(
                        (),
                        (make.target,),
                        (shape,),
                        (self._float_dtype(),),
                        rule=f"make {make.target}",
                        constant=make.kind,
                    )
                )
        return self._concluded(inspect, dropped, left_out, ties, passengers, notes)

    def _float_dtype(self) -> str:
        kinds = [info.dtype for info in self.tensors.values() if info.dtype in ("F64", "F32", "F16", "BF16")]
        return max(set(kinds), key=kinds.count, default="F32")

    def _entry_of(
        self, name: str, actual: str, within: bool, left_out: dict[str, str], dropped: dict[str, str]
    ) -> tuple[Entry | None, dict[str, int]]:
        """The one entry that a source meets; None where it is left out, dropped by a pattern, or a
        problem.
        """
        hits: list[tuple[Entry, dict[str, int]]] = self.map._sources.find(name)
        anywhere = not self.prefix
        placed = [
            hit
            for hit in hits
            if anywhere or hit[0].bare is not within or (isinstance(hit[0], Plain) and not hit[0].passenger)
        ]
        active = [(entry, bindings) for entry, bindings in placed if self.active(entry)]
        if active:
            return self._of_heads(actual, active, left_out)
        if placed:
            entry = placed[0][0]
            condition = " and ".join(c.text for c in entry.when)
            if isinstance(entry, Rule) and entry.otherwise:
                left_out[actual] = entry.otherwise
            elif entry.head and self.wanted is not None and entry.head not in self.wanted:
                left_out[actual] = f"head {entry.head!r}, which nobody asked for"
            else:
                values = ", ".join(f"{f}={self.config.get(f)!r}" for c in entry.when for f in c.fields)
                self.problems.append(
                    f"{actual!r} holds only with {condition} (rule {entry.label!r}); the config says {values}"
                )
            return None, {}
        for pattern, reason in self.map.drop_patterns:
            if fnmatch.fnmatchcase(name, pattern):
                dropped[actual] = reason
                return None, {}
        if not within:
            for pattern, reason in self.map.foreign_heads:
                if fnmatch.fnmatchcase(name, pattern):
                    left_out[actual] = reason
                    return None, {}
        if hits:
            hint = f"rule {hits[0][0].label!r} expects it {'without' if hits[0][0].bare else 'with'} the prefix {self.prefix!r}"
        else:
            near = closest(name, (t.text for rule in self.map.rules for t in rule.sources))
            hint = f"closest rules: {', '.join(repr(n) for n in near)}; add a rule, a drop with its reason, or a foreign head to the map"
        self.problems.append(f"{actual!r} meets no rule; {hint}")
        return None, {}

    def _needed(self, original: str) -> bool:
        """Whether a tensor is not in the file and the backbone, not a head, wants it: then a head's
        copy of it counts.
        """
        rules = [
            entry for entry, _ in self.map._sources.find(original) if isinstance(entry, Rule) and self.active(entry)
        ]
        return original not in self.names and any(not rule.head for rule in rules)

    def _of_heads(
        self, actual: str, active: list[tuple[Entry, dict[str, int]]], left_out: dict[str, str]
    ) -> tuple[Entry | None, dict[str, int]]:
        """Among the heads that a name could belong to, the one that was asked for or that the
        config names.
        """
        heads = list(dict.fromkeys(entry.head for entry, _ in active))
        if heads == [""]:
            if len(active) > 1:
                self.problems.append(
                    f"{actual!r} meets {' and '.join(repr(entry.label) for entry, _ in active)}; one of them is too "
                    "many"
                )
                return None, {}
            return active[0]
        for entry, bindings in active:
            if isinstance(entry, Tie) and self._needed(entry.original.fill(bindings)):
                return entry, bindings
        chosen = [head for head in heads if self.wanted is None or head in self.wanted]
        if len(chosen) > 1 and self.stated is not None:
            chosen = [head for head in chosen if head in self.stated]
        if len(chosen) > 1:
            left_out[actual] = f"may be the head {' or '.join(repr(head) for head in chosen)}; say which one is wanted"
            if self.wanted is not None:
                self.problems.append(f"{actual!r} {left_out.pop(actual)}")
            return None, {}
        if not chosen:
            left_out[actual] = f"head {' or '.join(repr(head) for head in heads)}, which nobody asked for"
            return None, {}
        return next((entry, bindings) for entry, bindings in active if entry.head == chosen[0])

    def _concluded(
        self,
        inspect: bool,
        dropped: dict[str, str],
        left_out: dict[str, str],
        ties: list[tuple[str, str]],
        passengers: list[str],
        notes: list[str],
    ) -> Plan:
        made = {name: shape for step in self.steps for name, shape in zip(step.targets, step.shapes, strict=True)}
        present = heads_of(made)
        missing: list[str] = []
        if self.targets is not None:
            absent_heads = {head for head in heads_of(self.targets) if head not in present}
            missing = [name for name in self.targets if name not in made and head_of(name) not in absent_heads]
            extra = [name for name in made if name not in self.targets and name not in passengers]
            if extra:
                self.problems.append(f"the model has no place for {_some(extra)}")
            for name, target in self.targets.items():
                if name in made and made[name] != shape_of(target):
                    sources = next(step.sources for step in self.steps if name in step.targets)
                    self.problems.append(
                        f"{', '.join(map(repr, sources))} gives {name!r} the shape {made[name]}, the config needs "
                        f"{shape_of(target)}"
                    )
        else:
            absent_heads = set() if self.wanted is None else self.wanted - present
            for rule in self.map.rules:
                if rule.optional or (rule.head and rule.head not in present) or not self.active(rule):
                    continue
                for bindings in self.expected(rule):
                    over = {rule.over: 0} if rule.over else {}
                    missing += [
                        name
                        for t in rule.targets
                        if (name := t.fill({**bindings, **over})) not in made and name not in missing
                    ]
        if missing:
            self.problems.append(f"nothing in the file makes {_some(missing)}")
        if not inspect:
            self.refuse("the file does not fit")
        return Plan(
            self.map.layout,
            self.map.version,
            tuple(self.steps),
            self.prefix,
            frozenset(present),
            dropped,
            left_out,
            tuple(ties),
            tuple(passengers),
            (),
            tuple(missing),
            frozenset(absent_heads),
            self.losses,
            tuple(notes),
            tuple(self.problems),
        )


class _Back(_Planner):
    def __init__(
        self,
        keymap: KeyMap,
        targets: Mapping[str, object],
        config: Mapping[str, object],
        heads: Collection[str] | None,
        ties: bool,
        prefix: str | None,
    ):
        super().__init__(keymap, config)
        self.infos: dict[str, Info] = {
            name: Info(shape_of(t), getattr(t, "dtype", "F32")) for name, t in targets.items()
        }
        self.wanted = None if heads is None else set(heads)
        self.heads = heads_of(targets) if heads is None else heads_of(targets) & set(heads)
        self.ties = ties
        bare = not self.heads and "" in keymap.prefixes
        self.prefix = prefix if prefix is not None else "" if bare else keymap.prefixes[0]

    def plan(self, inspect: bool) -> Plan:
        left_out: dict[str, str] = {}
        passengers: list[str] = []
        checks: list[tuple[str, str]] = []
        copies: list[tuple[Rule, str, str]] = []
        for name in self.infos:
            if self.wanted is not None and head_of(name) and head_of(name) not in self.wanted:
                left_out[name] = f"head {head_of(name)!r}, which nobody asked for"
                continue
            hits: list[tuple[Rule, dict[str, int]]] = self.map._targets.find(name)
            active = [(rule, bindings) for rule, bindings in hits if self.active(rule)]
            active = [hit for hit in active if hit[0].replaces is not None] or active
            if active:
                rule, bindings = active[0]
                problem = self.bound_problem(rule, bindings, name)
                if problem:
                    self.problems.append(problem)
                    continue
                self.collect(rule, rule.targets, name, name, bindings)
                if rule.replaces is not None:
                    copies.append((rule, rule.sources[0].fill(bindings), rule.replaces.fill(bindings)))
                continue
            make = next(
                (m for m in self.map.makes if m.target == name and all(c.holds(self.config) for c in m.when)), None
            )
            if make is not None:
                checks.append((name, make.kind))
                continue
            plain = next(
                (p for p in self.map.plains if p.passenger and p.source.match(name) is not None and self.active(p)),
                None,
            )
            if plain is not None:
                target = name if plain.bare else self.prefix + name
                self.add(
                    Step((name,), (target,), (self.infos[name].shape,), (self.infos[name].dtype,), rule=plain.label)
                )
                passengers.append(target)
            elif hits:
                values = ", ".join(f"{f}={self.config.get(f)!r}" for c in hits[0][0].when for f in c.fields)
                self.problems.append(
                    f"{name!r} can be written only with {hits[0][0].condition}; the config says {values}"
                )
            else:
                near = closest(name, (t.text for rule in self.map.rules for t in rule.targets))
                self.problems.append(
                    f"{name!r} has no place in this layout; closest: {', '.join(repr(n) for n in near)}"
                )
        self.finish(True, self.infos, lambda rule, name: name if rule.bare else self.prefix + name)
        self._copies(copies)
        return self._concluded(inspect, left_out, passengers, checks)

    def _copies(self, copies: list[tuple[Rule, str, str]]) -> None:
        """Sources that a foreign file stores twice: what a rule replaces, and ties."""
        for rule, source, replaced in copies:
            prefix = "" if rule.bare else self.prefix
            self._copy(prefix + source, prefix + replaced, rule.label)
        for tie in self.map.ties:
            if not (self.ties or tie.canonical) or not self.active(tie) or (tie.head and tie.head not in self.heads):
                continue
            for made in list(self.made):
                for name in {made, made.removeprefix(self.prefix)}:
                    bindings = tie.original.match(name)
                    if bindings is not None:
                        self._copy(made, ("" if tie.bare else self.prefix) + tie.copy.fill(bindings), tie.label)

    def _copy(self, made: str, copy: str, label: str) -> None:
        step = next((step for step in self.steps if made in step.targets), None)
        if step is None:
            return
        if len(step.targets) > 1:
            raise MapError(
                f"{self.map.layout}: {copy!r} copies {made!r}, which is one of several tensors that {step.rule!r} makes"
            )
        self.add(Step(step.sources, (copy,), step.shapes, step.dtypes, step.ops, label))

    def _concluded(
        self, inspect: bool, left_out: dict[str, str], passengers: list[str], checks: list[tuple[str, str]]
    ) -> Plan:
        missing: list[str] = []
        for rule in self.map.rules:
            if (
                rule.optional
                or rule.replaces is not None
                or (rule.head and rule.head not in self.heads)
                or not self.active(rule)
            ):
                continue
            missing += [
                name
                for bindings in self.expected(rule)
                for template in rule.targets
                if rule.over not in template.placeholders
                and (name := template.fill(bindings)) not in self.infos
                and name not in missing
            ]
        if missing:
            self.problems.append(f"our file lacks {_some(missing)}")
        if not inspect:
            self.refuse("ours can't be written in this layout")
        return Plan(
            self.map.layout,
            self.map.version,
            tuple(self.steps),
            self.prefix,
            frozenset(self.heads),
            {},
            left_out,
            (),
            tuple(passengers),
            tuple(checks),
            tuple(missing),
            frozenset(),
            self.losses,
            (),
            tuple(self.problems),
        )


def shape_of(target: object) -> Shape:
    """The shape of a target, given as a shape or as something that has one."""
    return tuple(cast(Shape, getattr(target, "shape", target)))


def head_of(name: str) -> str:
    """``masked_lm`` for ``heads.masked_lm.bias``; empty for a name of the backbone."""
    parts = name.split(".")
    return parts[1] if parts[0] == "heads" and len(parts) > 2 else ""


def heads_of(names: Iterable[str]) -> set[str]:
    """The heads among our names."""
    return {head for name in names if (head := head_of(name))}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
