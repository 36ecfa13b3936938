"""Names to families and variants, read from the ``.toml`` files beside the models. Imports no
torch.

A family file names its class and holds one row per variant: sizes that differ from the config's
defaults, paper, parameter counts with their source, and what a checkpoint tag brings of its own.
``like = "another row"`` inherits that row's values.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import re
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.errors import ConfigError, unknown

ENTRY_POINTS = "zoo.models"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
PILLARS = ("foundation", "lightweight", "knowledge-enhanced", "cross-modal", "cross-lingual")
FUSIONS = {
    "none": "one stream, or streams that never read each other's states",
    "joint": "one encoder over all inputs as one sequence",
    "co-attention": "streams of their own that look at each other in some blocks",
    "tangled": "streams that steer each other's attention in every block",
    "towers": "encoders that meet in their pooled vectors alone: two towers are not two streams",
    "token-wise": "a token's state is mixed with that of what it stands for",
    "sum": "one stream's states are added to the other's",
}
"""How the streams of a model meet; a family's own word may come beside these."""
_FAMILY_KEYS = {
    "family",
    "class",
    "maps",
    "pillar",
    "streams",
    "fusion",
    "heads",
    "inputs",
    "offers",
    "pretraining",
    "images",
    "languages",
    "licence",
    "paper",
    "title",
    "variants",
}
_ROW_KEYS = {
    "like",
    "images",
    "languages",
    "title",
    "paper",
    "config",
    "parameters",
    "tags",
    "default_tag",
    "pillar",
    "notes",
    "renamed_to",
    "removed_in",
}


@dataclass(frozen=True)
class Tag:
    """What a checkpoint brings of its own: config values, a parameter count with its source, how it
    wants its pictures, a note.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class Variant:
    """One registered model. ``config`` holds the values that differ from the class's defaults."""

    name: str
    family: str
    class_path: str
    pillar: str
    streams: int = 1
    fusion: str = "none"
    title: str = ""
    paper: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)  # {count, source}: of the bare model
    tags: Mapping[str, Tag] = field(default_factory=dict)
    default_tag: str | None = None
    heads: tuple[str, ...] = ()
    inputs: tuple[str, ...] = TEXT_INPUTS
    offers: tuple[str, ...] = ("text", "pooled")  # what tasks may read of it
    pretraining: tuple[str, ...] = ()  # the terms of its objective
    images: Mapping[str, Any] = field(default_factory=dict)  # fields of `zoo.data.images.images.Images`
    languages: tuple[str, ...] = ()  # ISO 639-1 codes, or words where it is many or no language
    maps: str = ""  # the family whose layouts serve it
    notes: str = ""
    cls: type | None = None  # given by `register`; otherwise imported from class_path

    def model_class(self) -> Any:
        """The model's class; imports torch."""
        if self.cls is not None:
            return self.cls
        module, _, name = self.class_path.partition(":")
        return getattr(importlib.import_module(module), name)


_registered: dict[str, Variant] = {}
_loaded_entry_points = False


@functools.cache
def _shipped() -> tuple[dict[str, Variant], dict[str, tuple[str, str]]]:
    variants: dict[str, Variant] = {}
    renamed: dict[str, tuple[str, str]] = {}
    for path in sorted((Path(__file__).parents[1] / "models").glob("*.toml")):
        _read_family(path, variants, renamed)
    return variants, renamed


def _read_family(path: Path, variants: dict[str, Variant], renamed: dict[str, tuple[str, str]]) -> None:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    if extra := set(table) - _FAMILY_KEYS:
        raise ConfigError(f"{path.name}: unknown keys {sorted(extra)}; known are {sorted(_FAMILY_KEYS)}")
    rows: dict[str, dict[str, Any]] = table["variants"]
    for name in rows:
        row = _inherit(name, rows, path.name, ())
        if target := row.get("renamed_to"):
            renamed[name] = (target, row.get("removed_in", "a later version"))
            continue
        if name in variants:
            raise ConfigError(f"{path.name}: {name} is registered by {variants[name].family} already")
        tags = {tag: Tag(**value) for tag, value in row.get("tags", {}).items()}
        variants[name] = Variant(
            name=name,
            family=table["family"],
            class_path=table["class"],
            pillar=row.get("pillar", table["pillar"]),
            streams=table.get("streams", 1),
            fusion=table.get("fusion", "none"),
            title=row.get("title", table.get("title", "")),
            paper=row.get("paper", table.get("paper", "")),
            config=row.get("config", {}),
            parameters=row.get("parameters", {}),
            tags=tags,
            default_tag=row.get("default_tag", next(iter(tags), None)),
            heads=tuple(table.get("heads", ())),
            inputs=tuple(table.get("inputs", Variant.inputs)),
            offers=tuple(table.get("offers", Variant.offers)),
            pretraining=tuple(table.get("pretraining", ())),
            images={**table.get("images", {}), **row.get("images", {})},
            languages=tuple(
                row.get("languages") or row.get("config", {}).get("languages") or table.get("languages", ())
            ),
            maps=table.get("maps", table["family"]),
            notes=row.get("notes", ""),
        )


def _inherit(name: str, rows: Mapping[str, dict[str, Any]], where: str, seen: tuple[str, ...]) -> dict[str, Any]:
    row = rows[name]
    if extra := set(row) - _ROW_KEYS:
        raise ConfigError(f"{where}: {name} has unknown keys {sorted(extra)}; known are {sorted(_ROW_KEYS)}")
    base = row.get("like")
    if base is None:
        return row
    if base in seen or base not in rows:
        raise ConfigError(
            f"{where}: {name} is like {base!r}, which is {'itself like it' if base in seen else 'not a row there'}"
        )
    parent = _inherit(base, rows, where, (*seen, name))
    merged = {
        key: value for key, value in parent.items() if key in ("title", "paper", "pillar", "languages")
    }  # counts and tags are a row's own
    merged.update(row)
    for key in ("config", "images"):
        merged[key] = {**parent.get(key, {}), **row.get(key, {})}
    return merged


def _all() -> dict[str, Variant]:
    _load_entry_points()
    return {**_shipped()[0], **_registered}


def _load_entry_points() -> None:
    global _loaded_entry_points
    if _loaded_entry_points:
        return
    _loaded_entry_points = True
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()()
        except KeyboardInterrupt:
            _loaded_entry_points = False
            raise
        except BaseException as error:  # somebody's broken plug-in, sys.exit in it too, must not hide the other models
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, Exception) else str(error)
            warnings.warn(f"the plug-in {point.name!r} ({point.value}) could not be registered: {reason}", stacklevel=3)


def register(
    name: str,
    cls: type,
    config: Any = None,
    *,
    pillar: str = "foundation",
    streams: int = 1,
    fusion: str = "none",
    title: str = "",
    paper: str = "",
    maps: str = "",
    override: bool = False,
) -> None:
    """Add a model of your own, for this process.

    ``cls``: a `zoo.models.base.model.Model` whose `Config` is a `zoo.models.base.config.Config`.
    ``config``: an instance of it, or a dict of the values that differ from its defaults. A package
    registers its models for every process by an entry point of the group ``zoo.models`` that names
    a function without arguments, which calls this one.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigError(f"a model's name is lower case with hyphens, like 'bert-base'; got {name!r}")
    if name in _all() and not override:
        raise ConfigError(f"{name!r} is registered already; pass override=True to put yours in its place")
    if pillar not in PILLARS:
        raise unknown("pillar", pillar, PILLARS)
    config_class = getattr(cls, "Config", None)
    if config_class is None or not hasattr(config_class, "field_names"):
        raise ConfigError(f"{cls.__name__}.Config must be a zoo.models.base.config.Config class; got {config_class!r}")
    fields = config_class.field_names()
    if lacks := [name for name in ("hidden_size", "initializer_range") if name not in fields]:
        raise ConfigError(
            f"{config_class.__name__} lacks {' and '.join(lacks)}, which every model's config has: heads are as wide "
            "as hidden_size, and weights are drawn with initializer_range; docs/adding-a-model.md shows a whole class"
        )
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    config_class.from_dict(values)
    _registered[name] = Variant(
        name=name,
        family=maps or name.split("-")[0],
        class_path=f"{cls.__module__}:{cls.__qualname__}",
        pillar=pillar,
        streams=streams,
        fusion=fusion,
        title=title,
        paper=paper,
        config=values,
        heads=tuple(getattr(cls, "heads", ())),
        inputs=tuple(getattr(cls, "inputs", TEXT_INPUTS)),
        offers=tuple(getattr(cls, "offers", ("text",))),
        pretraining=tuple(term.name for term in getattr(cls, "pretraining", ())),
        maps=maps or name.split("-")[0],
        cls=cls,
    )


def unregister(name: str) -> None:
    """Take back a model that `register` added in this process."""
    if name not in _registered:
        raise unknown("registered model", name, _registered)
    del _registered[name]


def split(name: str) -> tuple[str, str | None]:
    """``"albert-base.v1"`` -> ``("albert-base", "v1")``, and so ``"albert/albert-base-v1"``, the hub's
    name for it.
    """
    from zoo.registry.records import aliases

    if not isinstance(name, str):
        raise unknown("model", name, _all(), "(a name is a string; zoo list shows all)")
    model, _, tag = name.partition(".")
    if model not in _all() and model not in _shipped()[1]:
        model, _, tag = aliases().get(name.lower(), name).partition(".")
    return model, tag or None


def variant(name: str) -> Variant:
    """The variant of that name (without a tag). An unknown name is an UnknownNameError with the
    three closest.
    """
    known = _all()
    if name in known:
        return known[name]
    target = _shipped()[1].get(name)
    if target is not None:
        warnings.warn(
            f"{name!r} is now called {target[0]!r}; the old name goes in {target[1]}", FutureWarning, stacklevel=3
        )
        return known[target[0]]
    from zoo.registry.records import aliases

    raise unknown("model", name, [*known, *aliases()], "(zoo list shows all)")


def tags(model: Variant) -> tuple[str, ...]:
    """The checkpoint tags of a variant, the default first."""
    from zoo.registry.records import records

    named = list(model.tags)
    for record in records().values():
        if record.variant == model.name and record.tag not in named:
            named.append(record.tag)
    if model.default_tag in named:
        named.remove(model.default_tag)
        named.insert(0, model.default_tag)
    return tuple(named)


def resolve(name: str) -> tuple[Variant, str | None]:
    """A full name's variant and tag, both checked."""
    model_name, tag = split(name)
    model = variant(model_name)
    if tag is not None and tag not in tags(model):
        raise unknown(f"tag of {model.name}", tag, tags(model), f"(of {model.name})")
    return model, tag


def config_values(name: str) -> dict[str, Any]:
    """The config values of a variant that differ from its class's defaults, a tag's own
    included.
    """
    model, tag = resolve(name)
    own = model.tags[tag].config if tag is not None and tag in model.tags else {}
    return {**model.config, **own}


def image_values(name: str) -> dict[str, Any]:
    """How a variant wants its pictures, a tag's own values included; empty where it reads none."""
    model, tag = resolve(name)
    own = model.tags[tag].images if tag is not None and tag in model.tags else {}
    return {**model.images, **own}


def config(name: str) -> Any:
    """The frozen config of a variant; of a tag, with the tag's own values:
    ``zoo.config("albert-base.v1")``. Imports torch.
    """
    model, _ = resolve(name)
    return model.model_class().Config.from_dict(config_values(name))


def families() -> dict[str, list[Variant]]:
    """Every family and its variants."""
    found: dict[str, list[Variant]] = {}
    for item in _all().values():
        found.setdefault(item.family, []).append(item)
    return found


def as_dict(item: Variant) -> dict[str, Any]:
    """A variant as plain values."""
    values = {f.name: getattr(item, f.name) for f in dataclasses.fields(item) if f.name not in ("cls", "tags")}
    return {**values, "tags": {name: dataclasses.asdict(tag) for name, tag in item.tags.items()}}
