"""Links of the pages to what lies outside docs/: a source file becomes a page of its own, with
highlighted lines that links can name, and the root's own pages (CONTRIBUTING, CHANGELOG, LICENSE)
become pages of the site.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from zoo.errors import ZooError

ROOT = Path(__file__).parents[2]
ADOPTED = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "LICENSE": "license.md"}
FOLDERS = {"README.md": "index.md", "docs/models": "families.md", "docs/techniques": "techniques.md"}
FENCE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*?$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(\]\(|^\[[^\]]+\]:[ ]*)(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?", re.MULTILINE)
LINES = re.compile(r"#L(\d+)(?:-L?\d+)?$")


def relative(target: str, page: str) -> str:
    """A path of the site as a link from a page of it."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def adopted(name: str) -> str:
    """The text of a file of the root as a page."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text if name.endswith(".md") else f"# License\n\n```text\n{text}```\n"


class Links:
    """The links of pages, which name files as they lie in the repository, as they lie in the site.
    ``sources``: the files that they name and that need a page.
    """

    def __init__(self) -> None:
        self.sources: set[str] = set()

    def relink(self, markdown: str, page: str) -> str:
        """A page of the site with its links led to pages of the site; those inside docs/ stay."""
        home = next((name for name, other in ADOPTED.items() if other == page), f"docs/{page}")

        def link(match: re.Match[str]) -> str:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(home), match[2]))
            found = self.in_site(target, match[3] or "")
            return match[0] if found is None else match[1] + relative(found, page)

        kept, done = [], 0
        for fence in FENCE.finditer(markdown):  # what is shown as code holds no links
            kept += [LINK.sub(link, markdown[done : fence.start()]), fence[0]]
            done = fence.end()
        return "".join([*kept, LINK.sub(link, markdown[done:])])

    def in_site(self, target: str, anchor: str = "") -> str | None:
        """Where a path of the repository lies in the site, with its anchor; None where there is no
        such thing, and then the link is found dead.
        """
        if target in ADOPTED:
            return ADOPTED[target] + anchor
        if target in FOLDERS:
            return FOLDERS[target]
        path = ROOT / target
        if target.startswith("docs/") and path.suffix != ".py":
            return target.removeprefix("docs/") + anchor
        if not path.is_file():
            return None
        line = LINES.match(anchor)
        return self.source(target, int(line[1]) if line else None)

    def from_page(self, page: str) -> Callable[[str, int, int], str]:
        """From lines of a source to their address on a page."""
        return lambda path, first, last: relative(self.source(path, first), page)

    def source(self, path: str, line: int | None = None) -> str:
        """Where the page of a source file lies in the site, and the line on it."""
        self.sources.add(path)
        return f"source/{path}.html" + (f"#line-{line}" if line else "")


def render(path: str) -> str:
    """The page of a source file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    try:
        lexer = get_lexer_for_filename(path)
    except ClassNotFound as error:
        raise ZooError(f"a page links to {path}, which can't be shown as source; link to a text file") from error
    lines = HtmlFormatter(linespans="line", linenos="inline", cssclass="highlight", wrapcode=True)
    root = relative(".", f"source/{path}")
    return PAGE.format(path=html.escape(path), root=root, code=highlight(text, lexer, lines))


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{path} - zoo</title>
<link rel="stylesheet" href="{root}/site/source.css">
<script>
try {{
  const key = new URL("{root}/", location).pathname + ".__palette"
  const palette = JSON.parse(localStorage.getItem(key) || "null")
  const follows = !palette || palette.color.media === "(prefers-color-scheme)"
  if (!follows) document.documentElement.dataset.scheme = palette.color.scheme
}} catch (error) {{}}
</script>
</head>
<body>
<header><a href="{root}/index.html">zoo</a> <h1>{path}</h1></header>
<main>
{code}
</main>
</body>
</html>
"""
