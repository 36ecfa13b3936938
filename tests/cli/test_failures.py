"""Every command in failure: one line on stderr, with ``--json`` JSON on stdout, the same exit code."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import zoo
from tests.cli.test_cli import zoo_command as zoo_command
from zoo.cli.app import app, main
from zoo.cli.shared import print_json


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


ALL = dict(commands(typer.main.get_command(app)))


def arguments_of(command: Any, value: str) -> list[str]:
    """What the command must be given, each as ``value``."""
    needed = [part for part in command.params if part.required]
    return [
        text for part in needed for text in ([value] if part.param_type_name == "argument" else [part.opts[0], value])
    ]


def test_every_command_prints_json():
    assert len(ALL) >= 20
    assert [
        " ".join(path) for path, command in ALL.items() if "--json" not in [o for p in command.params for o in p.opts]
    ] == []


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_command_that_is_called_wrongly_says_so_in_json(zoo_command, path):
    for wrong in (["--no-such-option"], ["a", "b", "c", "d", "e"]):
        if path[-1] == "embed" and "e" in wrong:  # takes any number of texts
            continue
        plain, _, said = zoo_command(*path, *wrong)
        code, out, err = zoo_command(*path, *wrong, "--json")
        assert code == plain
        assert code in (1, 2)
        assert isinstance(json.loads(out)["error"], str)
        assert json.loads(out)["error"] in err
        assert said


@pytest.mark.parametrize(
    "value", ["no-such-model", "/proc/no-such-place/x", "nothing.npz", "", ".", "a\x00b", "é" * 300]
)
@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_command_that_fails_says_so_in_json_with_the_same_exit_code(zoo_command, tmp_path, monkeypatch, path, value):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    needed = arguments_of(ALL[path], value)
    if not needed and path != ("list",):
        return
    call = [*path, *(needed or ["--pillar", value])]
    plain, _, said = zoo_command(*call)
    code, out, err = zoo_command(*call, "--json")
    assert code == plain
    if code:
        assert json.loads(out)["error"]
        assert said
        assert "Traceback" not in err + said
    else:
        json.loads(out)


def test_json_has_no_nan(capsys):
    print_json({"a": float("nan"), "b": [1.5, (float("inf"), {"c": -float("inf")})], "d": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, [None, {"c": None}]], "d": "x"}


def test_an_error_that_nobody_foresaw_is_json_with_its_traceback_on_stderr(zoo_command, monkeypatch, capsys):
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(zoo, "verify", fails)
    code, out, err = zoo_command("verify", "x", "--json")
    assert (code, json.loads(out)) == (1, {"error": "RuntimeError: nobody foresaw this"})
    assert "Traceback" in err
    monkeypatch.setattr(sys, "argv", ["zoo", "verify", "x"])
    with pytest.raises(RuntimeError, match="nobody foresaw"):
        main()


def test_warnings_of_the_zoo_are_lines_on_stderr(zoo_command, monkeypatch):
    def warns(*_: Any, **__: Any) -> list[str]:
        from zoo.errors import warn

        warn("heads start at random")
        warn("heads start at random")
        return []

    monkeypatch.setattr(zoo, "list_models", warns)
    before = warnings.showwarning
    code, out, err = zoo_command("list", "--json")
    assert (code, out, err) == (0, "[]\n", "zoo: warning: heads start at random\n" * 2)
    assert warnings.showwarning is before
