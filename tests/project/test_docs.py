"""What the pages say is so: every Python snippet runs, every generated table is current, every link
inside the repository leads somewhere.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from docs import generate
from zoo.cli.app import app
from zoo.errors import FetchError

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SNIPPETS = [
    (page.relative_to(ROOT), n, code)
    for page in PAGES
    for n, code in enumerate(SNIPPET.findall(page.read_text(encoding="utf-8")))
]
PROSE = [  # pages and code; the changelog names what is no more
    *(page for page in PAGES if page.name != "CHANGELOG.md"),
    *(path for room in ("zoo", "tests", "benchmarks", "examples", "docs") for path in (ROOT / room).rglob("*.py")),
    *(path for room in ("zoo", "weights") for path in (ROOT / room).rglob("*.toml")),
]
NAME = re.compile(r"`(zoo(?:\.[A-Za-z_]\w*)+)(?![\w.]*\*)")
FILE = re.compile(r"\b(?:zoo|tests|benchmarks|examples|docs|weights)/[\w./-]+\.(?:py|toml|md)\b")
NO_NAMES = {  # keys of a file's metadata
    *("zoo.adapter", "zoo.description", "zoo.files", "zoo.generation", "zoo.sparse")
}
ILLUSTRATIONS = (
    "my_package",
    "run.through(self.encoder, causal())",
)  # what shows a place in a file, or a package that nobody has


@pytest.mark.parametrize(("page", "number", "code"), SNIPPETS, ids=[f"{page}:{n}" for page, n, _ in SNIPPETS])
def test_every_snippet_runs(page, number, code, tmp_path, monkeypatch):
    if any(word in code for word in ILLUSTRATIONS):
        pytest.skip("shows a place in a file, not a program")
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(code, f"{page}, snippet {number}", "exec", dont_inherit=True), {"__name__": "snippet"})
    except FetchError as error:
        pytest.skip(f"its weights can't be had here: {error}")


def test_every_generated_table_is_current():
    stale = [page.name for page in generate.pages() if generate.render(page) != page.read_text(encoding="utf-8")]
    assert not stale, f"run python -m docs.generate: {stale}"


def test_every_registered_family_has_a_page():
    from zoo.registry import variants as registry

    pages = {page.stem.replace("_", "-") for page in generate.PAGES.glob("*.md")}
    assert set(registry.families()) <= pages


def test_every_link_inside_the_repository_leads_somewhere():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def examples(page: Path) -> list[list[str]]:
    """The commands `zoo ...` of a page's shell blocks, in words; lines that end in a backslash go on."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(re.split(r" [<>|&] ", line)[0], comments=True)[1:] for line in lines if line.startswith("zoo ")]


def parsed(words: list[str]) -> tuple[str, ...]:
    """The command that the words call; an error where it has no such option or argument."""
    command, called = typer.main.get_command(app), []
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {' '.join([*called, words[0]])}"
        called.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    given, left, _ = command.make_parser(command.context_class(command)).parse_args(list(words))
    assert not left, f"{' '.join(called)} takes no {left}"
    missing = [each.name for each in command.params if each.required and given.get(each.name) in (None, ())]
    assert not missing, f"{' '.join(called)} needs {missing}"
    return tuple(called)


def test_every_command_of_the_pages_is_one_that_zoo_takes():
    found = [(page, words) for page in PAGES if page.name != "CHANGELOG.md" for words in examples(page)]
    assert len(found) > 60
    for page, words in found:
        try:
            parsed(words)
        except Exception as error:
            pytest.fail(f"{page.relative_to(ROOT)}: zoo {shlex.join(words)}: {error}")
    with pytest.raises(Exception, match="--pilar"):
        parsed(["list", "--pilar", "lightweight"])


def test_the_page_on_the_command_line_has_an_example_of_each_command():
    def commands(group: Any, *above: str) -> list[tuple[str, ...]]:
        return [
            path
            for name, command in group.commands.items()
            for path in (commands(command, *above, name) if hasattr(command, "commands") else [(*above, name)])
        ]

    page = ROOT / "docs" / "guides" / "command-line.md"
    assert set(commands(typer.main.get_command(app))) == {parsed(words) for words in examples(page)}


def test_every_command_of_the_page_on_prediction_runs(tmp_path, monkeypatch, capsys):
    from zoo.cli.app import main

    text = (ROOT / "docs" / "guides" / "prediction.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(SNIPPET.findall(text)[0], {"__name__": "snippet"})
    (tmp_path / "texts.txt").write_text("a dog\na cat\n", encoding="utf-8")
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\na dog\ta cat\n", encoding="utf-8")
    (tmp_path / "words.jsonl").write_text('{"words": ["a", "dog"]}\n', encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text('{"question": "where ?", "context": "on the mat"}\n', encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    commands = re.findall(r"^zoo (.*)$", "".join(blocks), re.MULTILINE)
    assert len(commands) == 12
    for command in commands:
        line, _, stdin = command.partition(" < ")
        if stdin:
            monkeypatch.setattr(sys, "stdin", (tmp_path / stdin).open(encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["zoo", *shlex.split(line)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        assert (stopped.value.code or 0, err) == (0, ""), command
        assert out
    written = {path.name for path in tmp_path.glob("*.*")}
    assert written >= {"vectors.npy", "vectors.jsonl", "labelled.csv", "labelled.jsonl", "tagged.jsonl", "answers.csv"}


def test_every_name_of_zoo_in_pages_and_docstrings_is_there():
    said = {(name, path) for path in PROSE for name in NAME.findall(path.read_text(encoding="utf-8"))}
    assert len(said) > 150
    lost = sorted(
        f"{path.relative_to(ROOT)}: {name}" for name, path in said if name not in NO_NAMES and not resolves(name)
    )
    assert not lost, "\n".join(lost)


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute or annotated field of what it leads to."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            if not hasattr(value, part):
                return part in getattr(value, "__annotations__", {})
            value = getattr(value, part)
        return True
    return False


def test_every_file_that_pages_and_docstrings_name_is_there():
    lost = sorted(
        f"{path.relative_to(ROOT)}: {name}"
        for path in PROSE
        for name in set(FILE.findall(path.read_text(encoding="utf-8")))
        if not (ROOT / name).exists()
    )
    assert not lost, "\n".join(lost)
