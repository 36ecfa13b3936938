"""The drawings of the docs: SVG made from the code and from the models that run.

`python -m docs.generate` writes them into `docs/images/`; a test holds them current. All are drawn
on `canvas.Canvas`, so they share one style: a white card that reads on a light and on a dark page,
360 units wide so that the text is readable on a phone.
"""

from __future__ import annotations

import importlib

MODULES = (
    "families",
    "schedules",
    "places",
    "patterns",
    "packing",
    "conversion",
    "distillation",
    "visible_matrix",
    "boxes",
    "tree",
    "measured",
    "speed",
)
"""What draws; each has a function `drawings` from which the files' names and their texts come."""


def drawings() -> dict[str, str]:
    """Every drawing by its file's name."""
    found: dict[str, str] = {}
    for name in MODULES:
        found |= importlib.import_module(f"docs.drawings.{name}").drawings()
    return found
