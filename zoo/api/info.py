"""What is known of a model or a file: `info` and `inspect`."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UnknownNameError
from zoo.registry import variants as registry
from zoo.registry.listing import offers_of
from zoo.registry.tasks import fitting


def info(name: str) -> dict[str, Any]:
    """Everything known of a registered model: paper, sizes, parameter counts, inputs, tasks,
    checkpoints with licence and proof.

    The name may carry a tag; then the config is the tag's. Imports torch, to count the parameters
    on the meta device.
    """
    from zoo.data.images.images import Images
    from zoo.layers.init import shapes_only
    from zoo.registry.records import records

    try:
        variant, tag = registry.resolve(name)
    except UnknownNameError as error:
        if Path(name).is_dir():
            raise UnknownNameError(f"{name} is a folder, not a registered name; use zoo inspect {name}") from error
        raise
    config = registry.config(name)
    with shapes_only():
        model = variant.model_class()(config)
    by_part: dict[str, int] = {}
    for parameter_name, parameter in model.named_parameters():
        part = parameter_name.split(".")[0]
        by_part[part] = by_part.get(part, 0) + parameter.numel()
    stated = variant.parameters if tag is None else variant.tags[tag].parameters if tag in variant.tags else {}
    known = records()
    checkpoints = {}
    for each in registry.tags(variant):
        record = known.get(f"{variant.name}.{each}")
        checkpoints[each] = {
            "sources": list(record.sources) if record else [],
            "layout": record.layout if record else None,
            "licence": record.licence if record else None,
            "verified": record.proof if record else "no public source",
            "features": features_of(record.detector) if record and record.detector else None,
            "notes": " ".join(
                filter(None, (record.notes if record else "", variant.tags[each].notes if each in variant.tags else ""))
            ),
        }
    return {
        "name": variant.name if tag is None else f"{variant.name}.{tag}",
        "family": variant.family,
        "title": variant.title,
        "paper": variant.paper,
        "pillar": variant.pillar,
        "streams": variant.streams,
        "fusion": variant.fusion,
        "config": config.to_dict(),
        "parameters": model.num_parameters(),
        "parameters_by_part": by_part,
        "parameters_stated": dict(stated),
        "inputs": list(variant.inputs),
        "images": Images.from_dict(given).to_dict() if (given := registry.image_values(name)) else None,
        "heads": list(variant.heads),
        "tasks": fitting(offers_of(variant)),
        "default_tag": next(iter(registry.tags(variant)), None),
        "checkpoints": checkpoints,
        "schedule": [str(step) for step in getattr(config, "schedule", ())],
        "exceptions": dict(model.exceptions),
        "notes": variant.notes,
    }


def inspect(
    source: str | os.PathLike[str], *, config: Mapping[str, Any] | str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """What a checkpoint file or folder holds, from names and shapes alone: format, layout, family,
    size, what is foreign or refused. ``why``: why `convert` would refuse it; without it only the
    values, which nobody read, can stand in its way.
    """
    from zoo.checkpoints.binding import Header
    from zoo.checkpoints.checkpoint import open_checkpoint
    from zoo.checkpoints.convert import refusal
    from zoo.checkpoints.description import check_description, own_description
    from zoo.errors import ZooError
    from zoo.formats.opening import open_archive

    with open_archive(Path(source)) as archive:
        names = list(archive.tensors)
        found: dict[str, Any] = {
            "path": str(source),
            "format": archive.format,
            "tensors": len(names),
            "elements": sum(math.prod(item.shape) for item in archive.tensors.values()),
            "dtypes": dict(Counter(item.dtype for item in archive.tensors.values())),
            "refused": list(archive.refused),
        }
        try:
            described, notes = own_description(archive, Header.of(archive), source)
            if described:
                check_description(described, Path(source))
        except ZooError as error:
            return {**found, "layout": "zoo", "why": str(error)}
        if described:
            facts = {key: described[key] for key in ("model", "class", "task")}
            return {**found, "layout": "zoo", **facts, "notes": list(notes)}
        try:
            with open_checkpoint(Path(source), config=config) as checkpoint:
                assert checkpoint.keymap is not None
                keymap, plan = checkpoint.keymap, checkpoint.plan(inspect=True)
                refused = refusal(checkpoint)
        except ZooError as error:
            return {**found, "layout": None, "why": str(error), "first_names": names[:10]}
        return {
            **found,
            "layout": keymap.layout,
            "family": keymap.family,
            "config": dict(checkpoint.config),
            "heads": sorted(plan.heads),
            "missing": list(plan.missing),
            "foreign": dict(plan.left_out),
            "dropped": dict(plan.dropped),
            "problems": list(plan.problems),
            **({"why": refused} if refused else {}),
            "licence": licence_of(
                archive.sha256() if archive.path.is_file() and archive.path.stat().st_size < HASHED_BELOW else None
            ),
        }


def features_of(detector: str) -> str:
    """A detector's name, and what its features and boxes are like."""
    from zoo.data.regions.detectors import DETECTORS

    about = DETECTORS[detector]
    return f"{detector} ({about.width} wide, {about.channels}, boxes {about.box})"


HASHED_BELOW = 200 << 20  # bytes: larger files are not read through just to look for a licence


def licence_of(sha256: str | None) -> str | None:
    """The licence on record for a file of that hash, None where nobody recorded it."""
    from zoo.registry.records import records

    return next(
        (r.licence for r in records().values() if sha256 is not None and sha256 in (r.sha256, *_hashes(r))), None
    )


def _hashes(record: Any) -> set[str]:
    return {str(values.get("sha256")) for values in record.per_source.values()}
