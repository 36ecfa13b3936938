"""The one way in, and the way back: plan from names and shapes, then read, make and check one tensor
after the other, and write it or keep it.

The engine knows no model. It is told our names and shapes (``targets``) and the values of our
config, and the map does the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import checks
from zoo.checkpoints.binding import CONTENT, FOREIGN, GENERATION, Binding, hashes
from zoo.checkpoints.checks import Check, Checks
from zoo.checkpoints.opened import Opened
from zoo.errors import CheckpointError
from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.archive import Archive, Described, Info, dtype_name
from zoo.formats.disk import write_atomically, writing
from zoo.formats.writer import SafetensorsWriter, Written, check_finite
from zoo.maps.config_map import SAVE
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan, PlanStep

Progress = Callable[[int, int], None]
Seal = Callable[[str], Mapping[str, str]]


@dataclass(frozen=True)
class Report:
    """What a conversion did, and what it was checked for."""

    layout: str
    map_version: int
    direction: str  # "forward" (to ours) or "back"
    source: str
    source_sha256: str | None
    heads: tuple[str, ...]
    tensors: int
    parameters: int
    bytes: int
    dropped: Mapping[str, str]
    left_out: Mapping[str, str]
    ties: tuple[tuple[str, str], ...]
    passengers: tuple[str, ...]
    absent_heads: tuple[str, ...]
    losses: Mapping[str, str]
    notes: tuple[str, ...]
    checks: Checks
    files: tuple[Path, ...] = ()
    content_sha256: str | None = None
    foreign_config: Mapping[str, object] | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        made = ", ".join(str(file) for file in self.files) or "nothing (a dry run)"
        what = "to ours" if self.direction == "forward" else "from ours"
        lines = [
            f"{self.source}: {self.layout} (map {self.map_version}), {what}, in {self.seconds:.1f} s",
            f"wrote {made}: {self.tensors} tensors, {self.parameters:,} parameters, {self.bytes / 1e6:.1f} MB",
        ]
        lines += [f"  dropped {name}: {why}" for name, why in self.dropped.items()]
        lines += [f"  left out {name}: {why}" for name, why in self.left_out.items()]
        lines += [f"  {copy} is stored as a copy of {of}" for copy, of in self.ties if copy not in self.dropped]
        lines += [f"  carried along, never used: {name}" for name in self.passengers]
        lines += [f"  the file has no head {name}" for name in self.absent_heads]
        lines += [f"  lost {name}: {why}" for name, why in self.losses.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, str(self.checks)])

    def to_dict(self) -> dict[str, object]:
        """Plain data, for ``--json``."""
        plain: dict[str, Any] = asdict(self)
        plain["files"] = [str(file) for file in self.files]
        plain |= self.checks.to_dict()
        return plain


@dataclass(frozen=True)
class Destination:
    """Where a conversion goes: a ``.safetensors`` file (or a folder, on the way back), the dtype of
    its floats (None: as stored), the bytes after which a new file begins.
    """

    path: Path
    dtype: torch.dtype | str | None = None
    shard_size: int | None = None
    progress: Progress | None = None
    durable: bool = True

    def writer(self, infos: Mapping[str, Info], room: Mapping[str, str], seal: Seal) -> SafetensorsWriter:
        return SafetensorsWriter(
            self.path, infos, room, shard_size=self.shard_size, durable=self.durable, progress=self.progress, seal=seal
        )


def convert(
    opened: Opened,
    targets: Mapping[str, object],
    to: Destination,
    *,
    heads: Collection[str] | None = None,
    dry_run: bool = False,
    binding: Binding | None = None,
) -> Report:
    """A foreign file into safetensors under our names.

    ``heads`` None: those among ``targets``. With ``dry_run`` all is planned and nothing read or
    written. ``binding``: what the header says of the file and its neighbors. The source is hashed
    beside the stream, so that its bytes come from the disk once.
    """
    started, archive = time.perf_counter(), opened.archive
    plan = opened.plan(targets, heads)
    contract = checks.required(checks.check_contract(opened), opened.layout)
    plan, infos = _announced(plan, to.dtype, targets)
    if dry_run:
        skipped = {name: checks.untried(name, "dry run: nothing was read") for name in ("hash", "values", "ties")}
        planned = (skipped["hash"], checks.check_plan(plan), skipped["values"], skipped["ties"], contract)
        return _report(plan, archive, infos, planned, started)
    ties = checks.check_ties(archive, plan)
    with _hashing(archive) as source_hash:
        room = _metadata(plan, archive, "0" * 64, max(checks.NAMES, key=len))
        with to.writer(infos, room, binding.header if binding else lambda content: {CONTENT: content}) as writer:
            stream(plan, archive, writer.write)
            sha256 = source_hash.result()
            hashed = checks.check_hash(archive, opened.sha256, sha256)
            if hashed.passed is False:
                raise CheckpointError(hashed.why)
            values = checks.values_read(infos, infos)
            results = (hashed, checks.check_plan(plan), values, ties, contract, checks.check_probe(None))
            written = writer.finish(_metadata(plan, archive, sha256, Checks(results).last_passed))
    return _report(plan, archive, infos, results, started, written, source_sha256=sha256)


def convert_back(
    archive: Archive,
    keymap: KeyMap,
    config: Mapping[str, object],
    to: Destination,
    *,
    tied_heads: Collection[str] = (),
    ties: bool = False,
    said: Mapping[str, object] | None = None,
    dry_run: bool = False,
) -> Report:
    """A file of ours into a public layout, with the config that the other library reads beside it
    where ``to`` is a folder; what lies in that already belongs to the file.

    ``ties`` writes stored copies too, as old files have them; ``tied_heads`` as `KeyMap.back` takes
    them. ``said``: what the config says besides. What the layout implies without storing is held
    against the tensors on the way.
    """
    started = time.perf_counter()
    folder = None if to.path.suffix == ".safetensors" else to.path
    to = to if folder is None else replace(to, path=folder / "model.safetensors")
    passengers = set(str(archive.metadata.get("zoo.passengers", "")).split())
    plan = keymap.back(archive.tensors, config, tied_heads=tied_heads, ties=ties)
    if unknown_passengers := passengers - {source for step in plan.steps for source in step.sources}:
        raise CheckpointError(f"{keymap.layout} has no place for the passenger {sorted(unknown_passengers)[0]!r}")
    foreign = {**keymap.config_back(config, plan.heads), **(said or {})}
    plan, infos = _announced(plan, to.dtype)
    contract = checks.required(checks.check_way_back(keymap, config), keymap.layout)
    before = (checks.check_hash(archive, None), checks.check_plan(plan))
    if dry_run:
        return _report(plan, archive, infos, before, started, foreign_config=foreign)
    tied = checks.check_ties(archive, plan)
    note = {"format": "pt", "zoo.layout": keymap.layout, "zoo.map_version": str(keymap.version)}
    binding = Binding(foreign, FOREIGN, {} if folder is None else hashes(folder))
    with to.writer(infos, note, binding.header) as writer:
        stream(plan, archive, writer.write)
        written = writer.finish(note)
    if folder is not None:
        foreign = {**foreign, SAVE: binding.header(written.content_sha256)[GENERATION]}
        text = json.dumps(foreign, indent=2, sort_keys=True) + "\n"
        with writing(folder / "config.json"):
            write_atomically(folder / "config.json", text, durable=to.durable)
    results = (*before, checks.values_read(infos, infos), tied, contract)
    return _report(plan, archive, infos, results, started, written, foreign_config=foreign)


def read(
    opened: Opened,
    plan: Plan,
    wanted: Set[str] | None = None,
    dtype: torch.dtype | str | None = None,
    targets: Mapping[str, object] | None = None,
) -> tuple[dict[str, Tensor], Checks]:
    """The tensors that a plan makes (only those ``wanted``), in memory, with the checks of a
    conversion.
    """
    if wanted is not None:
        plan = replace(plan, steps=tuple(step for step in plan.steps if not wanted.isdisjoint(step.targets)))
    contract = checks.required(checks.check_contract(opened), opened.layout)
    ties = checks.check_ties(opened.archive, plan)
    plan, infos = _announced(plan, dtype, targets or {})
    tensors: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        if wanted is None or name in wanted:
            tensors[name] = finite(tensor, name, infos[name])

    stream(plan, opened.archive, keep)
    hashed = checks.untried("hash", "a file is not hashed to be loaded; zoo.verify does it")
    return tensors, Checks((hashed, checks.check_plan(plan), checks.values_read(infos, tensors), ties, contract))


def finite(tensor: Tensor, name: str, info: Described) -> Tensor:
    """The tensor, contiguous and in the dtype announced. Refused if it is not finite, before or after
    the cast.
    """
    tensor = tensor.contiguous()
    check_finite(tensor, name)
    dtype = DTYPES[info.dtype]
    if tensor.dtype != dtype:
        tensor = tensor.to(dtype)
        check_finite(tensor, name, f" in {info.dtype}: the value is too large for it; keep the file's own dtype")
    return tensor


def stream(plan: Plan, archive: Archive, take: Callable[[str, Tensor], None]) -> None:
    """Run the steps in the order of the source file; ``take`` gets each tensor as it is made."""
    position = {name: number for number, name in enumerate(archive.tensors)}

    def run(step: PlanStep) -> None:  # a function of its own, so that one step's tensors are gone before the next reads
        for name, tensor in step.run(archive.read).items():
            take(name, tensor)

    def first(step: PlanStep) -> int:
        return min((position[name] for name in step.sources), default=len(position))

    for step in sorted(plan.steps, key=first):
        run(step)


def _announced(
    plan: Plan, dtype: torch.dtype | str | None, targets: Mapping[str, object] = MappingProxyType({})
) -> tuple[Plan, dict[str, Info]]:
    """Names, shapes and dtypes of what comes out, held against ``targets``: floats in the dtype asked
    for, or, where they differ, in the one that holds them all; then the plan has a note of it.
    """
    outputs, apart = plan.outputs, set[str]()
    checks.check_kinds(outputs, targets, cast=dtype is not None)
    if dtype is None:
        if (dtype := checks.widest(outputs, targets)) is None:
            return plan, outputs
        plan = replace(plan, notes=(*plan.notes, checks.MIXED.format(dtype)))
        apart = {name for name in outputs if getattr(targets.get(name), "apart", False)}
    wanted = dtype_name(dtype)
    cast = {
        name: replace(info, dtype=wanted)
        for name, info in outputs.items()
        if DTYPES[info.dtype].is_floating_point and name not in apart
    }
    return plan, {**outputs, **cast}


@contextmanager
def _hashing(archive: Archive) -> Iterator[Future[str]]:
    """The source's hash, computed beside the stream."""
    with ThreadPoolExecutor(1, thread_name_prefix="zoo-sha256") as pool:
        yield pool.submit(archive.sha256)


def _metadata(plan: Plan, archive: Archive, source: str, last_passed: str) -> dict[str, str]:
    facts = {
        "format": "pt",
        "zoo.layout": plan.layout,
        "zoo.map_version": str(plan.version),
        "zoo.checked": last_passed,
        "zoo.source": archive.path.name,
        "zoo.source_sha256": source,
    }
    if plan.passengers:
        facts["zoo.passengers"] = " ".join(plan.passengers)
    return facts


def _report(
    plan: Plan,
    archive: Archive,
    infos: Mapping[str, Info],
    results: tuple[Check, ...],
    started: float,
    written: Written | None = None,
    source_sha256: str | None = None,
    foreign_config: Mapping[str, object] | None = None,
) -> Report:
    sizes = {name: torch.Size(info.shape).numel() for name, info in infos.items()}
    return Report(
        layout=plan.layout,
        map_version=plan.version,
        direction="forward" if foreign_config is None else "back",
        source=archive.path.name,
        source_sha256=source_sha256,
        heads=tuple(sorted(plan.heads)),
        tensors=len(infos),
        parameters=sum(size for name, size in sizes.items() if name not in plan.passengers),
        bytes=sum(sizes[name] * DTYPES[info.dtype].itemsize for name, info in infos.items()),
        dropped=plan.dropped,
        left_out=plan.left_out,
        ties=plan.ties,
        passengers=plan.passengers,
        absent_heads=tuple(sorted(plan.absent_heads)),
        losses=plan.losses,
        notes=plan.notes,
        checks=Checks(results),
        files=() if written is None else written.files,
        content_sha256=None if written is None else written.content_sha256,
        foreign_config=foreign_config,
        seconds=time.perf_counter() - started,
    )
