"""`zoo.verify`: what can be checked of a file, a folder or a registered checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from zoo.checkpoints import checks as ladder
from zoo.checkpoints.convert import converted
from zoo.checkpoints.description import class_and_config, planned, targets_of
from zoo.checkpoints.files import architectures_of, foreign_config, read_description
from zoo.checkpoints.load import Request, _load
from zoo.checkpoints.locate import locate, shapes_of
from zoo.formats.opening import open_archive, opened
from zoo.maps import layouts
from zoo.registry.records import Record
from zoo.techniques.base import recorded


def verify(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    layout: str | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
) -> ladder.Ladder:
    """Climb hash, keys, values, ties, contract and probe for a file, a folder, a registered tag or
    a source; says how far it got and why.

    The result's ``ok`` is False where a rung failed that could be climbed. A registered tag brings
    the hash and the probe that are on record.
    """
    path, record = locate(source)
    probe = _probe(record) if record is not None else None
    if not isinstance(path, Mapping):
        description = read_description(path)
        if description is not None and layout in (None, layouts.OURS):
            with open_archive(path) as archive:
                model_class, found = class_and_config(description, path)
                targets = targets_of(
                    model_class, found, shapes_of(archive), recorded(description.get("techniques", ()))
                )
                return ladder.verify_ours(archive, targets, probe=probe)
    foreign = foreign_config(path, config if config is not None else record.config if record else None)
    with opened(path) as archive:
        foreign = layouts.own_config(archive) if foreign is None else foreign
        keymap = layouts.load(
            layout or (record.layout if record and record.layout else layouts.recognise(archive, foreign))
        )
        model_class, ours, plan = planned(keymap, archive, foreign, None)
        return ladder.verify_foreign(
            archive,
            keymap,
            ours.to_dict(),
            targets_of(model_class, ours, {name: info.shape for name, info in plan.outputs.items()}),
            architectures=architectures_of(foreign),
            foreign=foreign,
            expected_sha256=None if record is None else record.sha256,
            probe=probe,
        )


def _probe(record: Record) -> Callable[[], tuple[bool, str]] | None:
    """A check of recorded outputs, for a tag that has some on record
    (``weights/<family>/probes.toml``).
    """
    from zoo.checkpoints.probes import check, probe_of

    found = probe_of(record)
    if found is None:
        return None

    def run() -> tuple[bool, str]:
        return check(found, _load(converted(record), Request(record.name, shown=record.name)))

    return run
