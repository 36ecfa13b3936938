"""`zoo.list_models`, and which tasks fit which model."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from zoo.errors import unknown
from zoo.registry.records import DOWNLOADED, KEY_MAP_ONLY, records
from zoo.registry.tasks import fitting, offered, spec_for
from zoo.registry.variants import FUSIONS, PILLARS, Variant, _all, resolve, split, tags


def list_models(
    pattern: str = "*",
    *,
    pillar: str | None = None,
    streams: int | None = None,
    fusion: str | None = None,
    family: str | None = None,
    task: str | None = None,
    pretrained: bool = False,
) -> list[str]:
    """Names of registered variants in natural order. Imports no torch.

    ``pattern``: shell wildcards. ``pretrained=True``: names with a tag for each checkpoint that has
    a source, matched with or without the tag. ``task``: only models that the task fits.
    """
    known = _all()
    if pillar is not None and pillar not in PILLARS:
        raise unknown("pillar", pillar, PILLARS)
    for what, value, values in (
        ("fusion", fusion, {*FUSIONS, *(v.fusion for v in known.values())}),
        ("family", family, {v.family for v in known.values()}),
    ):
        if value is not None and value not in values:
            raise unknown(what, value, values)
    chosen: list[Variant] = [
        v
        for v in known.values()
        if pillar in (None, v.pillar)
        and streams in (None, v.streams)
        and fusion in (None, v.fusion)
        and family in (None, v.family)
    ]
    if task is not None:
        chosen = [v for v in chosen if fits(task, v)]
    if pretrained:
        names = [f"{v.name}.{tag}" for v in chosen for tag in tags(v)]
        found = [n for n in names if fnmatch.fnmatchcase(n, pattern) or fnmatch.fnmatchcase(split(n)[0], pattern)]
    else:
        found = [v.name for v in chosen if fnmatch.fnmatchcase(v.name, pattern)]
    return sorted(found, key=natural)


NO_CHECKPOINT = "no public checkpoint"
PROOFS = (DOWNLOADED, KEY_MAP_ONLY, NO_CHECKPOINT)
"""How far the checkpoints of a model are tested, from the best."""


def overview(name: str) -> dict[str, Any]:
    """What one row says of a model, or of one checkpoint where the name has a tag: where it belongs,
    its size, languages, licences, tasks and proof. Imports no torch, so ``parameters`` is None where
    no count is stated.
    """
    model, tag = resolve(name)
    known = records()
    public = [entry for each in ([tag] if tag else tags(model)) if (entry := known.get(f"{model.name}.{each}"))]
    return {
        "name": name,
        "family": model.family,
        "pillar": model.pillar,
        "streams": model.streams,
        "fusion": model.fusion,
        "parameters": model.parameters.get("count"),
        "languages": list(model.languages),
        "licences": list(dict.fromkeys(entry.licence for entry in public if entry.licence)),
        "tasks": fitting(offers_of(model)),
        "checkpoints": [entry.tag for entry in public],
        "proof": DOWNLOADED
        if any(not entry.unverified for entry in public)
        else KEY_MAP_ONLY
        if public
        else NO_CHECKPOINT,
        "paper": model.paper,
    }


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key by which l2 comes before l10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def offers_of(model: Variant) -> frozenset[str]:
    """What a registered model offers to tasks."""
    return offered(model.offers, model.heads, model.pretraining)


def fits(task: str, model: Variant) -> bool:
    """Whether the task fits the model."""
    offers = offers_of(model)
    return not spec_for(task, offers).missing(offers)
