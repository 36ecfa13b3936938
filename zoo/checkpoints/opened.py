"""An opened checkpoint: its archive, and what its names and config mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from zoo.checkpoints.files import architectures_of
from zoo.errors import CheckpointError
from zoo.formats.archive import Archive, Entry, TensorInfo
from zoo.maps import layouts
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan, PlanStep, heads_of
from zoo.maps.rules import COUNTS


@dataclass(frozen=True)
class Opened:
    """An archive, the map of its layout (None: our own names), our config fields, and the foreign
    config that they came from.

    ``overrides``: the fields that the user set otherwise on purpose. ``sha256``: the file's hash,
    where it is on record.
    """

    archive: Archive
    keymap: KeyMap | None
    config: Mapping[str, object]
    foreign: Mapping[str, object] | None = None
    overrides: Collection[str] = ()
    sha256: str | None = None

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
            return _plan_of_ours(self.archive, targets, inspect)
        return self.keymap.forward(
            self.archive.tensors,
            self.config,
            heads=heads,
            architectures=architectures_of(self.foreign),
            targets=targets,
            inspect=inspect,
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
    is: ``model.`` of tasks, and what wrappers put into names, is taken off.
    """
    names = {name: layouts.own_name(name) for name in archive.tensors if name not in COUNTS}
    if all(name == own for name, own in names.items()):
        return archive
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
