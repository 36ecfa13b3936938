"""The checks of a checkpoint: hash, keys one to one, shapes and finite values, ties, config contract,
what binds its files, recorded outputs.

Whatever brings tensors in (convert, load, create, init_from, verify) runs the same ones. A check
passes, fails, or could not be tried, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import reduce

import torch
from torch import Tensor

from zoo.checkpoints.binding import CONTENT, content_of
from zoo.checkpoints.opened import Opened
from zoo.errors import CheckpointError, ConfigError, ZooError, counted
from zoo.formats.archive import DTYPE_NAMES, Archive, Described
from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.writer import blocks, check_finite, raw
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan, constant, shape_of
from zoo.maps.templates import same

NAMES = ("hash", "keys", "values", "ties", "contract", "binding", "probe")

MIXED = "its floats differ in dtype, in which no layer computes; all are taken as {}, which holds their values"

Probe = Callable[[], tuple[bool, str]]


@dataclass(frozen=True)
class Check:
    """One check: ``passed`` is True or False, or None where it could not be tried."""

    name: str
    passed: bool | None
    why: str


@dataclass(frozen=True)
class Checks:
    """The checks in order, up to the first that failed."""

    results: tuple[Check, ...] = ()

    @property
    def last_passed(self) -> str:
        """The name of the last check that passed; empty if none did."""
        return next((check.name for check in reversed(self.results) if check.passed), "")

    @property
    def failed(self) -> Check | None:
        return next((check for check in self.results if check.passed is False), None)

    @property
    def ok(self) -> bool:
        """Nothing failed that could be tried."""
        return self.failed is None

    def __str__(self) -> str:
        marks = {True: "passed", False: "FAILED", None: "not tried"}
        return "\n".join(f"{check.name:<9} {marks[check.passed]:<9} {check.why}" for check in self.results)

    def to_dict(self) -> dict[str, object]:
        return {"last_passed": self.last_passed, "ok": self.ok, "checks": [asdict(check) for check in self.results]}


def verify(
    opened: Opened,
    targets: Mapping[str, object],
    probe: Probe | None = None,
    binding: Callable[[], Check] | None = None,
) -> Checks:
    """Every check of a checkpoint, in order, up to the first that fails, without converting it.
    ``targets``: the names and shapes that a model of its config has. ``binding``: of a folder's
    other files.
    """
    archive = opened.archive
    plan = opened.plan(targets, inspect=True)
    theirs = opened.keymap is not None and (opened.sha256 is not None or CONTENT not in archive.metadata)
    return run(
        {
            "hash": lambda: check_hash(archive, opened.sha256) if theirs else check_content(archive),
            "keys": lambda: check_plan(plan),
            "values": lambda: check_values(archive, plan, targets),
            "ties": lambda: check_ties(archive, plan),
            "contract": lambda: check_contract(opened),
            "binding": binding or (lambda: untried("binding", "tensors by themselves have nothing beside them")),
            "probe": lambda: check_probe(probe),
        }
    )


def run(checks: Mapping[str, Callable[[], Check]]) -> Checks:
    """Try each check until one fails. A ZooError inside a check is its failure."""
    results: list[Check] = []
    for name, check in checks.items():
        try:
            results.append(check())
        except ZooError as error:
            results.append(Check(name, False, str(error)))
        if results[-1].passed is False:
            break
    return Checks(tuple(results))


def required(check: Check, what: str) -> Check:
    """The check, unless it failed: then a CheckpointError."""
    if check.passed is False:
        raise CheckpointError(f"{what}: {check.why}")
    return check


def untried(name: str, why: str) -> Check:
    return Check(name, None, why)


def check_hash(archive: Archive, expected: str | None, found: str | None = None) -> Check:
    """A file against the hash that somebody recorded before; ``found`` where it has been hashed
    already.
    """
    if expected is None:
        so_far = f"; it is {found}" if found else ""
        return untried("hash", f"nobody has recorded a sha256 of {archive.path.name}{so_far}")
    found = found or archive.sha256()
    if found != expected:
        said = f"{archive.path.name} has sha256 {found}, recorded is {expected}: other bytes, or damaged"
        return Check("hash", False, said)
    return Check("hash", True, f"sha256 {expected[:16]}... as recorded")


def check_content(archive: Archive) -> Check:
    """A file that the zoo wrote against the hash of its tensors that its metadata holds."""
    expected = archive.metadata.get(CONTENT)
    if expected is None:
        return untried("hash", "the file's metadata holds no hash of its tensors")
    found = content_of(archive)
    if found != expected:
        said = f"the tensors hash to {found}, the metadata says {expected}: the file was changed or damaged"
        return Check("hash", False, said)
    return Check("hash", True, f"tensors hash to {found[:16]}... as the metadata says")


def check_plan(plan: Plan) -> Check:
    """Every source name met one rule, every target is made once (a plan made with
    ``inspect=True``).
    """
    if plan.problems:
        more = f" (and {len(plan.problems) - 3} more)" if len(plan.problems) > 3 else ""
        return Check("keys", False, "; ".join(plan.problems[:3]) + more)
    extra = f", {len(plan.left_out)} of other heads left out" if plan.left_out else ""
    made = counted(len(plan.outputs), "tensor")
    return Check("keys", True, f"{made} made, {len(plan.dropped)} dropped with a reason{extra}")


def check_values(archive: Archive, plan: Plan, targets: Mapping[str, object]) -> Check:
    """Shapes as the config asks, where ``targets`` says them of the stored names; dtypes known; every
    number finite.
    """
    names = [name for step in plan.steps for name in step.sources]
    for name in names:
        if archive.tensors[name].dtype not in DTYPES:
            return Check("values", False, f"{name!r} has dtype {archive.tensors[name].dtype!r}")
    check_kinds(plan.outputs, targets)
    for name in names:
        check_finite(archive.read(name), name)
    wide = widest(plan.outputs, targets)
    return values_read(archive.tensors, names, f"; {MIXED.format(wide)}" if wide else "")


def values_read(infos: Mapping[str, Described], names: Collection[str], more: str = "") -> Check:
    """What is said of tensors that were all read and are finite."""
    kinds = ", ".join(sorted({infos[name].dtype for name in names})) or "no dtype"
    return Check("values", True, f"{counted(len(names), 'tensor')} of {kinds}, all finite{more}")


def check_kinds(infos: Mapping[str, Described], targets: Mapping[str, object], cast: bool = False) -> None:
    """Refuse tensors whose shape is not what the model takes under their names, and those of another
    kind: integers, truth values or complex numbers where floats belong, or the other way round.
    ``cast``: the floats will be cast, so that float8, in which no layer computes, will do.
    """
    for name, info in infos.items():
        target = targets.get(name)
        if target is None:
            continue
        wanted, found, needed = shape_of(target), DTYPES[info.dtype], _dtype_of(target)
        if tuple(info.shape) != wanted:
            raise CheckpointError(f"{name!r} has shape {tuple(info.shape)}, the config needs {wanted}")
        if found.is_floating_point != needed.is_floating_point or not (needed.is_floating_point or found == needed):
            kind = "floats" if needed.is_floating_point else str(needed).removeprefix("torch.")
            raise CheckpointError(
                f"{name!r} holds {str(found).removeprefix('torch.')}, where {kind} belong; was it quantized, or "
                "written by mistake?"
            )
        if found.itemsize == 1 and needed.is_floating_point and not cast:
            raise CheckpointError(
                f"{name!r} holds {str(found).removeprefix('torch.')}, in which no layer computes; say into which dtype "
                'the floats are cast, such as dtype="bfloat16", unless they have scales elsewhere'
            )


def widest(infos: Mapping[str, Described], targets: Mapping[str, object]) -> str | None:
    """The dtype that holds the values of all floats of a model whose floats differ in dtype, in which
    no layer could compute; None where they agree.
    """
    kinds = {
        DTYPES[info.dtype]
        for name, info in infos.items()
        if name in targets and DTYPES[info.dtype].is_floating_point and not getattr(targets[name], "apart", False)
    }
    return None if len(kinds) < 2 else DTYPE_NAMES[reduce(torch.promote_types, sorted(kinds, key=str))]


def _dtype_of(target: object) -> torch.dtype:
    """What a target says of its dtype; floats where it is a shape alone."""
    dtype = getattr(target, "dtype", torch.float32)
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def check_ties(archive: Archive, plan: Plan) -> Check:
    """Stored copies hold the bits of what they copy; what a layout implies without storing is
    exactly that. Raises CheckpointError where not.
    """
    shared = archive.aliases() if plan.ties else []
    for copy, original in plan.ties:
        if not any({copy, original} <= names for names in shared) and not _equal_bits(archive, copy, original):
            raise CheckpointError(
                f"{copy!r} should be a copy of {original!r}, but holds other numbers; "
                "if the model was trained untied, its config must say tie_word_embeddings=false"
            )
    for name, kind in plan.checks:
        tensor = archive.read(name)
        if not torch.equal(tensor, constant(kind, tuple(tensor.shape), tensor.dtype)):
            raise CheckpointError(
                f"{name!r} must be {kind} to be left out of this layout, and is not; the layout has no place for it"
            )
    if plan.ties:
        return Check("ties", True, f"{len(plan.ties)} stored copies equal what they copy")
    said = f"{len(plan.checks)} implied tensors are as implied" if plan.checks else "the file stores no copies"
    return Check("ties", True, said)


def _equal_bits(archive: Archive, copy: str, original: str) -> bool:
    one, other = archive.tensors[copy], archive.tensors[original]
    if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
        return False
    pairs: Iterable[tuple[Tensor, Tensor]] = zip(
        blocks(archive.read(copy)), blocks(archive.read(original)), strict=True
    )
    return all(raw(a) == raw(b) for a, b in pairs)


def check_contract(opened: Opened) -> Check:
    """The foreign config, where there is one, translates to ours, and ours survives the way back."""
    keymap, config = opened.keymap, opened.config
    if keymap is None:
        return Check("contract", True, "the config builds a model of exactly these tensors")
    held = [name for name in config if name not in opened.overrides]
    resolved = keymap.resolved(config)
    said = {} if opened.foreign is None else keymap.config_forward(opened.foreign)
    if different := _different(said, resolved, [name for name in held if name not in keymap.config.sized]):
        name = different[0]
        why = f"the foreign config says {name}={said[name]!r}, the model has {config[name]!r}"
        return Check("contract", False, why)
    return check_way_back(keymap, config, held)


def check_way_back(keymap: KeyMap, config: Mapping[str, object], held: Collection[str] | None = None) -> Check:
    """Our config survives the way to the foreign layout and back; ``held``: the fields that must, all
    if None.
    """
    try:
        written = keymap.config_back(config)
    except ConfigError as error:
        return untried("contract", f"the way back is not open: {error}")
    again = keymap.config_forward(written)
    if different := _different(again, keymap.resolved(config), config if held is None else held):
        name = different[0]
        return Check("contract", False, f"{name}={config[name]!r} comes back from {keymap.layout} as {again[name]!r}")
    return Check("contract", True, "every key of the config is used, or known to say nothing about the model")


def _different(found: Mapping[str, object], wanted: Mapping[str, object], names: Collection[str]) -> list[str]:
    return [name for name, value in found.items() if name in names and not _says(value, wanted[name])]


def _says(found: object, wanted: object) -> bool:
    """Whether two values are one; of the config of a part, whether all that was found is."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        return all(_says(value, wanted.get(name, value)) for name, value in found.items())
    return same(found, wanted)


def check_probe(probe: Probe | None) -> Check:
    """Outputs on recorded inputs; the caller knows how to build and run the model."""
    if probe is None:
        return untried("probe", "no recorded outputs to compare with")
    passed, why = probe()
    return Check("probe", passed, why)
