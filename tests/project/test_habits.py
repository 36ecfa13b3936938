"""The pages that say how the project is worked on are true: hooks check what CI checks, and the
rooms are listed in the order that the contracts hold.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAYERS = next(
    contract["layers"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    if contract["type"] == "layers"
)


def recipe(target: str) -> list[str]:
    """The commands of a Makefile target that run a tool of the environment, without their options."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lines is not None, target
    return [words(line.strip().removeprefix("$(BIN)/")) for line in lines[1].splitlines()]


def words(command: str) -> str:
    return " ".join(word for word in command.split() if not word.startswith("-") and word != ".")


def test_a_commit_is_checked_by_what_ci_runs_before_the_tests():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    ran = [words(hook["entry"].removeprefix(".venv/bin/")) for hook in hooks]
    assert sorted(ran) == sorted(recipe("lint") + recipe("types"))
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)$", ci, re.MULTILINE) == ["lint", "types", "test"]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_a_page_lists_the_rooms_in_the_order_of_the_contract(page):
    table = re.search(r"^\| room \|.*\n(?:\|.*\n)+", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert table is not None
    listed = re.findall(r"^\| `([a-z]+)(?:\.py|/)?` \|", table[0], re.MULTILINE)
    wanted = [room.strip() for line in reversed(LAYERS) for room in line.split("|")]
    assert listed == wanted
