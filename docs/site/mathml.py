"""Equations of the pages: LaTeX in ```math fences and between dollars becomes MathML, which browsers
draw by themselves. The LaTeX stays inside as an annotation, so that it can be copied.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

from zoo.errors import ZooError

INLINE = r"(?<![\\$\w])\$(?![\s$])([^$\n]*[^$\s\\])\$(?![\w$])"
TAG = re.compile(r"<math\b[^>]*>(.*)</math>", re.DOTALL)
UNKNOWN = re.compile(r"\\[A-Za-z]+")
WORD = re.compile(r'(?:<mi mathvariant="normal">[^<]</mi>){2,}')
LETTER = re.compile(r">([^<])<")
ROWS = {  # what latex2mathml does not know, by what it does
    r"\begin{aligned}": r"\begin{split}",
    r"\end{aligned}": r"\end{split}",
}


def mathml(latex: str, *, display: bool) -> str:
    """The equation as a MathML element that carries its LaTeX."""
    latex = latex.strip()
    known = latex
    for theirs, ours in ROWS.items():
        known = known.replace(theirs, ours)
    if r"\\" in known and r"\begin" not in known:
        known = rf"\begin{{array}}{{l}} {known} \end{{array}}"
    kind = "block" if display else "inline"
    found = TAG.search(convert(known, display=kind))
    if found is None or UNKNOWN.search(found[1]) or "&<" in found[1] or "newline" in found[1]:
        wrong = UNKNOWN.search(found[1]) if found else None
        raise ZooError(
            f"latex2mathml can't typeset {wrong[0] if wrong else 'a part'} of {latex!r}; use \\mathrm, \\operatorname, "
            "aligned, cases, or another command that it has"
        )
    return (
        f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="{kind}"><semantics><mrow>'
        f"{WORD.sub(_one_word, found[1])}</mrow>"
        f'<annotation encoding="application/x-tex">{html.escape(latex)}</annotation></semantics></math>'
    )


def _one_word(letters: re.Match[str]) -> str:
    """The letters of ``\\mathrm{word}`` as one identifier, which is upright by itself."""
    return f"<mi>{''.join(LETTER.findall(letters[0]))}</mi>"


def fence(source: str, language: str, class_name: str, options: Any, md: Any, **_: Any) -> str:
    """A ```math fence, as pymdownx.superfences calls its formatters."""
    return f'<div class="equation" tabindex="0" role="group" aria-label="equation">{mathml(source, display=True)}</div>'


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(mathml(m[1], display=False)), m.start(0), m.end(0)


class InlineMath(Extension):
    """Inline equations between dollars. Code is matched before them, other inline marks after."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(_Inline(INLINE, md), "inline-math", 185)


def makeExtension(**options: Any) -> InlineMath:
    """What Python-Markdown calls to load the extension by the name of this module."""
    return InlineMath(**options)
