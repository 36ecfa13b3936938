"""How a foreign config becomes ours and ours becomes theirs: the ``[config]`` part of a map.

Every foreign key is used or listed with a reason; every field of ours is written or listed with a
reason.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.errors import ConfigError, MapError, closest
from zoo.maps.templates import Template, same
from zoo.maps.value_forms import FORMS

_MISSING = object()


@dataclass(frozen=True)
class Entry:
    """One foreign key that becomes one field of ours."""

    key: str
    field: str
    pairs: tuple[tuple[object, object], ...] = ()  # foreign value, ours; the first that fits is written on the way back
    optional: bool = False
    none: str = ""  # on the way back, an unset field is written as the value of this one
    default: object = _MISSING
    form: str = ""  # a named pair of functions of zoo.maps.value_forms, for values that no list of pairs can tell

    def forward(self, value: object, layout: str) -> object:
        if self.pairs:
            for theirs, ours in self.pairs:
                if same(theirs, value):
                    return ours
            known = ", ".join(repr(theirs) for theirs, _ in self.pairs)
            raise ConfigError(
                f"{layout}: config key {self.key!r} is {value!r}, which has no counterpart here; known are {known}"
            )
        if self.form:
            return FORMS[self.form].forward(value, f"{layout}: config key {self.key!r}")
        if isinstance(self.default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return value

    def back(self, value: object, ours: Mapping[str, object], layout: str) -> object:
        if value is None and self.none:
            value = ours.get(self.none)
        if self.form:
            return FORMS[self.form].back(value)
        if not self.pairs:
            return value
        for theirs, mine in self.pairs:
            if same(mine, value):
                return theirs
        known = ", ".join(repr(mine) for mine in dict.fromkeys(str(mine) for _, mine in self.pairs))
        raise ConfigError(f"{layout} cannot say {self.field}={value!r}; it can say {known}")


@dataclass(frozen=True)
class ConfigMap:
    """The translation of one layout's config, both ways."""

    layout: str
    entries: Mapping[str, Entry]
    aliases: Mapping[str, str]  # old spelling -> key
    ignored: Mapping[str, str]  # key, or a pattern of keys -> why it says nothing about the model
    only: Mapping[str, tuple[tuple[object, ...], str]]  # key -> values that we can take, why no other
    constants: Mapping[str, object]  # written on the way back, and held to where present
    task: Mapping[str, str]  # key -> what it says about a task's head
    fixed: Mapping[str, object]  # our field -> what this layout always means
    lost: Mapping[str, str]  # our field -> why the layout can't carry it
    from_keys: Mapping[str, Template]  # our field -> tensor whose presence it states
    from_shapes: Mapping[str, tuple[Template, int]]  # our field -> tensor and the axis whose size it is
    flatten: tuple[str, ...] = ()  # foreign keys whose tables are read as "key.inner key"

    @classmethod
    def parse(cls, table: Mapping[str, Any], layout: str, where: str) -> ConfigMap:
        known = {
            "defaults",
            "ignored",
            "only",
            "constants",
            "task",
            "fixed",
            "lost",
            "from_keys",
            "from_shapes",
            "aliases",
        }
        parts: dict[str, Any] = {name: dict(table.get(name, {})) for name in known}
        table = {**table}
        flatten = tuple(table.pop("flatten", ()))
        entries = {}
        for key, written in table.items():
            if key not in known or not isinstance(table[key], Mapping) or "to" in table[key]:
                entries[key] = _entry(key, written, parts["defaults"], f"{where}: [config] {key}")
        for key in parts["defaults"]:
            if key not in entries:
                raise MapError(
                    f"{where}: [config.defaults] {key!r} is no key of [config]; closest: "
                    f"{', '.join(closest(key, entries))}"
                )
        for name in ("ignored", "task", "lost"):
            for key, reason in parts[name].items():
                if not isinstance(reason, str) or not reason.strip():
                    raise MapError(f"{where}: [config.{name}] {key!r} needs its reason in words")
        only = {key: _only(written, f"{where}: [config.only] {key}") for key, written in parts["only"].items()}
        uses: dict[str, str] = {}
        for part, keys in {
            "config": entries,
            **{f"config.{name}": parts[name] for name in ("ignored", "only", "constants", "task", "aliases")},
        }.items():
            for key in keys:
                if key in uses:
                    raise MapError(
                        f"{where}: config key {key!r} stands in [{uses[key]}] and in [{part}]; it may have one meaning"
                    )
                uses[key] = part
        made: dict[str, str] = {}
        for part, fields in {
            "config": [entry.field for entry in entries.values()],
            **{f"config.{name}": parts[name] for name in ("fixed", "lost", "from_keys", "from_shapes")},
        }.items():
            for field in fields:
                if field in made:
                    raise MapError(f"{where}: our field {field!r} is made in [{made[field]}] and again in [{part}]")
                made[field] = part
        for old, key in parts["aliases"].items():
            if key not in entries:
                raise MapError(f"{where}: [config.aliases] {old!r} points to {key!r}, which is no key of [config]")
        from_keys = {field: Template.parse(str(name)) for field, name in parts["from_keys"].items()}
        from_shapes = {}
        for field, written in parts["from_shapes"].items():
            if not (
                isinstance(written, list)
                and len(written) == 2
                and isinstance(written[0], str)
                and isinstance(written[1], int)
            ):
                raise MapError(f"{where}: [config.from_shapes] {field!r}: write [tensor, axis], got {written!r}")
            from_shapes[field] = (Template.parse(written[0]), written[1])
        return cls(
            layout,
            entries,
            parts["aliases"],
            parts["ignored"],
            only,
            parts["constants"],
            parts["task"],
            parts["fixed"],
            parts["lost"],
            from_keys,
            from_shapes,
            flatten,
        )

    @property
    def fields(self) -> set[str]:
        """Our fields that this map speaks of."""
        made = {entry.field for entry in self.entries.values()}
        return made.union(self.fixed, self.lost, self.from_keys, self.from_shapes)

    def forward(
        self,
        foreign: Mapping[str, object],
        names: Collection[str] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> dict[str, object]:
        """Our fields from a foreign config; ``names``, the file's tensors cleaned of prefixes, and
        their ``shapes`` decide the fields that no key states.
        """
        foreign = _flat(foreign, self.flatten)
        given: dict[str, object] = {}
        known = [*self.entries, *self.aliases, *self.ignored, *self.only, *self.constants, *self.task]
        for key, value in foreign.items():
            if key in self.constants:
                if not same(value, self.constants[key]):
                    raise ConfigError(
                        f"layout {self.layout} is for {key}={self.constants[key]!r}, the config says {value!r}; name "
                        "another layout"
                    )
            elif key in self.only:
                accepted, reason = self.only[key]
                if value is not None and not any(same(value, a) for a in accepted):
                    shown = " or ".join(repr(a) for a in accepted)
                    raise ConfigError(
                        f"{self.layout}: config key {key!r} is {value!r}; only {shown} can be converted: {reason}"
                    )
            elif key in self.entries or key in self.aliases:
                name = self.aliases.get(key, key)
                if name in given and not same(given[name], value):
                    raise ConfigError(
                        f"{self.layout}: config keys {key!r} and {name!r} mean the same, but say {value!r} and "
                        f"{given[name]!r}"
                    )
                given[name] = value
            elif key not in self.task and not any(fnmatch.fnmatchcase(key, pattern) for pattern in self.ignored):
                near = ", ".join(repr(k) for k in closest(key, known))
                raise ConfigError(
                    f"{self.layout}: config key {key!r} (value {value!r}) is unknown; closest: {near}. "
                    "If it says nothing about the model, leave it out or list it in the map's [config.ignored] with a "
                    "reason"
                )
        ours: dict[str, object] = {}
        for key, entry in self.entries.items():
            value = given.get(key, entry.default)
            if value is _MISSING:
                if entry.optional:
                    continue
                raise ConfigError(
                    f"{self.layout}: the config lacks {key!r} (our {entry.field}), which has no default; "
                    f"it has {', '.join(sorted(foreign)) or 'no keys'}"
                )
            ours[entry.field] = entry.forward(value, self.layout)
        ours.update(self.fixed)
        if names is not None:
            for field, template in self.from_keys.items():
                ours[field] = any(template.match(name) is not None for name in names)
        for field, (template, axis) in self.from_shapes.items():
            for name, shape in (shapes or {}).items():
                if template.match(name) is not None and axis < len(shape):
                    ours[field] = int(shape[axis])
        return ours

    def back(self, ours: Mapping[str, object]) -> dict[str, object]:
        """The foreign config that says what ours says."""
        for field, value in ours.items():
            if field in self.fixed and not same(value, self.fixed[field]):
                raise ConfigError(
                    f"{self.layout} cannot say {field}={value!r}; in this layout it is always {self.fixed[field]!r}"
                )
            if field not in self.fields:
                raise ConfigError(
                    f"{self.layout} has no key for our field {field!r} (value {value!r}); closest: "
                    f"{', '.join(closest(field, self.fields))}"
                )
        foreign = dict(self.constants)
        for key, entry in self.entries.items():
            if entry.field in ours:
                foreign[key] = entry.back(ours[entry.field], ours, self.layout)
            elif not entry.optional and entry.default is _MISSING:
                raise ConfigError(f"{self.layout}: the config lacks our field {entry.field!r}, which becomes {key!r}")
        return _nested(foreign, self.flatten)

    def resolved(self, ours: Mapping[str, object]) -> dict[str, object]:
        """Ours with unset fields filled by those that stand for them (a classifier's dropout by the
        model's).
        """
        standing = {entry.field: entry.none for entry in self.entries.values() if entry.none}
        return {
            field: ours.get(standing[field]) if value is None and field in standing else value
            for field, value in ours.items()
        }

    def task_options(self, foreign: Mapping[str, object]) -> dict[str, object]:
        """What a foreign config says about its task's head (labels and the like); no part of the
        model's config.
        """
        return {key: value for key, value in foreign.items() if key in self.task}


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


def _entry(key: str, written: object, defaults: Mapping[str, object], where: str) -> Entry:
    default = defaults.get(key, _MISSING)
    if isinstance(written, str):
        return Entry(key, written, default=default)
    if not isinstance(written, Mapping) or not isinstance(written.get("to"), str):
        raise MapError(f'{where}: write our field, or a table with "to", got {written!r}')
    unknown = set(written) - {"to", "values", "optional", "none", "form"}
    if unknown:
        raise MapError(f"{where}: unknown option {sorted(unknown)[0]!r}; there are to, values, optional, none, form")
    form = str(written.get("form", ""))
    if form and form not in FORMS:
        raise MapError(f"{where}: unknown form {form!r}; there are {', '.join(FORMS)}")
    values = written.get("values", {})
    pairs = tuple(values.items()) if isinstance(values, Mapping) else tuple((theirs, ours) for theirs, ours in values)
    return Entry(
        key, written["to"], pairs, bool(written.get("optional", False)), str(written.get("none", "")), default, form
    )


def _only(written: object, where: str) -> tuple[tuple[object, ...], str]:
    if (
        not isinstance(written, Mapping)
        or not ({"value", "values"} & set(written))
        or not str(written.get("reason", "")).strip()
    ):
        raise MapError(f'{where}: write {{ value = ..., reason = "..." }}, got {written!r}')
    accepted = list(written["values"]) if "values" in written else [written["value"]]
    return tuple(accepted), str(written["reason"])
