"""What the pages of `docs/api/` leave to the code: a line ``<!-- api: families -->`` becomes an entry
for each family, and each config and technique gets a table of its fields.

An entry is a line ``::: zoo.create``, which mkdocstrings turns into signature and docstring.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zoo.layers
from docs.site import sources
from docs.site.navigation import page_of
from zoo.errors import ZooError
from zoo.models.base.config import Config
from zoo.models.base.fields import described
from zoo.registry import variants as registry
from zoo.registry.tasks import SPECS
from zoo.registry.techniques import TECHNIQUES

PLACE = re.compile(r"^<!-- api: ([\w-]+) -->$", re.MULTILINE)
ENTRY = re.compile(r"^::: ([\w.]+)\n((?:    .*\n)*)", re.MULTILINE)
ELSEWHERE = ("packing", "Encoded")  # stand on the page of the models
BELOW = "      heading_level: 3\n"
ALONE = "      merge_init_into_class: false\n      members: []\n"  # its fields say what a signature would
FORWARD = "    options:\n      members: [forward]\n      inherited_members: [forward]\n"


def fill(text: str) -> str:
    """A page with its entries written out, and the fields below those that have some."""

    def made(match: re.Match[str]) -> str:
        if match[1] not in MAKERS:
            raise ZooError(f"a page asks for the entries {match[1]!r}; there are {', '.join(MAKERS)}")
        return MAKERS[match[1]]()

    text = PLACE.sub(made, text)
    grouped = text.find("\n## ")  # from here on entries stand below the headings of groups

    def entry(match: re.Match[str]) -> str:
        fields, options = fields_of(match[1]), match[2]
        for line, wanted in ((BELOW, 0 <= grouped < match.start()), (ALONE, bool(fields))):
            if wanted:
                options = (options or "    options:\n") + line
        return f"::: {match[1]}\n{options}{fields}"

    return ENTRY.sub(entry, text)


def entries(text: str) -> list[str]:
    """The dotted names that a page documents."""
    return [match[1] for match in ENTRY.finditer(fill(text))]


def find(path: str) -> Any:
    """What a dotted name leads to."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ZooError(f"no module of {path} can be imported")


def files() -> set[str]:
    """The source files of all entries, and of the classes from which they inherit."""
    found: set[str] = set()
    for page in (sources.ROOT / "docs" / "api").glob("*.md"):
        for path in entries(page.read_text(encoding="utf-8")):
            entry = find(path)
            for part in entry.__mro__ if inspect.isclass(entry) else [entry]:
                if getattr(part, "__module__", "").startswith("zoo"):
                    found.add(part.__module__.replace(".", "/") + ".py")
    return {path if (sources.ROOT / path).exists() else f"{path[:-3]}/__init__.py" for path in found}


def fields_of(path: str) -> str:
    """The table of the fields of a config, a technique or another dataclass that explains each."""
    entry = find(path)
    if not (inspect.isclass(entry) and dataclasses.is_dataclass(entry)) or not (rows := described(entry)):
        return ""
    methods = [name for name, value in vars(entry).items() if callable(value) and not name.startswith("_")]
    if not issubclass(entry, Config) and (methods or not all(row.meaning for row in rows)):
        return ""
    lines = [
        f"| `{row.name}: {row.type}{f' = {row.default}' if row.default else ''}` | {row.meaning} |" for row in rows
    ]
    return "\n".join(["", "| field | meaning |", "| --- | --- |", *lines, ""])


def families() -> str:
    """Config and class of each family, under its name."""
    parts, known = [], dict[type, str]()
    for family, variants in sorted(registry.families().items()):
        cls = variants[0].model_class()
        parts.append(f"## {family}\n\nThe page: [{family}](../{page_of(family)}).\n")
        if cls in known:
            parts.append(f"The classes of [{known[cls]}](#{known[cls]}).\n")
            continue
        known[cls] = family
        parts.append(f"::: {cls.Config.__module__}.{cls.Config.__qualname__}\n")
        parts.append(f"::: {cls.__module__}.{cls.__qualname__}\n{FORWARD}")
    return "\n".join(parts)


def layers() -> str:
    """The names of `zoo.layers`, under the files that define them."""
    parts = []
    for node in ast.parse(Path(zoo.layers.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [name.name for name in node.names if name.name not in ELSEWHERE]
            title = node.module.rpartition(".")[2].replace("_", " ").capitalize()
            parts += [f"## {title}\n", *(f"::: {node.module}.{name}\n" for name in names)] if names else []
    return "\n".join(parts)


def tasks() -> str:
    """The classes of the tasks, each once."""
    paths = dict.fromkeys(spec.class_path.replace(":", ".") for spec in SPECS)
    return "\n".join(f"::: {path}\n{FORWARD}" for path in paths)


def techniques() -> str:
    """The techniques, under the titles of their pages."""
    by_page: dict[str, list[str]] = {}
    for name, declared in TECHNIQUES.items():
        by_page.setdefault(declared.page, []).append(name)
    parts = []
    for page, names in by_page.items():
        title = (sources.ROOT / "docs" / "techniques" / f"{page}.md").read_text(encoding="utf-8").splitlines()[0]
        parts.append(f"## {title.removeprefix('# ')}\n\nThe page: [{page}](../techniques/{page}.md).\n")
        parts += [f"::: zoo.{name}\n" for name in names]
    return "\n".join(parts)


MAKERS: dict[str, Callable[[], str]] = {
    "families": families,
    "layers": layers,
    "tasks": tasks,
    "techniques": techniques,
}
