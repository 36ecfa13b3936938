"""The ladder that a conversion climbs: hash, keys one to one, shapes and finite values, ties,
config contract, probe outputs.

A rung is reached, failed, or could not be tried, and says why. The first that fails ends the climb.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from zoo.errors import CheckpointError, ConfigError, ZooError
from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.archive import Described
from zoo.formats.writer import blocks, check_finite, content_hash, tensor_hash
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan, constant, heads_of, shape_of
from zoo.maps.templates import same

if TYPE_CHECKING:
    from zoo.formats.archive import Archive as Source

RUNGS = ("hash", "keys", "values", "ties", "contract", "probe")


class Readable(Protocol):
    """An archive, as far as checks need it."""

    @property
    def tensors(self) -> Mapping[str, Described]: ...
    def read(self, name: str) -> Tensor: ...
    def aliases(self) -> list[set[str]]: ...


@dataclass(frozen=True)
class Rung:
    """One check: ``reached`` is True or False, or None where it could not be tried."""

    name: str
    reached: bool | None
    why: str


@dataclass(frozen=True)
class Ladder:
    """The rungs in order, up to the first that failed."""

    rungs: tuple[Rung, ...]

    @property
    def reached(self) -> str:
        """The highest rung that was reached; empty if none."""
        return next((rung.name for rung in reversed(self.rungs) if rung.reached), "")

    @property
    def failed(self) -> Rung | None:
        return next((rung for rung in self.rungs if rung.reached is False), None)

    @property
    def ok(self) -> bool:
        """Nothing failed that could be tried."""
        return self.failed is None

    def __str__(self) -> str:
        marks = {True: "reached", False: "FAILED", None: "not tried"}
        return "\n".join(f"{rung.name:<9} {marks[rung.reached]:<9} {rung.why}" for rung in self.rungs)

    def to_dict(self) -> dict[str, object]:
        return {"reached": self.reached, "ok": self.ok, "rungs": [asdict(rung) for rung in self.rungs]}


def climb(checks: Iterable[Callable[[], Rung]]) -> Ladder:
    """Try each check until one fails. A ZooError inside a check is its failure."""
    rungs: list[Rung] = []
    for number, check in enumerate(checks):
        try:
            rung = check()
        except ZooError as error:
            name = getattr(check, "rung", RUNGS[min(number, len(RUNGS) - 1)])
            rung = Rung(name, False, str(error))
        rungs.append(rung)
        if rung.reached is False:
            break
    return Ladder(tuple(rungs))


def check_hash(sha256: str | None, expected: str | None, what: str = "the file") -> Rung:
    """Held against a hash that somebody recorded before."""
    if expected is None:
        recorded = f"; it is {sha256}" if sha256 else ""
        return Rung("hash", None, f"nobody has recorded a sha256 of {what}{recorded}")
    if sha256 != expected:
        return Rung("hash", False, f"{what} has sha256 {sha256}, recorded is {expected}: other bytes, or damaged")
    return Rung("hash", True, f"sha256 {expected[:16]}... as recorded")


def check_content(archive: Readable, expected: str | None) -> Rung:
    """Our own file against the hash of its tensors that its metadata holds."""
    if expected is None:
        return Rung("hash", None, "the file's metadata holds no hash of its tensors")
    digests = {name: tensor_hash(archive.read(name)) for name in archive.tensors}
    found = content_hash(archive.tensors, digests)
    if found != expected:
        return Rung(
            "hash", False, f"the tensors hash to {found}, the metadata says {expected}: the file was changed or damaged"
        )
    return Rung("hash", True, f"tensors hash to {expected[:16]}... as the metadata says")


def check_plan(plan: Plan) -> Rung:
    """Every source name met one rule, every target is made once (a plan made with
    ``inspect=True``).
    """
    if plan.problems:
        more = f" (and {len(plan.problems) - 3} more)" if len(plan.problems) > 3 else ""
        return Rung("keys", False, "; ".join(plan.problems[:3]) + more)
    extra = f", {len(plan.left_out)} of other heads left out" if plan.left_out else ""
    return Rung("keys", True, f"{len(plan.outputs)} tensors made, {len(plan.dropped)} dropped with a reason{extra}")


def check_names(names: Collection[str], targets: Collection[str], passengers: Collection[str] = ()) -> Rung:
    """Our own file: exactly the model's names, and passengers."""
    heads = heads_of(names)
    missing = [
        name
        for name in targets
        if name not in names and not (name.startswith("heads.") and name.split(".")[1] not in heads)
    ]
    extra = [name for name in names if name not in targets and name not in passengers]
    if missing or extra:
        said = [
            f"{word} {', '.join(map(repr, some[:3]))}{f' and {len(some) - 3} more' if len(some) > 3 else ''}"
            for word, some in (("lacks", missing), ("holds, but should not,", extra))
            if some
        ]
        return Rung("keys", False, f"the file {'; '.join(said)}")
    return Rung("keys", True, f"{len(names)} tensors, as the config asks")


def check_values(
    tensors: Mapping[str, Described],
    read: Callable[[str], Tensor] | None,
    targets: Mapping[str, object],
    names: Iterable[str],
) -> Rung:
    """Shapes as the config asks, dtypes known, every number finite (``read`` None: not looked
    at).
    """
    count = 0
    for name in names:
        info = tensors[name]
        if name in targets and tuple(info.shape) != shape_of(targets[name]):
            return Rung(
                "values", False, f"{name!r} has shape {tuple(info.shape)}, the config needs {shape_of(targets[name])}"
            )
        if info.dtype not in DTYPES:
            return Rung("values", False, f"{name!r} has dtype {info.dtype!r}")
        if read is not None:
            for block in blocks(read(name)):
                check_finite(block, name)
        count += 1
    kinds = sorted({tensors[name].dtype for name in tensors})
    return Rung(
        "values",
        True,
        f"{count} tensors of {', '.join(kinds) or 'no dtype'}, {'all finite' if read else 'values not read'}",
    )


def check_ties(archive: Readable, plan: Plan) -> Rung:
    """Stored copies hold the bits of what they copy; what a layout implies without storing is
    exactly that.
    """
    shared = archive.aliases()
    for copy, original in plan.ties:
        if not any({copy, original} <= names for names in shared):
            compare_tie(archive, copy, original)
    for name, kind in plan.checks:
        check_constant(name, kind, archive.read(name))
    if not plan.ties and not plan.checks:
        return Rung("ties", True, "the file stores no copies")
    return Rung(
        "ties",
        True,
        f"{len(plan.ties)} stored copies equal what they copy"
        if plan.ties
        else f"{len(plan.checks)} implied tensors are as implied",
    )


def compare_tie(archive: Readable, copy: str, original: str) -> None:
    """Raise unless both tensors hold equal bits."""
    one, other = archive.tensors[copy], archive.tensors[original]
    if (
        tuple(one.shape) != tuple(other.shape)
        or one.dtype != other.dtype
        or tensor_hash(archive.read(copy)) != tensor_hash(archive.read(original))
    ):
        raise untied(copy, original)


def untied(copy: str, original: str) -> CheckpointError:
    return CheckpointError(
        f"{copy!r} should be a copy of {original!r}, but holds other numbers; "
        "if the model was trained untied, its config must say tie_word_embeddings=false"
    )


def check_constant(name: str, kind: str, tensor: Tensor) -> None:
    """Raise unless a tensor is what the layout implies without storing it."""
    wanted = constant(kind, tuple(tensor.shape), tensor.dtype)
    if not bool((tensor == wanted).all()):
        raise CheckpointError(
            f"{name!r} must be {kind} to be left out of this layout, and is not; the layout has no place for it"
        )


def check_contract(
    keymap: KeyMap,
    config: Mapping[str, object],
    foreign: Mapping[str, object] | None = None,
    overrides: Collection[str] = (),
) -> Rung:
    """The foreign config, where there is one, translates to ours, and ours survives the way back.

    ``overrides`` are the fields that the caller set otherwise on purpose.
    """
    resolved = keymap.config.resolved(config)
    if foreign is not None:
        for name, value in keymap.config_forward(foreign).items():
            if name in config and name not in overrides and not same(value, resolved[name]):
                return Rung(
                    "contract", False, f"the foreign config says {name}={value!r}, the model has {config[name]!r}"
                )
    try:
        written = keymap.config_back(config)
    except ConfigError as error:
        return Rung("contract", None, f"the way back is not open: {error}")
    for name, value in keymap.config_forward(written).items():
        if name in config and not same(value, resolved[name]):
            return Rung("contract", False, f"{name}={config[name]!r} comes back from {keymap.layout} as {value!r}")
    return Rung("contract", True, "every key of the config is used, or known to say nothing about the model")


def check_probe(probe: Callable[[], tuple[bool, str]] | None) -> Rung:
    """Outputs on recorded inputs; the caller knows how to build and run the model."""
    if probe is None:
        return Rung("probe", None, "no recorded outputs to compare with")
    reached, why = probe()
    return Rung("probe", reached, why)


def verify_ours(
    archive: Source,
    targets: Mapping[str, object],
    *,
    expected_sha256: str | None = None,
    probe: Callable[[], tuple[bool, str]] | None = None,
) -> Ladder:
    """The ladder for a file that we wrote. The contract was held when the caller built ``targets``
    from its config.
    """
    content, passengers = (
        archive.metadata.get("zoo.content_sha256"),
        str(archive.metadata.get("zoo.passengers", "")).split(),
    )
    names = list(archive.tensors)
    empty = Plan("zoo", 1, (), "", frozenset())

    def hashed() -> Rung:
        if expected_sha256 is not None:
            return check_hash(archive.sha256(), expected_sha256)
        return check_content(archive, None if content is None else str(content))

    return climb(
        [
            hashed,
            lambda: check_names(names, targets, passengers),
            lambda: check_values(archive.tensors, archive.read, targets, names),
            lambda: check_ties(archive, empty),
            lambda: Rung("contract", True, "the config builds a model of exactly these tensors"),
            lambda: check_probe(probe),
        ]
    )


def verify_foreign(
    archive: Source,
    keymap: KeyMap,
    config: Mapping[str, object],
    targets: Mapping[str, object],
    *,
    heads: Collection[str] | None = None,
    architectures: Iterable[str] = (),
    foreign: Mapping[str, object] | None = None,
    overrides: Collection[str] = (),
    expected_sha256: str | None = None,
    probe: Callable[[], tuple[bool, str]] | None = None,
) -> Ladder:
    """The ladder for a foreign file, without converting it."""
    plan = keymap.forward(
        archive.tensors, config, heads=heads, architectures=architectures, targets=targets, inspect=True
    )
    used = [name for step in plan.steps for name in step.sources]
    return climb(
        [
            lambda: check_hash(
                archive.sha256() if expected_sha256 is not None else None, expected_sha256, archive.path.name
            ),
            lambda: check_plan(plan),
            lambda: check_values(archive.tensors, archive.read, {}, used),
            lambda: check_ties(archive, plan),
            lambda: check_contract(keymap, config, foreign, overrides),
            lambda: check_probe(probe),
        ]
    )
