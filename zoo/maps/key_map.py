"""A map: how one public layout's tensor names and config become the zoo's, and the way back.

A map is data (``weights/<family>/<layout>.toml``); ``docs/guides/convert.md`` tells how to write one.
``zoo.maps.layouts`` finds and loads it, ``zoo.maps.parsing`` checks it, ``zoo.maps.planning`` plans
with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from zoo.formats.archive import Described, Info
from zoo.maps.config_map import ConfigMap
from zoo.maps.planning import Back, Forward
from zoo.maps.plans import Plan, heads_of, shape_of
from zoo.maps.rules import RuleSet


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class KeyMap(RuleSet):
    """One layout's names and config, both ways."""

    config: ConfigMap

    def __repr__(self) -> str:
        return f"KeyMap({self.layout!r}, version {self.version}, {len(self.rules)} rules)"

    def config_forward(
        self, foreign: Mapping[str, object], tensors: Mapping[str, Described] | Iterable[str] | None = None
    ) -> dict[str, object]:
        """The zoo's config fields from a foreign config; with the file's tensors also those that
        only their names (a pooler) or shapes (the rows of a table) show.
        """
        names = None if tensors is None else self.clean(tensors)[0]
        shapes = None
        if names and isinstance(tensors, Mapping):
            shapes = {name: tensors[actual].shape for name, (actual, _) in names.items()}
        return self.config.forward(foreign, names, shapes)

    def config_back(self, fields: Mapping[str, object], heads: Collection[str] = ()) -> dict[str, object]:
        """The foreign config for the zoo's, loadable by the other library; ``heads`` choose the
        architecture it names.
        """
        foreign = self.config.back(fields)
        names = [name for name, parts in self.architectures.items() if parts == frozenset(heads)]
        return {"architectures": names[:1], **foreign} if names else foreign

    def resolved(self, fields: Mapping[str, object]) -> dict[str, object]:
        """The fields, unset ones filled by those that stand for them."""
        return self.config.resolved(fields)

    def task_options(self, foreign: Mapping[str, object]) -> dict[str, object]:
        """Labels and the like that a foreign config holds for its task's head."""
        return self.config.task_options(foreign)

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
        """The plan from a foreign file to the zoo's names. ``config`` holds the zoo's fields.

        ``heads`` are those wanted (None: those among ``targets``, or every head that the file has).
        ``architectures`` are the foreign config's words for what the file is; they settle whose
        head an ambiguous name is. ``targets`` are the names and shapes that must come out. With
        ``inspect`` problems are listed in the plan, not raised.
        """
        wanted = set(heads) if heads is not None else None if targets is None else heads_of(targets)
        named = [self.architectures[name] for name in architectures if name in self.architectures]
        stated = frozenset().union(*named) if named else None
        return Forward(self, config, tensors, wanted, stated).plan(targets, inspect)

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
        """The plan from the zoo's names (-> shapes or infos) to the foreign layout. ``ties`` writes
        stored copies too, as old files have them. ``tied_heads``: heads of the model that may have no
        tensor of their own (GPT-2's is the token table); they count where no rule makes one.

        Encoders alone get bare names where the layout knows them; with a head or another tensor that
        stands outside the prefix, or where it does not, the canonical prefix.
        """
        wanted = None if heads is None else set(heads)
        present = heads_of(targets).union(set(tied_heads) - {rule.head for rule in self.rules if rule.active(config)})
        written = present if wanted is None else present & wanted
        if prefix is None:
            outside = written or any(rule.bare for name in targets for rule, _ in self.by_target.find(name))
            prefix = "" if not outside and "" in self.prefixes else self.prefixes[0]
        infos = {name: Info(shape_of(t), getattr(t, "dtype", "F32")) for name, t in targets.items()}
        return Back(self, config, infos, wanted, prefix).plan(written, ties, inspect)
