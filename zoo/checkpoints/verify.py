"""`zoo.verify`: what can be checked of a file, a folder or a registered checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints import checks
from zoo.checkpoints.checkpoint import open_checkpoint
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
    """Check a file, a folder, a registered tag or a source: hash, keys, values, ties, contract and
    probe, up to the first that fails.

    The result's ``ok`` is False where a check failed that could be tried. A registered tag brings
    the hash and the probe that are on record.
    """
    path, record = locate(source)
    with open_checkpoint(path, record=record, layout=layout, config=config) as checkpoint:
        return checks.verify(checkpoint, checkpoint.targets(), _probe(record))


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
