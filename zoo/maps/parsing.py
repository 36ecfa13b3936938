"""From a map's file to a `KeyMap`, refusing one that could mean two things.

A name that two rules could take, a target that two rules make, an unknown operation, a reason left
out is a MapError that names the file and the rule.
"""

from __future__ import annotations

import fnmatch
import itertools
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from zoo.errors import MapError, closest
from zoo.maps.config_map import ConfigMap
from zoo.maps.key_map import KeyMap
from zoo.maps.ops import Op, parse
from zoo.maps.rules import COUNTS, Drop, InnerModel, Make, MapLine, Passenger, Rule, Tie, exclusive
from zoo.maps.spellings import SPELLINGS
from zoo.maps.templates import Condition, Index, Template
from zoo.registry.resources import weights_folder

TABLES = (
    "family", "layout", "version", "title", "prefixes", "wrappers", "recognise", "placeholders", "renames", "rules",
    "tie", "drop", "passenger", "make", "foreign_heads", "architectures", "config", "values", "spelling",
    "parts",
)  # fmt: skip
COMMON_OPTIONS = ("when", "head", "bare")
RULE_OPTIONS = ("to", "from", "op", "over", "otherwise", "optional", "replaces", *COMMON_OPTIONS)

Line = TypeVar("Line", bound=MapLine)
Unused = TypeVar("Unused", Drop, Passenger)


def read_map(path: Path) -> KeyMap:
    """The map in a file."""
    return parse_map(read_table(path), path.name)


def read_table(path: Path) -> dict[str, Any]:
    """A map file with its includes merged in; the file's own entries win."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise MapError(f"{path}: the map can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MapError(f"{path}: not a valid TOML file: {error}") from error
    for name in reversed(table.pop("include", [])):
        candidates = [path.parent / f"{name}.toml", weights_folder() / "_shared" / f"{name}.toml"]
        found = next((c for c in candidates if c.is_file()), None)
        if found is None:
            raise MapError(f"{path}: include {name!r} is neither beside the map nor in weights/_shared")
        table = _merged(read_table(found), table)
    return table


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def parse_map(table: Mapping[str, Any], where: str) -> KeyMap:
    """The map that a table states; ``where`` names it in messages."""
    for key in table:
        if key not in TABLES:
            raise MapError(f"{where}: unknown table [{key}]; closest: {', '.join(closest(key, TABLES))}")
    for key, kind in (("family", str), ("layout", str), ("version", int)):
        if not isinstance(table.get(key), kind):
            raise MapError(f"{where}: a map states {key}, got {table.get(key)!r}")
    config = ConfigMap.parse(table.get("config", {}), table["layout"], where, table.get("values", {}))
    parser = _Parser(table, where, config.fields if "config" in table else None)
    rules = parser.each("rules", parser.rules)
    if not rules:
        raise MapError(f"{where}: a map has [rules]; this one has none")
    ties = parser.each("tie", lambda label, written: parser.ties(label, written, rules))
    patterns, drops = parser.drops()
    passengers = parser.each("passenger", lambda label, written: parser.unused(Passenger, "passenger", label, written))
    makes = tuple(parser.make(target, written) for target, written in table.get("make", {}).items())
    foreign = tuple((k, parser.reason("foreign_heads", k, v)) for k, v in table.get("foreign_heads", {}).items())
    parser.check_words_used()
    heads = sorted({rule.head for rule in rules if rule.head})
    architectures = {name: frozenset(own) for name, own in table.get("architectures", {}).items()}
    for name, own in architectures.items():
        for head in own - set(heads):
            raise MapError(f"{where}: [architectures] {name} has head {head!r}, which no rule makes; there are {heads}")
    prefixes = tuple(table.get("prefixes", [""]))
    entries: list[tuple[Template, MapLine]] = [(source, rule) for rule in rules for source in rule.sources]
    entries += [(tie.copy, tie) for tie in ties]
    entries += [(drop.source, drop) for drop in drops] + [(one.source, one) for one in passengers]
    return KeyMap(
        family=table["family"],
        layout=table["layout"],
        version=table["version"],
        prefixes=prefixes,
        wrappers=tuple(table.get("wrappers", [])),
        recognise=dict(table.get("recognise", {})),
        renames=tuple(table.get("renames", {}).items()),
        spelling=_spelling(table, where),
        bounds=parser.bounds,
        rules=rules,
        ties=ties,
        passengers=passengers,
        makes=makes,
        drop_patterns=(*patterns, *COUNTS.items()),
        foreign_heads=foreign,
        architectures=architectures,
        parts=tuple(_part(name, written, where) for name, written in table.get("parts", {}).items()),
        by_source=_sources(entries, "" in prefixes, (*patterns, *foreign), where),
        by_target=_targets(rules, makes, where),
        config=config,
    )


def _part(name: str, written: object, where: str) -> InnerModel:
    options = written if isinstance(written, Mapping) else {}
    if set(options) != {"family", "prefix", "config", "layouts"}:
        raise MapError(
            f"{where}: [parts] {name!r}: write family (our field that names its family), prefix (of its tensors), "
            f'config (the foreign config\'s key) and layouts (a pattern such as "hf-*"), got {written!r}'
        )
    return InnerModel(name=name, **options)


def _spelling(table: Mapping[str, Any], where: str) -> str:
    name = table.get("spelling", "")
    if name and name not in SPELLINGS:
        raise MapError(f"{where}: no spelling is called {name!r}; there are {', '.join(SPELLINGS)}")
    return str(name)


def _sources(
    entries: Iterable[tuple[Template, MapLine]], bare_files: bool, patterns: Iterable[tuple[str, str]], where: str
) -> Index[MapLine]:
    """The entries by what they read; each name may meet one of them."""
    index: Index[MapLine] = Index()
    patterns = tuple(patterns)
    for template, entry in entries:
        for _, other in index.near(template):
            apart = entry.bare is not other.bare and not bare_files
            two_heads = entry.head and other.head and entry.head != other.head  # of which the caller picks one
            if other is entry or not (apart or two_heads or exclusive(entry.when, other.when)):
                raise MapError(
                    f"{where}: {template.text!r} could meet {other.label!r} and {entry.label!r}; "
                    "make their conditions exclude each other"
                )
        index.add(template, entry)
        for pattern, _ in patterns:
            if entry.head == "" and not entry.bare and fnmatch.fnmatchcase(template.text, pattern):
                raise MapError(
                    f"{where}: pattern {pattern!r} would take {template.text!r}, which has its own entry "
                    f"{entry.label!r}"
                )
    return index


def _targets(rules: Iterable[Rule], makes: Iterable[Make], where: str) -> Index[Rule]:
    """The rules by what they make; each of the zoo's names may be made once."""
    index: Index[Rule] = Index()
    for rule in rules:
        for template in rule.targets:
            for _, other in index.near(template):
                replaced = any(
                    a.replaces is not None and any(a.replaces.overlaps(source) for source in b.sources)
                    for a, b in ((rule, other), (other, rule))
                )
                if other is rule or not (replaced or exclusive(rule.when, other.when)):
                    raise MapError(
                        f"{where}: {template.text!r} is made by {other.label!r} and by {rule.label!r}; "
                        "each of our names is made once"
                    )
            index.add(template, rule)
    for make in makes:
        for rule, _ in index.find(make.target):
            if not exclusive(rule.when, make.when):
                raise MapError(
                    f"{where}: {make.target!r} is made by [make] and by {rule.label!r}; each of our names is made once"
                )
    return index


class _Parser:
    """Reads the lines of a table. ``fields``: what [config] makes, None where the map has none."""

    def __init__(self, table: Mapping[str, Any], where: str, fields: set[str] | None):
        self.table, self.where, self.fields = table, where, fields
        self.bounds: dict[str, str] = {}  # number placeholders that count up to a config field
        self.words: dict[str, dict[str, str]] = {}  # word placeholders: {name: {source word: target word}}
        self.used_words: set[str] = set()
        for name, written in {"p": ["weight", "bias"], **table.get("placeholders", {})}.items():
            if isinstance(written, str):
                if fields is not None and written not in fields:
                    raise MapError(
                        f"{where}: placeholder {{{name}}} counts up to {written!r}, which [config] does not make"
                    )
                self.bounds[name] = written
            else:
                pairs = written.items() if isinstance(written, Mapping) else zip(written, written, strict=True)
                self.words[name] = {str(source): str(target) for source, target in pairs}

    def each(self, part: str, read: Callable[[str, object], Iterable[Line]]) -> tuple[Line, ...]:
        """Every line of a table, its word placeholders filled in."""
        return tuple(line for label, written in self.table.get(part, {}).items() for line in read(label, written))

    def check_words_used(self) -> None:
        for name in self.table.get("placeholders", {}):
            if name in self.words and name not in self.used_words:
                raise MapError(f"{self.where}: placeholder {{{name}}} is declared and no rule uses it")

    def label(self, part: str, label: str) -> str:
        return f"{self.where}: [{part}] {label!r}"

    def rules(self, label: str, written: object) -> Iterable[Rule]:
        where = self.label("rules", label)
        options = _options(written, "to")
        if "to" not in options:
            raise MapError(f'{where}: write our name, or a table with "to", got {written!r}')
        sources, targets = _list(options.get("from", label)), _list(options["to"])
        op = options.get("op")
        loose = {key: value for key, value in options.items() if key not in RULE_OPTIONS}
        if loose and not isinstance(op, str):
            raise MapError(f"{where}: unknown option {sorted(loose)[0]!r}; there are {', '.join(sorted(RULE_OPTIONS))}")
        over = str(options.get("over", ""))
        ops = _counted(parse({"op": op, **loose} if loose else op, where), sources, targets, over, where)
        common = self._common(options, where)
        head = common["head"]
        replaces = options.get("replaces")
        for source_texts, target_texts in self._expanded(sources, targets, where):
            read = tuple(_template(text, where) for text in source_texts)
            made = tuple(_template(text, where) for text in target_texts)
            _same_placeholders((*read, *made), over, where)
            if head and not all(text.startswith(f"heads.{head}.") for text in target_texts):
                raise MapError(
                    f"{where}: a rule of head {head!r} makes names under 'heads.{head}.', got {target_texts[0]!r}"
                )
            if not head and any(text.startswith("heads.") for text in target_texts):
                raise MapError(
                    f"{where}: {target_texts[0]!r} belongs to a head; say head = {target_texts[0].split('.')[1]!r}"
                )
            yield Rule(
                label=label,
                sources=read,
                targets=made,
                ops=ops,
                over=over,
                otherwise=str(options.get("otherwise", "")),
                optional=bool(options.get("optional", False)),
                replaces=None if replaces is None else _template(str(replaces), where),
                **common,
            )

    def ties(self, label: str, written: object, rules: Iterable[Rule]) -> Iterable[Tie]:
        where = self.label("tie", label)
        options = _options(written, "of")
        if set(options) - {"of", "canonical", *COMMON_OPTIONS} or not isinstance(options.get("of"), str):
            raise MapError(
                f"{where}: write the name it copies, or a table with of, when, head, bare, canonical; got {written!r}"
            )
        common, canonical = self._common(options, where), bool(options.get("canonical", False))
        for texts, _ in self._expanded([label], [], where):
            copy, original = _template(texts[0], where), _template(options["of"], where)
            _same_placeholders((copy, original), "", where)
            if not any(original.overlaps(source) for rule in rules for source in rule.sources):
                raise MapError(f"{where}: it copies {original.text!r}, which no rule takes")
            yield Tie(label=label, copy=copy, original=original, canonical=canonical, **common)

    def drops(self) -> tuple[tuple[tuple[str, str], ...], tuple[Drop, ...]]:
        """The patterns of ``[drop]``, with their reasons, and its other lines."""
        written = self.table.get("drop", {})
        patterns = tuple((k, self.reason("drop", k, v)) for k, v in written.items() if "*" in k)
        plain = {k: v for k, v in written.items() if "*" not in k}
        return patterns, tuple(drop for k, v in plain.items() for drop in self.unused(Drop, "drop", k, v))

    def unused(self, kind: type[Unused], part: str, label: str, written: object) -> Iterable[Unused]:
        """Sources that no target is made from."""
        where = self.label(part, label)
        reason, options = self.reason(part, label, written), _options(written, "reason")
        unknown = set(options) - {"reason", *COMMON_OPTIONS}
        if unknown:
            raise MapError(f"{where}: unknown option {sorted(unknown)[0]!r}; there are reason, when, head, bare")
        common = self._common(options, where)
        for texts, _ in self._expanded([label], [], where):
            yield kind(label=label, source=_template(texts[0], where), reason=reason, **common)

    def make(self, target: str, written: object) -> Make:
        where = self.label("make", target)
        options = written if isinstance(written, Mapping) else {}
        if options.get("value") not in ("identity", "zeros", "ones") or not options.get("shape"):
            raise MapError(
                f'{where}: write {{ value = "identity" or "zeros" or "ones", shape = [...], when = ... }}, got '
                f"{written!r}"
            )
        return Make(target, options["value"], tuple(options["shape"]), self._conditions(options.get("when"), where))

    def reason(self, part: str, label: str, written: object) -> str:
        reason = written.get("reason") if isinstance(written, Mapping) else written
        if not isinstance(reason, str) or not reason.strip():
            raise MapError(f"{self.label(part, label)}: a reason is missing; say why these tensors can go")
        return reason

    def _common(self, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """What every line may say."""
        head = str(options.get("head", ""))
        when = self._conditions(options.get("when"), where)
        return {"when": when, "head": head, "bare": bool(options.get("bare", bool(head)))}

    def _conditions(self, written: object, where: str) -> tuple[Condition, ...]:
        try:
            return tuple(Condition.parse(text, self.fields) for text in _list([] if written is None else written))
        except MapError as error:
            raise MapError(f"{where}: {error}") from None

    def _expanded(
        self, sources: Sequence[str], targets: Sequence[str], where: str
    ) -> Iterable[tuple[list[str], list[str]]]:
        """Every filling of the word placeholders: the source's words on the left, the target's on
        the right.
        """
        left = {word for word in self.words for text in sources if f"{{{word}}}" in text}
        right = {word for word in self.words for text in targets if f"{{{word}}}" in text}
        if targets and left != right:
            raise MapError(f"{where}: placeholder {{{sorted(left ^ right)[0]}}} stands on one side only")
        self.used_words |= left
        names = sorted(left)
        for choice in itertools.product(*(self.words[name].items() for name in names)):
            filled_sources, filled_targets = list(sources), list(targets)
            for name, (source_word, target_word) in zip(names, choice, strict=True):
                filled_sources = [text.replace(f"{{{name}}}", source_word) for text in filled_sources]
                filled_targets = [text.replace(f"{{{name}}}", target_word) for text in filled_targets]
            yield filled_sources, filled_targets


def _options(written: object, main: str) -> dict[str, Any]:
    """A line's table; a line that is a string alone states its main option."""
    if isinstance(written, str):
        return {main: written}
    return dict(written) if isinstance(written, Mapping) else {}


def _list(written: object) -> list[str]:
    return [written] if isinstance(written, str) else [str(text) for text in cast(list[object], written)]


def _template(text: str, where: str) -> Template:
    try:
        return Template.parse(text)
    except MapError as error:
        raise MapError(f"{where}: {error}") from None


def _same_placeholders(templates: Sequence[Template], over: str, where: str) -> None:
    sets = [set(template.placeholders) - {over} for template in templates]
    for other in sets[1:]:
        if other != sets[0]:
            raise MapError(f"{where}: placeholder {{{sorted(sets[0] ^ other)[0]}}} stands on one side only")
    if over and not any(over in template.placeholders for template in templates):
        raise MapError(f"{where}: `over` names {{{over}}}, which stands in no name")


def _counted(
    ops: tuple[Op, ...], sources: Sequence[str], targets: Sequence[str], over: str, where: str
) -> tuple[Op, ...]:
    """The operations, told how many names they join or make; refuses those that don't fit the
    names.
    """
    fan_in, fan_out = any(op.fan == "in" for op in ops), any(op.fan == "out" for op in ops)
    numbered = [bool(over) and over in _template(names[0], where).placeholders for names in (sources, targets)]
    several = [len(names) > 1 or by_number for names, by_number in zip((sources, targets), numbered, strict=True)]
    if several != [fan_in, fan_out]:
        raise MapError(
            f"{where}: {len(sources)} name(s) to {len(targets)} with operations {[op.name for op in ops]}: join and "
            "stack take several names to one, split and unstack one to several; with `over` one name with that "
            "placeholder stands for several"
        )
    if over and (all(numbered) or len(sources if numbered[0] else targets) > 1):
        raise MapError(f"{where}: `over` goes with one name that has its placeholder, on one side")
    counts = {"in": 0 if numbered[0] else len(sources), "out": 0 if numbered[1] else len(targets)}  # 0: not known yet
    try:
        return tuple(op.counted(counts[op.fan]) if counts.get(op.fan) else op for op in ops)
    except MapError as error:
        raise MapError(f"{where}: {error}") from None
