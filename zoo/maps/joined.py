"""Layouts made of layouts: a file whose parts are whole models, each under a prefix and in a layout of its own.

``[parts]`` of a map names them. What stands under a part's prefix, and the part's table in the config, go to the map
of that model's own layout; the map's own ``[rules]`` and ``[config]`` are for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from zoo.errors import ConfigError, ZooError
from zoo.formats.archive import Described
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan, PlanStep, head_of
from zoo.maps.rules import InnerModel
from zoo.maps.templates import same
from zoo.registry import variants as registry

Layouts = Callable[[str], Iterable[KeyMap]]  # those whose names have a pattern


def maps_of(family: str) -> str:
    """The family whose layouts serve a family; itself where nobody registers it."""
    found = registry.families().get(family)
    return found[0].maps if found else family


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class JoinedMap(KeyMap):
    """A layout with ``parts``, whose own maps are among those that ``known`` gives for their pattern."""

    known: Layouts

    # --- which map a part has -----------------------------------------------------------------------------------------

    def _stated(self, part: InnerModel, foreign: Mapping[str, object]) -> tuple[KeyMap, Mapping[str, object]]:
        """The map that a part's table in the foreign config is for, and that table."""
        said = foreign.get(part.config)
        if not isinstance(said, Mapping):
            raise ConfigError(f"{self.layout}: the config lacks {part.config!r}, the config of the {part.name} tower")
        kind = said.get("model_type")
        known = {str(name): keymap for keymap in self.known(part.layouts) for name in keymap.recognise["model_type"]}
        if kind not in known:
            raise ConfigError(
                f"{self.layout}: {part.config}.model_type is {kind!r}, a model that no layout {part.layouts} is for; "
                f"known are {', '.join(sorted(known))}"
            )
        return known[str(kind)], said

    def _chosen(self, part: InnerModel, config: Mapping[str, Any]) -> KeyMap:
        """The map that can say a part's config of ours."""
        family, why = str(config[part.family]), "there is none"
        for keymap in self.known(part.layouts):
            if keymap.family != maps_of(family):
                continue
            try:
                again = keymap.config_forward(keymap.config_back(_of(part, config)))
            except ZooError as error:
                why = str(error)
                continue
            wanted = keymap.resolved(_of(part, config))
            changed = [name for name, value in again.items() if not same(value, wanted.get(name, value))]
            if not changed:
                return keymap
            why = f"{keymap.layout} can't say {changed[0]}={wanted[changed[0]]!r}"
        raise ConfigError(f"{self.layout} holds a {part.name} tower in a layout {part.layouts} of {family}: {why}")

    # --- the config ---------------------------------------------------------------------------------------------------

    def config_forward(
        self, foreign: Mapping[str, object], tensors: Mapping[str, Described] | Iterable[str] | None = None
    ) -> dict[str, object]:
        keys = {part.config for part in self.parts}
        fields = super().config_forward({key: value for key, value in foreign.items() if key not in keys}, tensors)
        for part in self.parts:
            keymap, said = self._stated(part, foreign)
            inner: Mapping[str, Described] | Iterable[str] | None = None
            if tensors is not None:
                inside = self._inside(part, tensors)
                inner = {n: tensors[a] for n, a in inside.items()} if isinstance(tensors, Mapping) else list(inside)
            fields |= {part.family: keymap.family, part.name: keymap.config_forward(said, inner)}
        return fields

    def config_back(self, fields: Mapping[str, object], heads: Collection[str] = ()) -> dict[str, object]:
        own = {name for part in self.parts for name in (part.family, part.name)}
        foreign = super().config_back({name: value for name, value in fields.items() if name not in own}, heads)
        inner = {part.config: self._chosen(part, fields).config_back(_of(part, fields)) for part in self.parts}
        return foreign | inner

    def resolved(self, fields: Mapping[str, object]) -> dict[str, object]:
        found = super().resolved(fields)
        for part in self.parts:
            keymap = self._chosen(part, fields)
            found |= {part.family: keymap.family, part.name: keymap.resolved(_of(part, fields))}
        return found

    # --- the tensors --------------------------------------------------------------------------------------------------

    def _inside(self, part: InnerModel, tensors: Iterable[str]) -> dict[str, str]:
        """The names under a part's prefix, without it -> as the file has them."""
        names = self.clean(tensors)[0]
        return {n.removeprefix(part.prefix): actual for n, (actual, _) in names.items() if n.startswith(part.prefix)}

    def leftovers(self, tensors: Iterable[str], below: bool = False) -> list[str]:
        prefixes = tuple(part.prefix for part in self.parts)
        return [name for name in super().leftovers(tensors, below) if not name.startswith(prefixes)]

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
        inside = {part: self._inside(part, tensors) for part in self.parts}
        taken = {actual for names in inside.values() for actual in names.values()}
        own = None if targets is None else {n: t for n, t in targets.items() if not n.startswith(self._ours())}
        plan = super().forward(
            {name: info for name, info in tensors.items() if name not in taken},
            config,
            heads=heads,
            architectures=architectures,
            targets=own,
            inspect=inspect,
        )
        for part, names in inside.items():
            inner = self._chosen(part, config).forward(
                {name: tensors[actual] for name, actual in names.items()},
                _of(part, config),
                heads=(),
                targets=None if targets is None else _under(f"{part.name}.", targets),
                inspect=inspect,
            )
            plan = joined(plan, inner, names.__getitem__, lambda name, part=part: f"{part.name}.{name}")  # type: ignore[misc]
        return plan

    def back(
        self,
        targets: Mapping[str, object],
        config: Mapping[str, object],
        *,
        heads: Collection[str] | None = None,
        tied_heads: Collection[str] = (),
        ties: bool = False,
        prefix: str | None = None,
        inspect: bool = False,
    ) -> Plan:
        own = {name: target for name, target in targets.items() if not name.startswith(self._ours())}
        plan = super().back(own, config, heads=heads, tied_heads=tied_heads, ties=ties, prefix=prefix, inspect=inspect)
        for part in self.parts:
            inner = self._chosen(part, config).back(
                _under(f"{part.name}.", targets), _of(part, config), heads=(), ties=ties, inspect=inspect
            )
            plan = joined(
                plan,
                inner,
                lambda name, part=part: f"{part.name}.{name}",  # type: ignore[misc]
                lambda name, part=part: f"{part.prefix}{name}",  # type: ignore[misc]
            )
        return plan

    def _ours(self) -> tuple[str, ...]:
        return tuple(f"{part.name}." for part in self.parts)


def _of(part: InnerModel, config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner: Mapping[str, Any] = config[part.name]
    return inner


def _under(prefix: str, names: Mapping[str, object]) -> dict[str, object]:
    return {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}


def joined(plan: Plan, inner: Plan, source: Callable[[str], str], target: Callable[[str], str]) -> Plan:
    """A plan and that of a part, whose names the two functions put into the whole file's."""

    def moved(step: PlanStep) -> PlanStep:
        return replace(step, sources=tuple(map(source, step.sources)), targets=tuple(map(target, step.targets)))

    return replace(
        plan,
        steps=(*plan.steps, *map(moved, inner.steps)),
        dropped={**plan.dropped, **{source(name): why for name, why in inner.dropped.items()}},
        left_out={**plan.left_out, **{source(name): why for name, why in inner.left_out.items()}},
        ties=(*plan.ties, *((source(a), source(b)) for a, b in inner.ties)),
        passengers=(*plan.passengers, *map(target, inner.passengers)),
        checks=(*plan.checks, *((source(name), kind) for name, kind in inner.checks)),
        missing=(*plan.missing, *(target(name) for name in inner.missing if not head_of(name))),
        losses={**plan.losses, **{target(name): lost for name, lost in inner.losses.items()}},
        notes=(*plan.notes, *inner.notes),
        problems=(*plan.problems, *inner.problems),
    )
