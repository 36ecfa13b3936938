"""Check the built pages: every local link and anchor leads somewhere, no id stands twice, every
picture has a text alternative, and no page loads anything from elsewhere.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "object": "data"}
NOT_LOADED = {"canonical", "alternate", "edit", "prev", "next"}  # what a <link> may only name


class Page(HTMLParser):
    """The ids of a page, its links with their lines, and what is wrong with it alone."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[int, str]] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        line = self.getpos()[0]
        if name := given.get("id"):
            if name in self.ids:
                self.wrong.append(f"line {line}: the id {name!r} stands twice")
            self.ids.add(name)
        if tag == "a" and (href := given.get("href")):
            self.links.append((line, href))
        if tag == "img" and not (given.get("alt") or "").strip() and given.get("aria-hidden") != "true":
            self.wrong.append(f"line {line}: the picture {given.get('src')} has no text alternative")
        target = given.get(LOADED.get(tag, ""))
        if target is None or NOT_LOADED & set((given.get("rel") or "").split()):
            return
        if urlsplit(target).scheme in ("http", "https") or target.startswith("//"):
            self.wrong.append(f"line {line}: loads {target}; the site must do without a network")
        else:
            self.links.append((line, target))


def problems(site: Path) -> list[str]:
    """What is wrong, a line for each, in the order of the pages."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = [f"{path.relative_to(site)}, {wrong}" for path, page in pages.items() for wrong in page.wrong]
    for path, page in pages.items():
        if path.name == "404.html":  # served for any address, so its links are from the root
            continue
        for line, target in page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(parts.fragment)
            if not there.exists():
                found.append(f"{path.relative_to(site)}, line {line}: {target} leads nowhere")
            elif anchor and there in pages and anchor not in pages[there].ids and not _for_script(path, anchor):
                found.append(f"{path.relative_to(site)}, line {line}: {target} names a place that is not there")
    return found


def _for_script(path: Path, anchor: str) -> bool:
    """Whether a script reads the anchor: the finder's choice, or the top of the page."""
    return "=" in anchor or anchor == "__top"
