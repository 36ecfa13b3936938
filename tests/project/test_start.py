"""The page on installation names what pyproject.toml declares."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs" / "start" / "install.md").read_text(encoding="utf-8")


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement)[0].lower()


def test_every_extra_has_a_row_that_names_what_it_brings():
    rows = {row[1]: row[2].lower() for row in re.finditer(r"^\| `([\w-]+)` \| ([^|]+) \|", PAGE, re.MULTILINE)}
    assert set(rows) == set(PROJECT["optional-dependencies"])
    spelled = {"ray": "ray data", "onnxruntime": "onnx runtime"}
    for extra, row in rows.items():
        if extra not in ("bench", "interop", "test"):  # their rows name the important ones, or another page
            for requirement in PROJECT["optional-dependencies"][extra]:
                name = distribution(requirement)
                assert spelled.get(name, name) in row, f"{extra} brings {name}"


def test_every_dependency_and_the_lowest_python_are_named():
    said = PAGE.lower().replace("pytorch", "torch")
    for requirement in PROJECT["dependencies"]:
        assert distribution(requirement) in said
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')}" in PAGE
