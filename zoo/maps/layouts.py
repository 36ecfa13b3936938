"""Which public layouts there are, and which one a file is in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from zoo.errors import CheckpointError, ConfigError, ZooError, unknown
from zoo.formats.archive import Described
from zoo.maps.joined import JoinedMap
from zoo.maps.key_map import KeyMap
from zoo.maps.parsing import read_map
from zoo.maps.rules import unwrapped
from zoo.registry.resources import weights_folder

TRANSFER = "transfer-"  # maps from one family's names to another's, for `init_from`; no layouts of files
MAX_PARTS = 16  # prefixes of one file that are tried by themselves
OWN_TABLE = "embeddings.token.weight"
OURS = "zoo"  # the layout of files that we wrote
BESIDE = "beside."  # names in a task model's state_dict of what trains beside the model; no file of ours has them


class Listed(Protocol):
    """An opened archive, as far as recognising needs it."""

    @property
    def tensors(self) -> Mapping[str, Described]: ...
    @property
    def metadata(self) -> Mapping[str, object]: ...


def available() -> Mapping[str, Path]:
    """Every layout that has a map, with the map's file, in natural order."""
    folder = weights_folder()
    return _available(folder, tuple(entry.stat().st_mtime_ns for entry in sorted(os.scandir(folder), key=_name)))


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


@lru_cache(maxsize=8)
def _available(folder: Path, changed: tuple[int, ...]) -> Mapping[str, Path]:
    """The layouts of a folder whose families' folders ``changed`` at these times."""
    files = sorted(folder.glob("*/*.toml"))
    found = {
        file.stem: file
        for file in files
        if not file.parent.name.startswith("_")
        and file.stem not in ("sources", "probes")
        and not file.stem.startswith(TRANSFER)
    }
    return MappingProxyType(found)


def transfers(family: str) -> dict[str, Path]:
    """The families whose checkpoints can start this one, with the maps that say how."""
    files = sorted((weights_folder() / family).glob(f"{TRANSFER}*.toml"))
    return {file.stem.removeprefix(TRANSFER): file for file in files}


def path_of(layout: str) -> Path:
    """The map file of a layout; an unknown one is refused with the closest."""
    layouts = available()
    if layout == OURS:
        raise CheckpointError(
            "'zoo' is the layout of the zoo's own files, which needs no map: leave layout= out to read them. The "
            f"layouts to convert from and to are {', '.join(layouts)}"
        )
    if layout not in layouts:
        raise unknown("layout", layout, layouts)
    return layouts[layout]


@lru_cache(maxsize=1024)  # recognising reads every map: with fewer places than maps none would be found again
def _loaded(path: Path, modified: int) -> KeyMap:
    keymap = read_map(path)
    return _joined(keymap) if keymap.parts else keymap


def _joined(keymap: KeyMap) -> JoinedMap:
    """A map with parts, which finds their maps among the layouts."""

    def known(pattern: str) -> list[KeyMap]:
        names = available()
        return [load(names[name]) for name in names if name != keymap.layout and fnmatchcase(name, pattern)]

    return JoinedMap(**{item.name: getattr(keymap, item.name) for item in fields(keymap)}, known=known)


def load(layout: str | Path) -> KeyMap:
    """The map of a layout, or a user's own map file; loaded and checked once."""
    path = Path(layout) if isinstance(layout, Path) or str(layout).endswith(".toml") else path_of(str(layout))
    if not path.is_file():
        raise unknown("map file", str(path), available())
    return _loaded(path, path.stat().st_mtime_ns)


def recognise(archive: Listed, config: Mapping[str, object] | None = None) -> str:
    """The layout of a file, from its config's own word and from its names; ``"zoo"`` for files of
    ours.

    A layout fits if all the names it asks for are there and the config, where there is one, does
    not contradict it. Of several families, those count that have a line for every tensor (a file of
    LXMERT holds all that one of BERT does). None or several is an error that lists the candidates.
    """
    if is_ours(archive):
        return OURS
    verdicts: dict[str, str | None] = {}
    for below in (False, True):  # as the names are; then below a prefix that all of them share
        verdicts = {layout: _verdict(load(path), archive, config, below) for layout, path in available().items()}
        if fitting := [layout for layout, reason in verdicts.items() if reason is None]:
            whole = {load(one).family for one in fitting if not load(one).leftovers(archive.tensors, below)}
            fitting = [one for one in fitting if not whole or load(one).family in whole]
            break
    outright = [layout for layout in fitting if load(layout).recognise.get("stated")]  # by the config, not names alone
    if len(fitting) == 1 or len(outright) == 1:
        return (outright or fitting)[0]
    model_type = None if config is None else config.get("model_type")
    if len(fitting) > 1 and _agree([load(layout) for layout in fitting], archive, config):
        return fitting[0]
    if len(fitting) > 1:
        said = "is missing" if config is None else f"says model_type={model_type!r}"
        raise CheckpointError(
            f"the file fits several layouts: {', '.join(fitting)}; the config {said}, so name one with layout="
        )
    if hint := _part_that_fits(archive, config):
        raise CheckpointError(hint)
    sample = ", ".join(repr(name) for name in list(archive.tensors)[:3]) or "no tensors"
    reasons = "; ".join(f"{layout}: {reason}" for layout, reason in verdicts.items())
    raise CheckpointError(
        f"no known layout fits a file with {sample} and model_type={model_type!r}. Candidates were {reasons}. "
        "Name one with layout=, or pass a map of your own"
    )


def _agree(keymaps: list[KeyMap], archive: Listed, config: Mapping[str, object] | None) -> bool:
    """Whether some layouts make one model of a file, with the same fields from the same tensors."""
    made = []
    for keymap in keymaps:
        try:
            fields = keymap.config_forward(config or {}, archive.tensors)
            plan = keymap.forward(archive.tensors, fields, inspect=True)
        except ZooError:
            return False
        steps = {step.targets: (step.sources, repr(step.ops), step.shapes, step.constant) for step in plan.steps}
        made.append((keymap.family, fields, steps, plan.problems, plan.passengers))
    return all(one == made[0] for one in made)


def undescribed(shown: str) -> CheckpointError:
    """The error for tensors under our names without what says which model they are of."""
    return CheckpointError(
        f"{shown} is a state dict of the zoo without the description of its model.\n"
        "Save the model with zoo.save(model, folder), or build it with zoo.create(...) and fill it with "
        "model.load_state_dict(torch.load(file)); with the config.json of zoo.save beside it, or as config=, the file "
        "loads"
    )


@dataclass(frozen=True)
class _Part:
    """Some tensors of an archive."""

    tensors: Mapping[str, Described]
    metadata: Mapping[str, object]


def _part_that_fits(archive: Listed, config: Mapping[str, object] | None) -> str:
    """What to say of a file of which the tensors under one prefix are a checkpoint, and others stand
    beside them: a wrapper with tensors of its own, or several models. Empty where it is neither.
    """
    parts: dict[str, dict[str, Described]] = {}
    for name, info in archive.tensors.items():
        parts.setdefault(name.partition(".")[0] + ".", {})[name] = info
    fitting = []
    for prefix, tensors in parts.items():
        part = _Part(tensors, archive.metadata)
        named = [layout for layout, path in available().items() if _verdict(load(path), part, config, True) is None]
        if named and 1 < len(parts) <= MAX_PARTS:
            fitting.append((prefix, " or ".join(named)))
    if not fitting:
        return ""
    whole = "several models" if len(fitting) > 1 else "a model below a wrapper that has tensors of its own"
    found = ", ".join(f"those under the prefix {prefix!r} are {layout}" for prefix, layout in fitting)
    prefix, tensors = fitting[0][0], parts[fitting[0][0]]
    beside = next(name for name in archive.tensors if name not in tensors)
    return (
        f"the file holds {whole}: {found}; beside them stands {beside!r}.\n"
        f"Read the file, keep the tensors of one prefix, and pass them: zoo.load({{name: tensor for name, tensor in "
        f"tensors.items() if name.startswith({prefix!r})}}, config=...)"
    )


def own_config(archive: Listed) -> dict[str, object] | None:
    """The config that a file holds beside its tensors, where a layout says under which key
    (``[recognise] config_in``), or None.
    """
    for path in available().values():
        for place in load(path).recognise.get("config_in", ()):
            value: object = archive.metadata
            for key in place.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, Mapping):
                return {str(key): part for key, part in value.items()}
    return None


def config_wanted(keymap: KeyMap, path: Path) -> ConfigError:
    """The error for a checkpoint without a config: its tensors don't say how many heads there are,
    or which activation.
    """
    name = keymap.recognise.get("config_file", "config.json")
    return ConfigError(
        f"{path} has no config beside it; layout {keymap.layout} needs its {name}: put it there or pass config="
    )


def is_ours(archive: Listed) -> bool:
    """Whether the zoo wrote the file, or another wrote it under our names."""
    if "zoo.config" in archive.metadata:  # the zoo wrote it in the layout of another library
        return False
    if "zoo.description" in archive.metadata or "zoo.content_sha256" in archive.metadata:
        return True
    return any(name.endswith(OWN_TABLE) and own_name(name) == OWN_TABLE for name in archive.tensors)


def own_name(name: str) -> str:
    """The name in our files of a tensor that a module's state_dict holds, wrapped or not."""
    name = unwrapped(name)
    while name.startswith(("module.", "model.")):
        name = name.partition(".")[2]
    return name


def _verdict(keymap: KeyMap, archive: Listed, config: Mapping[str, object] | None, below: bool = False) -> str | None:
    """Why a layout does not fit, or None."""
    wanted = keymap.recognise
    if wanted.get("stated") and config is None:
        return "is taken only by what the config says, since its names are another layout's too"
    if config is not None:
        stated = config.get("model_type")
        types = wanted.get("model_type", [])
        if stated is not None and stated not in types:
            return f"is for model_type {' or '.join(map(repr, types)) or 'none'}"
        for key, accepted in wanted.get("config", {}).items():
            if key in config and config[key] not in accepted:
                return f"is for {key} {' or '.join(map(repr, accepted))}"
        for key in wanted.get("config_keys", []):
            if key not in config:
                return f"is for a config with {key!r}"
    if config is None or config.get("model_type") is None:
        own = keymap.clean(archive.tensors, strict=False, below=below)[1] != ""
        if (wanted.get("stated") and "model_type" in wanted) or (wanted.get("marked") and not own):
            return (
                f"is taken only where the config says model_type {' or '.join(map(repr, wanted.get('model_type', [])))}"
            )
    lacking = keymap.fits(archive.tensors, below)
    if lacking:
        first = lacking[0]
        return f"must not hold {first[1:]!r}" if first.startswith("!") else f"lacks {first!r}"
    return None
