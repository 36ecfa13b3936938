"""Which technique goes onto which family: every cell built on the meta device, or the reason why
not.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zoo.errors import ConfigError, TechniqueError, unknown
from zoo.layers.init import shapes_only
from zoo.models.base.model import bare_model
from zoo.registry import variants as registry
from zoo.registry.techniques import TECHNIQUES
from zoo.techniques.base import Technique, apply, technique_class

EXAMPLES: dict[str, tuple[Technique, ...]] = {
    name: tuple(technique_class(each)(**fields) for each, fields in (*declared.after, (name, declared.example)))
    for name, declared in TECHNIQUES.items()
    if declared.example is not None
}
"""Each technique at a size that small models take, with what it stands on."""


def cells(families: Iterable[str] | None = None, techniques: Iterable[str] | None = None) -> list[dict[str, str]]:
    """One row for each technique and family: ``state`` "works" or "impossible", and the
    ``reason``.
    """
    rows = []
    for name in registry.families() if families is None else families:
        config, model_class = _small(name)
        for technique in EXAMPLES if techniques is None else techniques:
            reason = refusal(model_class, config, EXAMPLES[technique])
            rows.append(
                {
                    "technique": technique,
                    "family": name,
                    "state": "works" if reason is None else "impossible",
                    "reason": reason or "",
                }
            )
    return rows


def refusal(model_class: Any, config: Any, techniques: Iterable[Technique]) -> str | None:
    """Why the techniques don't go onto a model of this config, or None where they do and change
    something.
    """
    with shapes_only():
        model = model_class(config)
    try:
        apply(model, *techniques)
    except TechniqueError as error:
        return str(error)
    last = bare_model(model).changes[-1]  # type: ignore[union-attr, index]
    if type(list(techniques)[-1]).adds_tensors and not (last.added or last.removed):  # type: ignore[union-attr]
        return "it would change neither a tensor nor the result"
    return None


def _small(family: str) -> tuple[Any, Any]:
    variant = registry.families()[family][0]
    config = registry.config(variant.name)
    few: Mapping[str, int] = {"num_layers": 2, "image_num_layers": 2, "vocab_size": 50}
    for fields in (few, {"vocab_size": 50}, {}):
        try:
            return config.replace(
                **{key: value for key, value in fields.items() if key in config.field_names()}
            ), variant.model_class()
        except ConfigError:
            continue
    raise AssertionError("a config equals itself")


def matching(family: str = "*", technique: str = "*") -> tuple[list[str], list[str]]:
    """The families and techniques that two patterns name, whatever their case and hyphens."""
    found = []
    for kind, pattern, names in (("family", family, registry.families()), ("technique", technique, EXAMPLES)):
        plain = {name.replace("-", "").lower(): name for name in names}
        kept = fnmatch.filter(plain, pattern.replace("-", "").replace("_", "").lower())
        if not kept:
            raise unknown(kind, pattern, names)
        found.append([plain[name] for name in kept])
    return found[0], found[1]


def lines(rows: list[dict[str, str]]) -> Iterator[str]:
    """The cells in words: for each technique the families that it goes onto, and why not onto others."""
    by_technique: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_technique.setdefault(row["technique"], []).append(row)
    wide = max(map(len, by_technique))
    for name, own in by_technique.items():
        works = [row["family"] for row in own if not row["reason"]]
        said = f"all {len(own)}" if len(works) == len(own) > 1 else f"{len(works)} of {len(own)}"
        few = f": {', '.join(works)}" if 0 < len(works) < len(own) / 2 or len(own) == 1 else ""
        yield f"{name:{wide}}  {said}{few}"
        for row in own:
            if row["reason"]:
                yield f"{'':{wide}}    not {row['family']}: {row['reason']}"


def table(rows: list[dict[str, str]]) -> str:
    """The cells as a Markdown table, families down and techniques across, and the reasons under it. A family
    that no technique goes onto has no row.
    """
    techniques = list(dict.fromkeys(row["technique"] for row in rows))
    by_family: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        by_family.setdefault(row["family"], {})[row["technique"]] = row
    without = [family for family, own in by_family.items() if all(row["reason"] for row in own.values())]
    by_family = {family: own for family, own in by_family.items() if family not in without or len(by_family) == 1}
    rows = [row for row in rows if row["family"] in by_family]
    notes: dict[str, int] = {}
    lines = [
        "| family | " + " | ".join(f"`{name}`" for name in techniques) + " |",
        "| --- |" + " :-: |" * len(techniques),
    ]
    for family, own in by_family.items():
        marks = []
        for name in techniques:
            reason = own[name]["reason"]
            marks.append("yes" if not reason else f"[{notes.setdefault(reason, len(notes) + 1)}]")
        lines.append(f"| {family} | " + " | ".join(marks) + " |")
    works = sum(row["state"] == "works" for row in rows)
    lines += ["", f"{works} of {len(rows)} cells work ({works / len(rows):.0%}).", ""]
    if without and without != list(by_family):
        lines += [f"No technique goes onto {', '.join(without)}: they have no attention and no linear layers.", ""]
    return "\n".join([*lines, *(f"{number}. {reason}" for reason, number in notes.items())]) + "\n"
