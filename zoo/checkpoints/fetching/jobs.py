"""One fetch: what was asked for, where it goes, what is told on the way, and how long to try."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.checkpoints.fetching.cache import Cache
from zoo.checkpoints.fetching.sources import Source, Want
from zoo.errors import FetchError
from zoo.formats.disk import sha256_of

Progress = Callable[[str, int, int | None], None]  # what, bytes done, bytes in all (None = unknown)


class StorageFullError(FetchError):
    """No room for what is being fetched; no other source would fit either."""


@dataclass(frozen=True)
class RetryLimits:
    """How long to bear with a server: seconds without a byte, tries without progress, seconds
    before the second try (then doubling).

    ``rate``: bytes a second, on average over ``window`` seconds, below which a server counts as one
    that fails; as many such windows as there are tries end the download, whatever came in them. The
    answer itself, before the first byte of the file, has a ``window`` of time.
    """

    timeout: float = 30.0
    rate: float = 1024.0
    window: float = 60.0
    tries: int = 5
    pause: float = 0.5
    probe: float = 5.0  # seconds for the first answer of a hub


PATIENCE = RetryLimits()


def is_offline(offline: bool | None = None) -> bool:
    """The caller's word, else whether ``ZOO_OFFLINE`` or ``HF_HUB_OFFLINE`` is set to something
    true.
    """
    if offline is not None:
        return offline
    return any(
        os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE")
        for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE")
    )


def storage_full(
    root: Path, source: object, error: OSError | None = None, needed: int | None = None
) -> StorageFullError:
    free = ""
    with suppress(OSError):
        free = f", {shutil.disk_usage(root).free:,} bytes are free"
    need = f", {needed:,} bytes are needed" if needed is not None else ""
    why = f" ({os.strerror(error.errno)})" if error is not None and error.errno else ""
    return StorageFullError(
        f"no room under {root} for {source}{why}{need}{free}; the cache is as it was. "
        f"Free some space (zoo cache prune) or set ZOO_HOME to a larger disk"
    )


def check_wanted(source: Source, want: Want, folder: Path) -> None:
    """Every wanted file is there, with the hash that is known for it."""
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    missing = [name for name in want.files if name not in here]
    if missing:
        raise FetchError(f"holds no {', '.join(missing)}; it holds {listed(here)}")
    for name, digest in want.files.items():
        if digest and (actual := sha256_of(folder / name)) != digest:
            raise FetchError(f"{name} has sha256 {actual}, expected {digest}; nothing was kept")


def listed(names: Iterable[str], limit: int = 12) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit]) or "nothing"
    return f"{shown} and {len(ordered) - limit} more" if len(ordered) > limit else shown


def link_or_copy(path: Path, target: Path) -> None:
    """A copy that the hub's own bookkeeping can't touch; by link where possible, so that a killed
    run needs no second download.
    """
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


@dataclass(frozen=True)
class Job:
    """What a fetcher works with: it fills ``folder`` and gives (revision, facts)."""

    source: Source
    want: Want
    cache: Cache
    key: str
    staging: Path
    folder: Path
    offline: bool
    tell: Progress
    quiet: bool  # the caller shows progress, so nobody else should


Fetched = tuple[str | None, dict[str, Any]]
