"""Conversion as a stream: plan from names and shapes, then read, make, check, hash and write one
tensor after the other.

The engine knows no model. It is told our names and shapes (``targets``) and the values of our
config, and the map does the rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints import checks as verify
from zoo.errors import CheckpointError
from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.archive import Archive as Source
from zoo.formats.archive import Described, Info, dtype_name
from zoo.formats.disk import write_atomically
from zoo.formats.writer import SafetensorsWriter, Written, blocks, check_finite, tensor_hash, writing
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan, PlanStep

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What a conversion did, and how far it was proven."""

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
    ladder: verify.Ladder
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
        return "\n".join([*lines, str(self.ladder)])

    def to_dict(self) -> dict[str, object]:
        """Plain data, for ``--json``."""
        plain: dict[str, Any] = asdict(self)
        plain["files"] = [str(file) for file in self.files]
        plain["ladder"] = self.ladder.to_dict()
        return plain


def convert(
    archive: Source,
    keymap: KeyMap,
    config: Mapping[str, object],
    targets: Mapping[str, object],
    heads: Collection[str] | None,
    out_path: Path | str,
    *,
    dtype: torch.dtype | str | None = None,
    shard_size: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    architectures: Iterable[str] = (),
    foreign: Mapping[str, object] | None = None,
    overrides: Collection[str] = (),
    expected_sha256: str | None = None,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
) -> Report:
    """A foreign file into safetensors under our names.

    ``config`` holds our fields, ``foreign`` the config they came from, ``overrides`` the fields
    that were set otherwise on purpose; ``heads`` None: those among ``targets``. With ``dry_run``
    all is planned and nothing read or written. The source is hashed beside the stream, so that its
    bytes come from the disk once.
    """
    started = time.perf_counter()
    plan = keymap.forward(archive.tensors, config, heads=heads, architectures=architectures, targets=targets)
    contract = verify.check_contract(keymap, config, foreign, overrides)
    if contract.reached is False:
        raise CheckpointError(f"{keymap.layout}: {contract.why}")
    infos = _announced(plan, dtype)
    if dry_run:
        untried = [verify.Rung(name, None, "dry run: nothing was read") for name in ("values", "ties")]
        ladder = verify.Ladder(
            (verify.Rung("hash", None, "dry run: nothing was read"), verify.check_plan(plan), *untried, contract)
        )
        return _report(plan, "forward", archive, None, infos, ladder, started)
    with _hashing(archive) as source_hash:
        room = _metadata(plan, archive, "0" * 64, "0" * 64, max(verify.RUNGS, key=len), metadata)
        with SafetensorsWriter(
            out_path, infos, room, shard_size=shard_size, durable=durable, progress=progress
        ) as writer:
            _stream(plan, archive, writer.write)
            sha256 = source_hash.result()
            hashed = verify.check_hash(sha256, expected_sha256, archive.path.name)
            if hashed.reached is False:
                raise CheckpointError(hashed.why)
            ladder = verify.Ladder(
                (hashed, verify.check_plan(plan), _values(infos), _tied(plan), contract, verify.check_probe(None))
            )
            written = writer.finish(_metadata(plan, archive, sha256, writer.content_sha256(), ladder.reached, metadata))
    return _report(plan, "forward", archive, sha256, infos, ladder, started, written)


def convert_back(
    archive: Source,
    keymap: KeyMap,
    config: Mapping[str, object],
    out_path: Path | str,
    *,
    heads: Collection[str] | None = None,
    ties: bool = False,
    dtype: torch.dtype | str | None = None,
    shard_size: int | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    config_path: Path | str | None = None,
    durable: bool = True,
) -> Report:
    """Ours into a foreign layout: a safetensors file under its names, and its config.

    ``out_path`` without the suffix ``.safetensors`` is a folder, which gets ``model.safetensors``
    and ``config.json``. ``ties`` writes stored copies, as older files have them.
    """
    started = time.perf_counter()
    path, config_path = Path(out_path), None if config_path is None else Path(config_path)
    if path.suffix != ".safetensors":
        path, config_path = path / "model.safetensors", config_path or path / "config.json"
    passengers = set(str(archive.metadata.get("zoo.passengers", "")).split())
    plan = keymap.back(archive.tensors, config, heads=heads, ties=ties)
    unknown_passengers = passengers - {source for step in plan.steps for source in step.sources}
    if unknown_passengers:
        raise CheckpointError(f"{keymap.layout} has no place for the passenger {sorted(unknown_passengers)[0]!r}")
    foreign = keymap.config_back(config, plan.heads)
    infos = _announced(plan, dtype)
    contract = verify.check_contract(keymap, config)
    if contract.reached is False:
        raise CheckpointError(f"{keymap.layout}: {contract.why}")
    rungs: list[verify.Rung] = [verify.check_hash(None, None, archive.path.name), verify.check_plan(plan)]
    if dry_run:
        return _report(plan, "back", archive, None, infos, verify.Ladder(tuple(rungs)), started, foreign=foreign)
    note = {"format": "pt", "zoo.layout": keymap.layout, "zoo.map_version": str(keymap.version)}
    with SafetensorsWriter(path, infos, note, shard_size=shard_size, durable=durable, progress=progress) as writer:
        _stream(plan, archive, writer.write)
        rungs += [_values(infos), _tied(plan), contract]
        written = writer.finish(note)
    if config_path is not None:
        with writing(config_path):
            write_atomically(config_path, json.dumps(foreign, indent=2, sort_keys=True) + "\n", durable=durable)
    return _report(plan, "back", archive, None, infos, verify.Ladder(tuple(rungs)), started, written, foreign)


def load(
    archive: Source,
    keymap: KeyMap,
    config: Mapping[str, object],
    targets: Mapping[str, object],
    heads: Collection[str] | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    architectures: Iterable[str] = (),
    foreign: Mapping[str, object] | None = None,
    overrides: Collection[str] = (),
) -> tuple[dict[str, Tensor], Report]:
    """Our tensors from a foreign file, in memory, with the same checks. Tensors may show the mapped
    file until they are written to.
    """
    started = time.perf_counter()
    plan = keymap.forward(archive.tensors, config, heads=heads, architectures=architectures, targets=targets)
    contract = verify.check_contract(keymap, config, foreign, overrides)
    if contract.reached is False:
        raise CheckpointError(f"{keymap.layout}: {contract.why}")
    infos = _announced(plan, dtype)
    tensors: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> None:
        for block in blocks(tensor):
            check_finite(block, name)
        tensors[name] = tensor.to(DTYPES[infos[name].dtype]).contiguous()

    _stream(plan, archive, keep)
    hashed = verify.check_hash(None, None, archive.path.name)
    ladder = verify.Ladder((hashed, verify.check_plan(plan), _values(infos), _tied(plan), contract))
    return tensors, _report(plan, "forward", archive, None, infos, ladder, started)


def _stream(plan: Plan, archive: Source, take: Callable[[str, Tensor], None]) -> None:
    """Run the steps in the order of the source file; hold stored copies against what they copy on
    the way.
    """
    position = {name: number for number, name in enumerate(archive.tensors)}
    shared = archive.aliases() if plan.ties else []
    ties = [(copy, original) for copy, original in plan.ties if not any({copy, original} <= names for names in shared)]
    for copy, original in ties:
        one, other = archive.tensors[copy], archive.tensors[original]
        if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
            raise verify.untied(copy, original)
    compared = {name for pair in ties for name in pair}
    digests: dict[str, str] = {}

    def read(name: str) -> Tensor:
        tensor = archive.read(name)
        if name in compared and name not in digests:
            digests[name] = tensor_hash(tensor)
        return tensor

    work: list[tuple[int, PlanStep | str]] = [
        (min((position[s] for s in step.sources), default=len(position)), step) for step in plan.steps
    ]
    work += [(position[copy], copy) for copy, _ in ties] + [(position[name], name) for name, _ in plan.checks]
    implied = dict(plan.checks)
    for _, item in sorted(work, key=lambda entry: entry[0]):
        if isinstance(item, str):
            tensor = read(item)
            if item in implied:
                verify.check_constant(item, implied[item], tensor)
        else:
            for name, tensor in item.run(read).items():
                take(name, tensor)
        tensor = None  # type: ignore[assignment]  # let go before the next one is read
    for copy, original in ties:
        if digests.setdefault(original, "") == "":
            read(original)
        if digests[copy] != digests[original]:
            raise verify.untied(copy, original)


def _announced(plan: Plan, dtype: torch.dtype | str | None) -> dict[str, Info]:
    """Names, shapes and dtypes of what comes out; floats in the dtype asked for."""
    outputs = plan.outputs
    if dtype is None:
        return outputs
    wanted = dtype_name(dtype)
    return {
        name: replace(info, dtype=wanted) if DTYPES[info.dtype].is_floating_point else info
        for name, info in outputs.items()
    }


@contextmanager
def _hashing(archive: Source) -> Iterator[Future[str]]:
    """The source's hash, computed beside the stream."""
    with ThreadPoolExecutor(1, thread_name_prefix="zoo-sha256") as pool:
        yield pool.submit(archive.sha256)


def _metadata(
    plan: Plan, archive: Source, source: str, content: str, rung: str, extra: Mapping[str, str] | None
) -> dict[str, str]:
    facts = {
        "format": "pt",
        "zoo.content_sha256": content,
        "zoo.layout": plan.layout,
        "zoo.map_version": str(plan.version),
        "zoo.rung": rung,
        "zoo.source": archive.path.name,
        "zoo.source_sha256": source,
    }
    if plan.passengers:
        facts["zoo.passengers"] = " ".join(plan.passengers)
    return {**(extra or {}), **facts}


def _values(infos: Mapping[str, Described]) -> verify.Rung:
    kinds = ", ".join(sorted({info.dtype for info in infos.values()})) or "no dtype"
    return verify.Rung("values", True, f"{len(infos)} tensors of {kinds}, all finite")


def _tied(plan: Plan) -> verify.Rung:
    return verify.Rung(
        "ties",
        True,
        f"{len(plan.ties)} stored copies equal what they copy" if plan.ties else "the file stores no copies",
    )


def _report(
    plan: Plan,
    direction: str,
    archive: Source,
    sha256: str | None,
    infos: Mapping[str, Info],
    ladder: verify.Ladder,
    started: float,
    written: Written | None = None,
    foreign: Mapping[str, object] | None = None,
) -> Report:
    sizes = {name: torch.Size(info.shape).numel() for name, info in infos.items()}
    return Report(
        layout=plan.layout,
        map_version=plan.version,
        direction=direction,
        source=archive.path.name,
        source_sha256=sha256,
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
        ladder=ladder,
        files=() if written is None else written.files,
        content_sha256=None if written is None else written.content_sha256,
        foreign_config=foreign,
        seconds=time.perf_counter() - started,
    )
