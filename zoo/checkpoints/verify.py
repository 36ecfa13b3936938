"""`zoo.verify`: what can be checked of a file, a folder or a registered checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.checkpoints import checks
from zoo.checkpoints.binding import CONFIG_FILE, GENERATION, content_named, content_of, faults, same_save
from zoo.checkpoints.checkpoint import Checkpoint, open_checkpoint
from zoo.checkpoints.fetching.cache import Cache
from zoo.checkpoints.files import folder_of
from zoo.checkpoints.load import filled, open_to_load
from zoo.checkpoints.locate import locate
from zoo.checkpoints.probes import check, probe_of
from zoo.registry.records import Record


def verify(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    layout: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> checks.Checks:
    """Check a file, a folder, a registered tag or a source: hash, keys, values, ties, contract,
    binding (which files belong together) and probe, up to the first that fails.

    The result's ``ok`` is False where a check failed that could be tried. A registered tag brings
    the hash and the probe that are on record.
    """
    path, record = locate(source)
    with open_checkpoint(path, record=record, layout=layout, config=config) as checkpoint:
        return checks.verify(checkpoint, checkpoint.targets(), _probe(record), lambda: _bound(checkpoint))


def _bound(checkpoint: Checkpoint) -> checks.Check:
    """Whether the files of a folder belong together, as far as something says so."""
    folder = folder_of(checkpoint.source)
    if damaged := _damaged_in_the_cache(checkpoint.source):
        return checks.Check("binding", False, f"{damaged}; zoo cache verify --drop, and it is made anew")
    if folder is None:
        return checks.untried("binding", "tensors by themselves have nothing beside them")
    if checkpoint.bound is None:
        wanted = content_named(folder) if checkpoint.keymap is None else None
        if wanted is not None and content_of(checkpoint.archive) != wanted:
            return checks.Check("binding", False, "the tensors are not those that config.json was written with")
        if wanted is not None:
            return checks.Check("binding", True, "the tensors are those that config.json was written with")
        return checks.untried(
            "binding", "; ".join(checkpoint.notes) or "nothing says which of these files belong together"
        )
    found = faults(folder, checkpoint.bound)
    if Path(checkpoint.source).is_dir() and not same_save(folder, str(checkpoint.archive.metadata[GENERATION])):
        found.insert(0, f"{CONFIG_FILE} does not say that it is of the same save as the tensors")
    if found:
        return checks.Check("binding", False, f"{'; '.join(found)}: changed, or of another save")
    others = f", and so do {len(checkpoint.bound)} files beside them" if checkpoint.bound else ""
    return checks.Check("binding", True, "; ".join((f"config and tensors belong together{others}", *checkpoint.notes)))


def _damaged_in_the_cache(source: Any) -> str:
    """What is wrong with a source that was fetched, or with what was converted from it; empty where
    nothing is, or it was not fetched.
    """
    cache = Cache()
    entry = None if isinstance(source, Mapping) else cache.entry_of(Path(source))
    if entry is None:
        return ""
    if problems := cache.damage(entry):
        return f"{entry.source}: {problems[0]}"
    found = ((made, cache.damage_made(made)) for made in cache.conversions([entry.folder.name]))
    return next((f"{made}: {problems[0]}" for made, problems in found if problems), "")


def _probe(record: Record | None) -> checks.Probe | None:
    """A check of recorded outputs, for a tag that has some on record
    (``weights/<family>/probes.toml``).
    """
    found = None if record is None else probe_of(record)
    if record is None or found is None:
        return None

    def run() -> tuple[bool, str]:
        with open_to_load(record) as checkpoint:
            return check(found, filled(checkpoint))

    return run
