"""Prepare the pages of the site in build/pages, and the settings with the navigation beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from docs import beside
from docs.site import navigation, sources
from docs.site.finder import fill as fill_finder
from docs.site.reference import files
from docs.site.reference import fill as fill_reference

BUILD = sources.ROOT / "build"
OWN = ("site.css", "site.js", "source.css", "finder.js", "iframe-worker.js")  # what pages load, from docs/site
WIDE, ROOMY = "---\nhide: [toc]\n---\n", ("finder.md",)  # a table that needs the room of the list of headings
SHOWN = (".svg", ".png", ".jpg", ".csv")  # what pages show or link to


def prepare(build: Path = BUILD) -> None:
    """Write the pages, what they show, the sources that they name, and the settings."""
    docs, pages, links = sources.ROOT / "docs", build / "pages", sources.Links()
    shutil.rmtree(pages, ignore_errors=True)
    texts = {page.relative_to(docs).as_posix(): page.read_text(encoding="utf-8") for page in docs.rglob("*.md")}
    texts |= {page: sources.adopted(name) for name, page in sources.ADOPTED.items()}
    nav = navigation.navigation()
    navigation.check(texts, nav)

    def write(name: str, text: str) -> None:
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        (pages / name).write_text(text, encoding="utf-8")

    for page, text in texts.items():
        text = fill_finder(fill_reference(links.relink(text, page)))
        write(
            page,
            (WIDE if page in ROOMY else "")
            + beside.expand(text, lambda path, first, _, page=page: sources.relative(links.source(path, first), page)),
        )
    for path in (path for path in docs.rglob("*") if path.suffix in SHOWN):
        name = pages / path.relative_to(docs)
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, name)
    for path in sorted(links.sources | files()):
        write(f"source/{path}.html", sources.render(path))
    for name in OWN:
        write(f"site/{name}", (Path(__file__).parent / name).read_text(encoding="utf-8"))
    settings = (Path(__file__).parent / "mkdocs.yml").read_text(encoding="utf-8")
    (build / "mkdocs.yml").write_text(f"{settings}nav: {json.dumps(nav, indent=1)}\n", encoding="utf-8")
