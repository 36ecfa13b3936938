"""The paper beside the code: each equation of a page with the lines of the source that compute it.

A page names the lines right after a fence of LaTeX::

    ```math
    h_0 = W\\,\\mathrm{LN}(T_t + S_s + P_p) + b
    ```
    <!-- code: zoo/models/albert.py#embeddings -->

and the source marks them by a trailing comment, ``# eq: embeddings``, on the first line of a statement or
of a ``def``. Several places are separated by commas, on a page and in a marker. A name may mark several
statements of its file, which are shown in order. Markers and docstrings are not shown.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

from zoo.errors import ZooError

ROOT = Path(__file__).parents[1]
NAME = r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*"
MARKER = re.compile(rf"\s*#\s*eq:\s*({NAME}(?:\s*,\s*{NAME})*)\s*$")
MARKED = re.compile(r"#\s*eq:")
PLACE = re.compile(rf"(zoo/[\w./-]+\.py)#({NAME})")
CODE = re.compile(r"\s*<!--\s*code:(.*?)-->\s*$")
FENCE = re.compile(r"( {0,3})(`{3,}|~{3,})\s*(\S*)")
Link = Callable[[str, int, int], str]
"""From a file and its first and last line to an address."""


class BesideError(ZooError, ValueError):
    """A page or a source breaks the rules of this module."""


@dataclass(frozen=True)
class Piece:
    """Lines of a source that follow each other, without their common indentation."""

    first: int
    last: int
    text: str
    after_gap: bool = False  # something between it and the piece before is not shown


@dataclass(frozen=True)
class Equation:
    """A fence of LaTeX on a page: its lines ``first`` to ``last``, counted from 0 with the ``code`` comment, and the
    places that the comment names.
    """

    latex: str
    first: int
    last: int
    places: tuple[tuple[str, str], ...]


def expand(markdown: str, link: Link | None = None) -> str:
    """The page with the source lines beside each equation that names some.

    The result is Markdown for `md_in_html` and `pymdownx`: a div ``beside`` with the divs ``beside-math``, which holds
    the fence as it was, and ``beside-code``. ``link``: the address of lines of a file; none without it.
    """
    lines = markdown.split("\n")
    for equation in reversed(equations(markdown)):
        if equation.places:
            fence = lines[equation.first : equation.last]
            lines[equation.first : equation.last + 1] = _beside(fence, equation.places, link)
    return "\n".join(lines)


def equations(markdown: str) -> list[Equation]:
    """The ``math`` fences of a page, in order; what stands in other fences is none of them."""
    lines, found = markdown.split("\n"), []
    fences = list(_fences(lines))
    inside = {at for first, last, _ in fences for at in range(first, last + 1)}
    claimed = set()
    for first, last, kind in fences:
        if kind != "math":
            continue
        comment = CODE.match(lines[last + 1]) if last + 1 < len(lines) else None
        end = last + 1 if comment else last
        claimed.add(end)
        latex = "\n".join(lines[first + 1 : last])
        found.append(Equation(latex, first, end, _places(comment[1]) if comment else ()))
    for at, line in enumerate(lines):
        if at not in inside and at not in claimed and CODE.match(line):
            raise BesideError(f"line {at + 1}, {line.strip()!r}, must stand directly below a ```math fence")
    return found


def pieces(path: str, name: str) -> list[Piece]:
    """The lines of a file of the repository that carry the name."""
    marked = markers(path)
    if name not in marked:
        raise BesideError(f"{path} has no `# eq: {name}`; it has {', '.join(sorted(marked)) or 'no marker'}")
    source = _read(path)
    return list(_pieces(source, [_statements(source)[line] for line in marked[name]]))


def markers(path: str) -> dict[str, list[int]]:
    """The names that a file marks, each with the first lines of its statements."""
    source = _read(path)
    if not MARKED.search(source):
        return {}
    statements, found = _statements(source), dict[str, list[int]]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or not MARKED.search(token.string):
            continue
        line, match = token.start[0], MARKER.search(token.string)
        if match is None:
            raise BesideError(
                f"{path}, line {line}: {token.string!r} must end in `# eq: name`, lower-case words with hyphens, "
                "several of them separated by commas"
            )
        if line not in statements:
            raise BesideError(f"{path}, line {line}: a marker stands on the first line of a statement or of a def")
        for name in re.split(r"\s*,\s*", match[1]):
            found.setdefault(name, []).append(line)
    return found


def _fences(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """First and last line of each fence, and what kind it is."""
    at = 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        if opened is None:
            at += 1
            continue
        closing = re.compile(rf" {{0,3}}{re.escape(opened[2][0])}{{{len(opened[2])},}}\s*$")
        last = next((n for n in range(at + 1, len(lines)) if closing.match(lines[n])), len(lines) - 1)
        yield at, last, opened[3]
        at = last + 1


def _places(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for place in text.split(","):
        match = PLACE.fullmatch(place.strip())
        if match is None:
            raise BesideError(f"{place.strip()!r} must be a file of zoo/ and a name: zoo/models/albert.py#embeddings")
        found.append((match[1], match[2]))
    return tuple(found)


def _beside(fence: list[str], places: tuple[tuple[str, str], ...], link: Link | None) -> list[str]:
    code: list[str] = []
    for path, name in places:
        shown = pieces(path, name)
        first, last = shown[0].first, shown[-1].last
        where = f"{path}, line {first}" if first == last else f"{path}, lines {first}–{last}"
        if link is not None:
            where = f'<a href="{escape(link(path, first, last))}">{where}</a>'
        code += [f'<p class="beside-where">{where}</p>', ""]
        for piece in shown:
            if piece.after_gap:
                code += ['<p class="beside-gap">...</p>', ""]
            code += [f'```python linenums="{piece.first}"', *piece.text.split("\n"), "```", ""]
    return [
        '<div class="beside" markdown>',
        '<div class="beside-math" markdown>',
        "",
        *fence,
        "",
        "</div>",
        '<div class="beside-code" markdown>',
        "",
        *code,
        "</div>",
        "</div>",
    ]


def _read(path: str) -> str:
    file = ROOT / path
    if not file.is_file():
        raise BesideError(f"there is no file {path}")
    return file.read_text(encoding="utf-8")


@lru_cache(maxsize=64)
def _statements(source: str) -> dict[int, ast.stmt]:
    """The outermost statement that begins on each line; a decorated one begins at its ``def``."""
    found: dict[int, ast.stmt] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            found.setdefault(node.lineno, node)
    return found


def _pieces(source: str, shown: list[ast.stmt]) -> Iterator[Piece]:
    lines = source.split("\n")
    runs: list[tuple[int, int, int, bool]] = []  # first and last line, indentation, whether a gap is before
    end = 0  # of the statement before
    for node in shown:
        first, last = _span(node)
        if last <= end:
            continue  # inside of a statement that is shown already
        indent, gap = node.col_offset, end > 0 and any(line.strip() for line in lines[end : first - 1])
        for run in _without_docstrings(node, first, last):
            begin = next(number for number in run if lines[number - 1].strip())
            if runs and not gap and begin == first and runs[-1][2] == indent:
                runs[-1] = (runs[-1][0], run[-1], indent, runs[-1][3])
            else:
                runs.append((begin, run[-1], indent, gap or (begin == first and bool(runs))))
            gap = False
        end = last
    for begin, last, indent, gap in runs:
        text = [MARKER.sub("", line[indent:]) for line in lines[begin - 1 : last]]
        yield Piece(begin, last, "\n".join(text), after_gap=gap)


def _span(node: ast.stmt) -> tuple[int, int]:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(one.lineno for one in decorators)]), node.end_lineno or node.lineno


def _without_docstrings(node: ast.stmt, first: int, last: int) -> Iterator[range]:
    """The lines of a statement in runs, split where a docstring was."""
    for inner in sorted(
        (n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)),
        key=lambda n: n.lineno,
    ):
        if ast.get_docstring(inner, clean=False) is not None and len(inner.body) > 1:
            begin, end = _span(inner.body[0])
            yield range(first, begin)
            first = end + 1
    yield range(first, last + 1)
