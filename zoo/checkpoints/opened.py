"""An opened checkpoint: its archive, and what its names and config mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from zoo.checkpoints.files import architectures_of
from zoo.errors import CheckpointError
from zoo.formats.archive import Archive, Entry, TensorInfo
from zoo.formats.tree import WRAPPERS
from zoo.maps import layouts
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan, PlanStep, head_of, heads_of, shape_of
from zoo.maps.rules import COUNTS


@dataclass(frozen=True)
class Opened:
    """An archive, the map of its layout (None: our own names), our config fields, and the foreign
    config that they came from.

    ``overrides``: the fields that the user set otherwise on purpose. ``sha256``: the file's hash,
    where it is on record. ``modules``: tensors of files beside it that no layout has names for, and
    ours.
    """

    archive: Archive
    keymap: KeyMap | None
    config: Mapping[str, object]
    foreign: Mapping[str, object] | None = None
    overrides: Collection[str] = ()
    sha256: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> str:
        return layouts.OURS if self.keymap is None else self.keymap.layout

    def plan(
        self,
        targets: Mapping[str, object] | None = None,
        heads: Collection[str] | None = None,
        *,
        inspect: bool = False,
    ) -> Plan:
        """How this archive becomes tensors of ours, see `KeyMap.forward`; a file of ours is taken as
        it is.
        """
        if self.keymap is None:
            plan = _plan_of_ours(self.archive, targets, inspect)
            return replace(plan, notes=(*plan.notes, *self._other_models()))
        asked = set(heads_of(self.modules.values()))  # heads that the map knows nothing of
        plan = self.keymap.forward(
            {name: info for name, info in self.archive.tensors.items() if name not in self.modules},
            self.config,
            heads=None if heads is None else set(heads) - asked,
            architectures=architectures_of(self.foreign),
            targets=None if targets is None else {n: t for n, t in targets.items() if head_of(n) not in asked},
            inspect=inspect,
        )
        return self._with_modules(plan, heads, targets, inspect)

    def _other_models(self) -> list[str]:
        """What to say of a training file with several models (the model and its average): which was
        read.
        """
        group, others = self.archive.group, [name for name in WRAPPERS if name in self.archive.groups]
        others = [name for name in others if name != group]
        if not group or not others:
            return []
        return [
            f"of the file's entries {group!r} was read, and not {' or '.join(map(repr, others))}; to read that, pass "
            f"its tensors: zoo.load(torch.load(FILE)[{others[0]!r}], config=...)"
        ]

    def _with_modules(
        self, plan: Plan, heads: Collection[str] | None, targets: Mapping[str, object] | None, inspect: bool
    ) -> Plan:
        """The plan with the tensors of the modules, held against those that must come out."""
        wanted = heads if heads is not None else None if targets is None else heads_of(targets)
        taken = {own: name for name, own in self.modules.items() if wanted is None or head_of(own) in wanted}
        infos = {own: self.archive.tensors[name] for own, name in taken.items()}
        must = {name: shape_of(t) for name, t in (targets or {}).items() if head_of(name) in heads_of(taken)}
        problems = [
            f"{taken.get(name, name)!r} has the shape {tuple(infos[name].shape) if name in infos else None}, the "
            f"layers need {must.get(name)} for {name!r}"
            for name in dict.fromkeys((*must, *infos) if targets is not None else ())
            if name not in infos or tuple(infos[name].shape) != must.get(name)
        ]
        if problems and not inspect:
            raise CheckpointError(f"{self.archive.path}: {'; '.join(problems[:3])}")
        steps = [PlanStep((taken[own],), (own,), (tuple(info.shape),), (info.dtype,)) for own, info in infos.items()]
        left = [(name, head_of(own)) for name, own in self.modules.items() if own not in taken]
        return replace(
            plan,
            steps=(*plan.steps, *steps),
            heads=plan.heads | heads_of(taken),
            left_out={**plan.left_out, **{name: f"head {head!r}, which nobody asked for" for name, head in left}},
            notes=(*plan.notes, *self._other_models()),
            problems=(*plan.problems, *problems),
        )


def _plan_of_ours(archive: Archive, targets: Mapping[str, object] | None, inspect: bool) -> Plan:
    names = archive.tensors
    passengers, heads = tuple(str(archive.metadata.get("zoo.passengers", "")).split()), heads_of(names)
    problems: list[str] = []
    if targets is not None:
        kept = {name for name in targets if not name.startswith("heads.") or name.split(".")[1] in heads}
        problems += [f"the file lacks {name!r}" for name in targets if name in kept and name not in names]
        extra = [name for name in names if name not in targets and name not in passengers]
        problems += [f"the file holds, but should not, {name!r}" for name in extra]
    if problems and not inspect:
        raise CheckpointError(f"{archive.path}: {'; '.join(problems[:5])}")
    steps = tuple(PlanStep((name,), (name,), (tuple(info.shape),), (info.dtype,)) for name, info in names.items())
    return Plan(layouts.OURS, 1, steps, "", frozenset(heads), passengers=passengers, problems=tuple(problems))


def under_own_names(archive: Archive) -> Archive:
    """An archive of ours under the names of our files, where a module's state_dict was saved as it
    is: ``model.`` of tasks, and what wrappers put into names, is taken off; what trains beside the
    model is left out.
    """
    names = {name: layouts.own_name(name) for name in archive.tensors if name not in COUNTS}
    beside = [name for name, own in names.items() if own.startswith(layouts.BESIDE)]
    if not beside and all(name == own for name, own in names.items()):
        return archive
    for name in beside:
        del names[name]
    if len(set(names.values())) != len(names):
        raise CheckpointError(f"{archive.path} holds two tensors of one name, with and without a wrapper's prefix")
    entries = {
        own: Entry(replace(entry.info, name=own), entry.load, entry.place)
        for own, entry in ((names[name], entry) for name, entry in archive.entries.items() if name in names)
    }
    return Archive(archive.path, archive.format, entries, metadata=archive.metadata, files=archive.files)


class Translated(Archive):
    """An archive shown under our names and in our shapes; what is read is made when it is asked
    for.
    """

    def __init__(self, archive: Archive, plan: Plan) -> None:
        steps = {name: step for step in plan.steps for name in step.targets}

        def load(name: str) -> Tensor:
            return steps[name].run(archive.read)[name]

        infos = {name: TensorInfo(name, info.shape, info.dtype) for name, info in plan.outputs.items()}
        entries = {name: Entry(info, partial(load, name)) for name, info in infos.items()}
        super().__init__(archive.path, "translated", entries)
        self.archive = archive

    def sha256(self) -> str:
        return self.archive.sha256()
