"""Which public layouts there are, and which one a file is in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from zoo.errors import CheckpointError, ConfigError, unknown
from zoo.formats.archive import Described
from zoo.maps.key_map import KeyMap
from zoo.maps.parsing import read_map
from zoo.registry.resources import weights_folder

TRANSFER = "transfer-"  # maps from one family's names to another's, for `init_from`; no layouts of files
OURS = "zoo"  # the layout of files that we wrote


class Listed(Protocol):
    """An opened archive, as far as recognising needs it."""

    @property
    def tensors(self) -> Mapping[str, Described]: ...
    @property
    def metadata(self) -> Mapping[str, object]: ...


def available() -> dict[str, Path]:
    """Every layout that has a map, with the map's file, in natural order."""
    files = sorted(weights_folder().glob("*/*.toml"))
    return {
        file.stem: file
        for file in files
        if not file.parent.name.startswith("_")
        and file.stem not in ("sources", "probes")
        and not file.stem.startswith(TRANSFER)
    }


def transfers(family: str) -> dict[str, Path]:
    """The families whose checkpoints can start this one, with the maps that say how."""
    files = sorted((weights_folder() / family).glob(f"{TRANSFER}*.toml"))
    return {file.stem.removeprefix(TRANSFER): file for file in files}


def path_of(layout: str) -> Path:
    """The map file of a layout; an unknown one is refused with the closest."""
    layouts = available()
    if layout not in layouts:
        raise unknown("layout", layout, layouts)
    return layouts[layout]


@lru_cache(maxsize=64)
def _loaded(path: Path, modified: int) -> KeyMap:
    return read_map(path)


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
    not contradict it. None or several is an error that lists the candidates.
    """
    if is_ours(archive):
        return OURS
    verdicts = {layout: _verdict(load(path), archive, config) for layout, path in available().items()}
    fitting = [layout for layout, reason in verdicts.items() if reason is None]
    outright = [layout for layout in fitting if load(layout).recognise.get("stated")]  # by the config, not names alone
    if len(fitting) == 1 or len(outright) == 1:
        return (outright or fitting)[0]
    model_type = None if config is None else config.get("model_type")
    if len(fitting) > 1:
        said = "is missing" if config is None else f"says model_type={model_type!r}"
        raise CheckpointError(
            f"the file fits several layouts: {', '.join(fitting)}; the config {said}, so name one with layout="
        )
    sample = ", ".join(repr(name) for name in list(archive.tensors)[:3]) or "no tensors"
    reasons = "; ".join(f"{layout}: {reason}" for layout, reason in verdicts.items())
    raise CheckpointError(
        f"no known layout fits a file with {sample} and model_type={model_type!r}. Candidates were {reasons}. "
        "Name one with layout=, or pass a map of your own"
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
    return (
        "zoo.description" in archive.metadata
        or "zoo.content_sha256" in archive.metadata
        or "embeddings.token.weight" in archive.tensors
    )


def _verdict(keymap: KeyMap, archive: Listed, config: Mapping[str, object] | None) -> str | None:
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
        own = any(name.startswith(prefix) for prefix in keymap.prefixes if prefix for name in archive.tensors)
        if (wanted.get("stated") and "model_type" in wanted) or (wanted.get("marked") and not own):
            return (
                f"is taken only where the config says model_type {' or '.join(map(repr, wanted.get('model_type', [])))}"
            )
    lacking = keymap.fits(archive.tensors)
    if lacking:
        first = lacking[0]
        return f"must not hold {first[1:]!r}" if first.startswith("!") else f"lacks {first!r}"
    return None
