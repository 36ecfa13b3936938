"""Docstrings for the site, an extension of griffe: where one explains arguments in a running text,
``layout: ... config: ...``, each gets a line of its own; ``-> the folder`` says what is returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import griffe

RETURNS = re.compile(r"(^|[.:])\s*-> ", re.MULTILINE)
SENTENCE = r"(?:^|(?<=[.;)] ))"


class Arguments(griffe.Extension):
    """Rewrites the docstrings of functions and classes as they are read."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if func.docstring:
            func.docstring.value = listed(func.docstring.value, (parameter.name for parameter in func.parameters))

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.docstring:
            made = cls.members.get("__init__")
            names = [parameter.name for parameter in made.parameters] if isinstance(made, griffe.Function) else []
            cls.docstring.value = listed(cls.docstring.value, [*names, *cls.members])


def listed(text: str, names: Iterable[str]) -> str:
    """The docstring with the arguments of these names as a list of Markdown."""
    known = "|".join(re.escape(name) for name in names if name != "self") or "(?!)"
    each = rf"(?:``)?(?:{known})(?:``)?(?: \([^()]*\))?"
    explained = re.compile(rf"{SENTENCE}({each}(?:(?:, | and ){each})*): ")
    paragraphs = []
    for paragraph in RETURNS.sub(r"\1\n\nReturns ", text).strip().split("\n\n"):
        if not paragraph.startswith(" ") and "\n " not in paragraph:
            paragraph = " ".join(paragraph.split("\n"))
            before, *rest = explained.split(paragraph)
            items = [
                f"- {_code(name)}: {said.strip().rstrip(';')}" for name, said in zip(rest[::2], rest[1::2], strict=True)
            ]
            paragraph = "\n\n".join(filter(None, (before.strip(), "\n".join(items))))
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _code(names: str) -> str:
    """Names as code, what stands in parentheses behind them as it is."""
    return re.sub(r"(?:``)?\b(\w+)\b(?:``)?(?![^(]*\))", r"`\1`", names.replace(" and ", ", "))
