"""The navigation by what a reader wants. The order of the pages in a folder is stated here, the
models come from the registry and the techniques from their declarations, so that a new one appears
by itself. A page that stands nowhere is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from zoo.errors import ZooError
from zoo.registry import variants as registry
from zoo.registry.techniques import TECHNIQUES

DOCS = Path(__file__).parents[1]
START = ("install", "tour")
GUIDES = {
    "Checkpoints": ("convert", "export", "interop"),
    "Training": ("fine-tuning", "corpora-and-clusters", "many-processes", "many-machines", "distillation"),
    "Use": ("command-line", "prediction", "writing", "swap-a-part"),
    "Pictures, knowledge, languages": (
        *("pictures", "regions", "emoji-retrieval", "stamps-retrieval", "stamps-search", "stamps-captions"),
        *("knowledge", "many-languages", "messages-translation", "mixed-vocabulary"),
    ),
    "Smaller models": ("compression", "subarchitecture", "trimming"),
}
CONCEPTS = ("packing", "sites", "maps", "proof", "objectives", "contrast")
NOTEBOOKS = ("tour", "convert", "fine_tune", "compress", "vision_language")
API = (
    *("create", "models", "families", "layers", "tasks", "techniques"),
    *("data", "training", "inference", "registry", "errors"),
)
SURVEY = ("survey.md", "survey-errata.md")
CONTRIBUTING = ("contributing.md", "architecture.md", "adding-a-model.md", "changelog.md", "license.md")


def navigation() -> list[Any]:
    """The `nav` of the settings."""
    entries: list[dict[str, Any]] = [
        {"Home": "index.md"},
        {"Start": _pages("start", START)},
        {"Notebooks": _pages("notebooks", NOTEBOOKS)},
        {"Guides": [{title: pages} for title, names in GUIDES.items() if (pages := _pages("guides", names))]},
        {"Models": ["families.md", "finder.md", *_models()]},
        {"Techniques": ["techniques.md", *_techniques()]},
        {"Concepts": _pages("concepts", CONCEPTS)},
        {"API": _pages("api", API)},
        {"Survey": list(SURVEY)},
        {"Performance": "performance.md"},
        {"Contributing": list(CONTRIBUTING)},
    ]
    return [entry for entry in entries if list(_leaves(entry))]


def check(found: Iterable[str], entries: Any) -> None:
    """Raise ZooError unless every page stands in the navigation once and every entry has its page."""
    named, found = list(_leaves(entries)), set(found)
    for pages, wrong in (
        (sorted(found - set(named)), "stand nowhere in the navigation; give them a place in docs/site/navigation.py"),
        (sorted(set(named) - found), "stand in the navigation (docs/site/navigation.py), but there is no such page"),
    ):
        if pages:
            raise ZooError(f"{', '.join(pages)} {wrong}")


def page_of(family: str) -> str:
    """The page of a family."""
    return f"models/{family}.md"


def _leaves(entries: Any) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    else:
        for entry in entries.values() if isinstance(entries, dict) else entries:
            yield from _leaves(entry)


def _pages(folder: str, names: Iterable[str]) -> list[str]:
    return [f"{folder}/{name}.md" for name in names if (DOCS / folder / f"{name}.md").exists()]


def _models() -> list[Any]:
    by_pillar: dict[str, list[str]] = {pillar: [] for pillar in registry.PILLARS}
    for family, variants in sorted(registry.families().items()):
        by_pillar[variants[0].pillar].append(page_of(family))
    return [{pillar.capitalize(): pages} for pillar, pages in by_pillar.items() if pages]


def _techniques() -> list[str]:
    declared = dict.fromkeys(technique.page for technique in TECHNIQUES.values())
    others = sorted(page.stem for page in (DOCS / "techniques").glob("*.md") if page.stem not in declared)
    return _pages("techniques", (*declared, *others))
