"""The ``[config]`` part of a map: how a foreign config becomes the zoo's, and the way back.

Every foreign key is used or listed with a reason; every field of the zoo's is written or listed
with a reason.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import ConfigError, MapError, closest
from zoo.maps.templates import Template, same
from zoo.maps.value_forms import COMPUTED, DERIVED, FORMS, INFERRED

_MISSING = object()
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ConfigEntry:
    """One foreign key that becomes one field of the zoo's."""

    key: str
    field: str
    pairs: tuple[tuple[object, object], ...] = ()  # foreign value, field's value; the first that fits is written back
    optional: bool = False
    none: str = ""  # on the way back, an unset field is written as the value of this one
    default: object = _MISSING
    size_of: tuple[Template, int] | None = None  # a tensor and the axis whose size wins over what the config says
    form: str = ""  # a named pair of functions of zoo.maps.value_forms, for values that no list of pairs can tell

    def forward(self, value: object, layout: str) -> object:
        if self.pairs:
            for foreign, own in self.pairs:
                if same(foreign, value):
                    return own
            known = ", ".join(repr(foreign) for foreign, _ in self.pairs)
            raise ConfigError(
                f"{layout}: config key {self.key!r} is {value!r}, which has no counterpart here; known are {known}"
            )
        if self.form:
            return FORMS[self.form].forward(value, f"{layout}: config key {self.key!r}")
        if isinstance(self.default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value) if abs(value) < 1 << 53 else value
        return value

    def back(self, value: object, fields: Mapping[str, object], layout: str) -> object:
        if value is None and self.none:
            value = fields.get(self.none)
        if self.form:
            return FORMS[self.form].back(value)
        if not self.pairs:
            return value
        for foreign, own in self.pairs:
            if same(own, value):
                return foreign
        known = ", ".join(repr(own) for own in dict.fromkeys(str(own) for _, own in self.pairs))
        raise ConfigError(f"{layout} cannot say {self.field}={value!r}; it can say {known}")


@dataclass(frozen=True)
class Inferred:
    """A field that follows, where no key states it, from tensors' sizes, numbers of layers, other fields and keys.

    ``sources``: each a number; a field; (a tensor, an axis), its size; (a tensor, None), how many there are of that
    name; or (a key, its default).
    """

    form: str  # of zoo.maps.value_forms.INFERRED
    sources: tuple[object, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The foreign keys that it reads."""
        return tuple(source.key for source in self.sources if isinstance(source, _Key))

    def value(self, fields: Mapping[str, object], given: Mapping[str, object], shapes: Shapes) -> object:
        """What follows, or `_MISSING` where a source is not there."""
        values = [_read(source, fields, given, shapes) for source in self.sources]
        return _MISSING if _MISSING in values else INFERRED[self.form](*values)


@dataclass(frozen=True)
class _Key:
    key: str
    default: object


def _read(source: object, fields: Mapping[str, object], given: Mapping[str, object], shapes: Shapes) -> Any:
    if isinstance(source, _Key):
        return given.get(source.key, source.default)
    if isinstance(source, str):
        return fields.get(source, _MISSING)
    if not isinstance(source, tuple):
        return source
    template, axis = source
    found = [(bound, shape) for name, shape in shapes.items() if (bound := template.match(name)) is not None]
    if axis is None:
        return len(found) or _MISSING
    return next((int(shape[axis]) for _, shape in found if axis < len(shape)), _MISSING)


SAVE = "zoo_generation"  # in a config that the zoo wrote for another library: which save it is of
SETTINGS = ("flatten", "within")
PARTS = (
    *("defaults", "ignored", "only", "constants", "task", "fixed"),
    *("lost", "from_keys", "from_shapes", "aliases", "derived", "computed", "inferred"),
)


@dataclass(frozen=True)
class ConfigMap:
    """The translation of one layout's config, both ways."""

    layout: str
    entries: Mapping[str, ConfigEntry]
    aliases: Mapping[str, str]  # old spelling -> key
    ignored: Mapping[str, str]  # key, or a pattern of keys -> why it says nothing about the model
    only: Mapping[str, tuple[tuple[object, ...], str]]  # key -> values that we can take, why no other
    written: Mapping[str, object]  # of those, what the way back writes
    constants: Mapping[str, object]  # written on the way back, held to where present; the first of a list
    task: Mapping[str, str]  # key -> what it says about a task's head
    fixed: Mapping[str, object]  # field -> what this layout always means
    lost: Mapping[str, str]  # field -> why the layout can't carry it
    from_keys: Mapping[str, Template]  # field -> tensor whose presence it states
    from_shapes: Mapping[str, tuple[Template, int]]  # field -> tensor and the axis whose size it is
    derived: Mapping[str, tuple[str, str]]  # field -> key that makes a field of its own, and how this one follows
    computed: Mapping[str, str]  # key -> how its value follows from our fields
    inferred: Mapping[str, Inferred]  # field -> what it follows from, where no key states it
    flatten: tuple[str, ...] = ()  # foreign keys whose tables are read as "key.inner key"
    within: str = ""  # a foreign key whose table is the config; it may also come without

    @classmethod
    def parse(
        cls, table: Mapping[str, Any], layout: str, where: str, named: Mapping[str, Any] | None = None
    ) -> ConfigMap:
        """The map in a [config] table; ``named`` are lists of values that its lines may refer to."""
        parts: dict[str, Any] = {name: dict(table.get(name, {})) for name in PARTS}
        entries = {
            key: _entry(key, written, parts["defaults"], named or {}, f"{where}: [config] {key}")
            for key, written in table.items()
            if key not in ("flatten", "within")
            and (key not in PARTS or not isinstance(written, Mapping) or "to" in written)
        }
        for key in parts["defaults"]:
            if key not in entries:
                near = ", ".join(closest(key, entries))
                raise MapError(f"{where}: [config.defaults] {key!r} is no key of [config]; closest: {near}")
        for old, key in parts["aliases"].items():
            if key not in entries:
                raise MapError(f"{where}: [config.aliases] {old!r} points to {key!r}, which is no key of [config]")
        for name in ("ignored", "task", "lost"):
            for key, reason in parts[name].items():
                if not isinstance(reason, str) or not reason.strip():
                    raise MapError(f"{where}: [config.{name}] {key!r} needs its reason in words")
        for key, form in parts["computed"].items():
            if form not in COMPUTED:
                known = ", ".join(COMPUTED)
                raise MapError(f"{where}: [config.computed] {key!r}: unknown form {form!r}; there are {known}")
        said = ("ignored", "only", "constants", "task", "aliases", "computed")
        keys = {f"config.{name}": parts[name] for name in said}
        for key, first, second in _repeated({"config": entries, **keys}):
            raise MapError(
                f"{where}: config key {key!r} stands in [{first}] and in [{second}]; it may have one meaning"
            )
        made = {f"config.{name}": parts[name] for name in ("fixed", "lost", "from_keys", "from_shapes", "derived")}
        for field, first, second in _repeated({"config": [entry.field for entry in entries.values()], **made}):
            raise MapError(f"{where}: our field {field!r} is made in [{first}] and again in [{second}]")
        return cls(
            layout,
            entries,
            only={key: _only(said, f"{where}: [config.only] {key}") for key, said in parts["only"].items()},
            written={key: said["value"] for key, said in parts["only"].items() if said.get("written")},
            from_keys={field: Template.parse(str(name)) for field, name in parts["from_keys"].items()},
            from_shapes={field: _axis_of(field, written, where) for field, written in parts["from_shapes"].items()},
            derived={field: _derived(field, said, entries, where) for field, said in parts["derived"].items()},
            inferred={field: _inferred(field, said, where) for field, said in parts["inferred"].items()},
            flatten=tuple(table.get("flatten", ())),
            within=str(table.get("within", "")),
            **{name: parts[name] for name in ("aliases", "ignored", "constants", "task", "fixed", "lost", "computed")},
        )

    @property
    def fields(self) -> set[str]:
        """The zoo's fields that this map speaks of."""
        made = {entry.field for entry in self.entries.values()}
        return made.union(self.fixed, self.lost, self.from_keys, self.from_shapes, self.derived, self.inferred)

    @property
    def sized(self) -> dict[str, tuple[Template, int]]:
        """The fields that a key states and a tensor's size knows better."""
        return {entry.field: entry.size_of for entry in self.entries.values() if entry.size_of is not None}

    def forward(
        self,
        foreign: Mapping[str, object],
        names: Collection[str] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, object]:
        """The zoo's fields from a foreign config; ``names``, the file's tensors cleaned of
        prefixes, and their ``shapes`` decide the fields that no key states.
        """
        inner = foreign.get(self.within)
        foreign = _flat(inner if isinstance(inner, Mapping) else foreign, self.flatten)
        given: dict[str, object] = {}
        for key, value in foreign.items():
            name = self.aliases.get(key, key)
            if name in self.entries:
                if name in given and not same(given[name], value):
                    raise ConfigError(
                        f"{self.layout}: config keys {key!r} and {name!r} mean the same, but say {value!r} and "
                        f"{given[name]!r}"
                    )
                given[name] = value
            elif name in self._read:
                given[name] = value
            elif name not in self.computed:
                self._check(name, value)
        fields: dict[str, object] = {}
        for key, entry in self.entries.items():
            value = given.get(key, entry.default)
            if value is not _MISSING:
                fields[entry.field] = entry.forward(value, self.layout)
            elif not entry.optional:
                raise ConfigError(
                    f"{self.layout}: the config lacks {key!r} (our {entry.field}), which has no default; "
                    f"it has {', '.join(sorted(foreign)) or 'no keys'}"
                )
        fields.update(self.fixed)
        for field, (key, form) in self.derived.items():
            own = fields[self.entries[key].field]
            fields[field] = DERIVED[form](own, f"{self.layout}: config key {key!r}")
        if names is not None:
            for field, template in self.from_keys.items():
                fields[field] = any(template.match(name) is not None for name in names)
        for field, (template, axis) in {**self.sized, **self.from_shapes}.items():
            for name, shape in (shapes or {}).items():
                if template.match(name) is not None and axis < len(shape):
                    fields[field] = int(shape[axis])
        for field, rule in self.inferred.items():
            if field not in fields and (value := rule.value(fields, given, shapes or {})) is not _MISSING:
                fields[field] = value
        for key, form in self.computed.items():
            follows = _follows(form, fields) if key in foreign else None
            if follows is not None and not _close(foreign[key], follows):
                raise ConfigError(
                    f"{self.layout}: config key {key!r} is {foreign[key]!r}; by the others it is {follows!r}, and no "
                    "other value can be converted"
                )
        return fields

    @functools.cached_property
    def _read(self) -> frozenset[str]:
        """The keys that are read for what follows from them."""
        return frozenset(key for rule in self.inferred.values() for key in rule.keys)

    def _common(self, key: str) -> str:
        """The key's name in the tables that say what any config may hold: a table of its own has them too."""
        first, _, inner = key.partition(".")
        if first not in self.flatten or key in self.constants or key in self.only or key in self.task:
            return key
        if any(fnmatch.fnmatchcase(key, pattern) for pattern in self.ignored):
            return key
        table = inner.partition(".")[0]  # labels are tables themselves
        return table if table in self.task else inner

    def _check(self, key: str, value: object) -> None:
        """Refuse a key that makes no field where it is unknown or says what can't be converted."""
        key, said = self._common(key), key
        if key in self.constants:
            constants = _listed(self.constants[key])
            if not any(same(value, constant) for constant in constants):
                raise ConfigError(
                    f"layout {self.layout} is for {key}={' or '.join(map(repr, constants))}, the config says "
                    f"{value!r}; name another layout"
                )
        elif key in self.only:
            accepted, reason = self.only[key]
            if value is not None and not any(same(value, a) for a in accepted):
                shown = " or ".join(repr(a) for a in accepted)
                raise ConfigError(
                    f"{self.layout}: config key {key!r} is {value!r}; only {shown} can be converted: {reason}"
                )
        elif key not in (*self.task, SAVE) and not any(fnmatch.fnmatchcase(key, pattern) for pattern in self.ignored):
            known = [*self.entries, *self.aliases, *self.ignored, *self.only, *self.constants, *self.task]
            known += self.computed
            near = ", ".join(repr(k) for k in closest(said, known))
            raise ConfigError(
                f"{self.layout}: config key {said!r} (value {value!r}) is unknown; closest: {near}. If it says nothing "
                "about the model, leave it out or list it in the map's [config.ignored] with a reason"
            )

    def back(self, fields: Mapping[str, object]) -> dict[str, object]:
        """The foreign config that says what the zoo's fields say."""
        for field, value in fields.items():
            if field in self.fixed and not same(value, self.fixed[field]):
                raise ConfigError(
                    f"{self.layout} cannot say {field}={value!r}; in this layout it is always {self.fixed[field]!r}"
                )
            if field not in self.fields:
                raise ConfigError(
                    f"{self.layout} has no key for our field {field!r} (value {value!r}); closest: "
                    f"{', '.join(closest(field, self.fields))}"
                )
        for field, (key, form) in self.derived.items():
            source = self.entries[key].field
            if field in fields and source in fields:
                follows = DERIVED[form](fields[source], f"{self.layout}: config key {key!r}")
                if not same(fields[field], follows):
                    raise ConfigError(
                        f"{self.layout} cannot say {field}={fields[field]!r}; it follows from {source}, and is "
                        f"{follows!r}"
                    )
        foreign = {key: _listed(constant)[0] for key, constant in self.constants.items()} | dict(self.written)
        for key, entry in self.entries.items():
            if entry.field in fields:
                foreign[key] = entry.back(fields[entry.field], fields, self.layout)
            elif not entry.optional and entry.default is _MISSING:
                raise ConfigError(f"{self.layout}: the config lacks our field {entry.field!r}, which becomes {key!r}")
        computed = {key: _follows(form, fields) for key, form in self.computed.items()}
        foreign |= {key: value for key, value in computed.items() if value is not None}
        nested = _nested(foreign, self.flatten)
        return {self.within: nested} if self.within else nested

    def resolved(self, fields: Mapping[str, object]) -> dict[str, object]:
        """The fields, unset ones filled by those that stand for them (a classifier's dropout by the
        model's).
        """
        standing = {entry.field: entry.none for entry in self.entries.values() if entry.none}
        return {
            field: fields.get(standing[field]) if value is None and field in standing else value
            for field, value in fields.items()
        }

    def task_options(self, foreign: Mapping[str, object]) -> dict[str, object]:
        """What a foreign config says about its task's head (labels and the like); no part of the
        model's config.
        """
        return {key: value for key, value in foreign.items() if key in self.task}


def _follows(form: str, fields: Mapping[str, object]) -> object:
    """What follows from the fields; None where it is nothing, or where only tensors tell a size."""
    try:
        return COMPUTED[form](fields)
    except KeyError:
        return None


def _close(value: object, follows: object) -> bool:
    """Whether a value is what follows from others; a ratio may have been rounded."""
    if isinstance(value, int | float) and isinstance(follows, float):
        return math.isclose(value, follows, rel_tol=1e-3)
    return same(value, follows)


def _listed(constant: object) -> list[object]:
    return constant if isinstance(constant, list) else [constant]


def _repeated(groups: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str, str]]:
    """Names that stand in two groups, or twice in one, with the groups."""
    seen: dict[str, str] = {}
    for group, names in groups.items():
        for name in names:
            if name in seen:
                yield name, seen[name], group
            seen[name] = group


def _flat(foreign: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    """``{"a": {"b": {"c": 1}}}`` -> ``{"a.b.c": 1}`` for the keys named."""
    flat: dict[str, object] = {}
    for key, value in foreign.items():
        if key.split(".")[0] in keys and isinstance(value, Mapping):
            flat.update(_flat({f"{key}.{inner}": part for inner, part in value.items()}, keys))
        else:
            flat[key] = value
    return flat


def _nested(flat: Mapping[str, object], keys: Sequence[str]) -> dict[str, object]:
    """The way back of `_flat`; what is None is left out there."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        first, *rest = key.split(".")
        if first not in keys or not rest:
            nested[key] = value
        elif value is not None:
            table = nested
            for part in (first, *rest[:-1]):
                table = table.setdefault(part, {})
            table[rest[-1]] = value
    return nested


def _entry(
    key: str, written: object, defaults: Mapping[str, object], named: Mapping[str, Any], where: str
) -> ConfigEntry:
    default = defaults.get(key, _MISSING)
    if isinstance(written, str):
        return ConfigEntry(key, written, default=default)
    if not isinstance(written, Mapping) or not isinstance(written.get("to"), str):
        raise MapError(f'{where}: write our field, or a table with "to", got {written!r}')
    unknown = set(written) - {"to", "values", "optional", "none", "form", "size_of"}
    if unknown:
        known = "to, values, optional, none, form, size_of"
        raise MapError(f"{where}: unknown option {sorted(unknown)[0]!r}; there are {known}")
    form = str(written.get("form", ""))
    if form and form not in FORMS:
        raise MapError(f"{where}: unknown form {form!r}; there are {', '.join(FORMS)}")
    values = written.get("values", ())
    if isinstance(values, str):
        if values not in named:
            raise MapError(f"{where}: no [values] are called {values!r}; there are {', '.join(named) or 'none'}")
        values = named[values]
    pairs = tuple(values.items() if isinstance(values, Mapping) else ((foreign, own) for foreign, own in values))
    optional, none = bool(written.get("optional", False)), str(written.get("none", ""))
    size_of = _axis_of(key, written["size_of"], where) if "size_of" in written else None
    return ConfigEntry(key, written["to"], pairs, optional, none, default, size_of, form)


def _only(written: object, where: str) -> tuple[tuple[object, ...], str]:
    options = written if isinstance(written, Mapping) else {}
    if not ({"value", "values"} & set(options)) or not str(options.get("reason", "")).strip():
        raise MapError(f'{where}: write {{ value = ..., reason = "..." }}, got {written!r}')
    if options.get("written", False) not in (True, False) or ("written" in options and "value" not in options):
        raise MapError(f"{where}: written = true stands beside one value, which the way back writes, got {written!r}")
    accepted = list(options["values"]) if "values" in options else [options["value"]]
    return tuple(accepted), str(options["reason"])


def _derived(field: str, written: object, entries: Mapping[str, ConfigEntry], where: str) -> tuple[str, str]:
    """``[key, form]``: the field follows from what the key makes."""
    if isinstance(written, list) and [type(part) for part in written] == [str, str]:
        key, form = written
        if key in entries and form in DERIVED:
            return key, form
    raise MapError(
        f"{where}: [config.derived] {field!r}: write [key of [config], form], a form being one of "
        f"{', '.join(DERIVED)}, got {written!r}"
    )


def _inferred(field: str, written: object, where: str) -> Inferred:
    """``{ form = ..., from = [...] }``, see `Inferred`."""
    where = f"{where}: [config.inferred] {field!r}"
    options = written if isinstance(written, Mapping) else {}
    if set(options) != {"form", "from"} or options["form"] not in INFERRED:
        raise MapError(
            f"{where}: write {{ form = ..., from = [...] }}, a form being one of {', '.join(INFERRED)}, got {written!r}"
        )
    sources: list[object] = []
    for source in options["from"]:
        if isinstance(source, Mapping):
            if set(source) != {"key", "default"}:
                raise MapError(f"{where}: a key is written {{ key = ..., default = ... }}, got {source!r}")
            sources.append(_Key(source["key"], source["default"]))
        elif isinstance(source, list):
            template, axis = source
            sources.append((Template.parse(template), None if axis == "count" else axis))
        else:
            sources.append(source)
    return Inferred(options["form"], tuple(sources))


def _axis_of(field: str, written: object, where: str) -> tuple[Template, int]:
    """``[tensor, axis]``: the field is the size of that axis."""
    if isinstance(written, list) and [type(part) for part in written] == [str, int]:
        return Template.parse(written[0]), written[1]
    raise MapError(f"{where}: {field!r}: write [tensor, axis], got {written!r}")
