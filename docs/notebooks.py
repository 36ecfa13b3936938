"""The notebooks of `examples/notebooks`, run and written into `docs/notebooks` with their outputs.

    python -m docs.notebooks                    run all of them and write their pages
    python -m docs.notebooks tour convert       run these
    python -m docs.notebooks --text             take changed text over into the pages; runs nothing
    python -m docs.notebooks --ipynb FOLDER     write them as .ipynb with the outputs of the pages; runs nothing

A notebook is a script in the percent format: ``# %%`` begins a cell of code, ``# %% [markdown]`` a
cell of text, whose lines are comments. A page stores a digest of the code that its outputs came
from, so that a test fails where the script has changed since.
"""

from __future__ import annotations

import argparse
import ast
import base64
import contextlib
import datetime
import hashlib
import io
import json
import linecache
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot

import zoo

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "examples" / "notebooks"
PAGES = ROOT / "docs" / "notebooks"
HEAD = re.compile(r"<!-- notebook: (?P<digest>[0-9a-f]+) -->\n(?P<ran>.*?)\n\n", re.DOTALL)
OUTPUT = re.compile(r"<!-- output -->\n(?P<body>.*?)<!-- end -->\n", re.DOTALL)
IMAGE = re.compile(r"^!\[(?P<label>.*)\]\((?P<file>images/[^)]*)\)$", re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook: its text, whether that is code, and the line of the script on which it
    begins.
    """

    source: str
    code: bool
    line: int


@dataclass(frozen=True)
class Figure:
    """A drawing that a cell left open: the label that stands in for it, and the bytes of a PNG."""

    label: str
    png: bytes


@dataclass(frozen=True)
class Output:
    """What a cell printed, followed by the value of its last expression, and its figures."""

    text: str = ""
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Record:
    """The outputs of the cells of code, in order, with the digest of that code and a line that says
    when and by what they were made.
    """

    digest: str
    ran: str
    outputs: tuple[Output, ...]


# --- scripts ----------------------------------------------------------------------------------------------------------


def names() -> list[str]:
    return sorted(path.stem for path in SCRIPTS.glob("*.py"))


def cells(script: str) -> list[Cell]:
    """The cells of a script; what stands before the first ``# %%`` is left out."""
    found: list[Cell] = []
    lines = script.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("# %%")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        code = "[markdown]" not in lines[start]
        body = lines[start + 1 : end]
        if not code:
            body = [line.removeprefix("#").removeprefix(" ") for line in body]
        text = "\n".join(body).strip("\n")
        if text:
            found.append(Cell(text, code, start + 1 + next(n for n, line in enumerate(body) if line.strip())))
    return found


def digest(notebook: Sequence[Cell]) -> str:
    code = "\n# %%\n".join(cell.source for cell in notebook if cell.code)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


# --- running ----------------------------------------------------------------------------------------------------------


def run(name: str, script: str) -> Record:
    """Run the cells in one namespace, as Jupyter would, in an empty folder of their own."""
    matplotlib.use("Agg")
    notebook = cells(script)
    file = str(SCRIPTS / f"{name}.py")
    linecache.cache[file] = (len(script), None, script.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": file}
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        outputs = tuple(run_cell(cell, file, namespace) for cell in notebook if cell.code)
    return Record(digest(notebook), said(time.process_time() - start), outputs)


def run_cell(cell: Cell, file: str, namespace: dict[str, Any]) -> Output:
    """What a cell prints, the value of a last expression, and the figures that it leaves open."""
    tree = ast.parse(cell.source)
    ast.increment_lineno(tree, cell.line)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, file, "exec", dont_inherit=True), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), file, "eval", dont_inherit=True), namespace)
            if value is not None:
                print(value if isinstance(value, str) else repr(value))
    return Output(printed.getvalue().rstrip("\n"), tuple(figures()))


def figures() -> Iterator[Figure]:
    """The open figures, closed behind the reader."""
    for number in pyplot.get_fignums():
        figure = pyplot.figure(number)
        if not figure.get_label():
            raise ValueError("a figure has no text that can stand in for it; give it one by figure.set_label(...)")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=90, bbox_inches="tight", metadata={"Software": None})
        yield Figure(figure.get_label(), buffer.getvalue())
        pyplot.close(figure)


def said(seconds: float) -> str:
    """The line below the title of a page."""
    threads = torch.get_num_threads()
    return (
        f"Run on {datetime.date.today().isoformat()} in {seconds:.0f} s of processor time, on {threads} "
        f"thread{'s' if threads > 1 else ''}: zoo {zoo.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}."
    )


# --- pages ------------------------------------------------------------------------------------------------------------


def page(name: str, notebook: Sequence[Cell], record: Record) -> str:
    """The page of a notebook. Its figures are linked, not written: `figure_files` says where they
    stand.
    """
    title, _, rest = notebook[0].source.partition("\n")
    head = (
        f"{title}\n\n<!-- notebook: {record.digest} -->\n{record.ran}\n\n"
        f"The script is [examples/notebooks/{name}.py](../../examples/notebooks/{name}.py); "
        f"`python -m docs.notebooks {name} --ipynb FOLDER` writes it for Jupyter.\n"
    )
    parts, outputs, files = [head], iter(record.outputs), iter(figure_files(name, record))
    for cell in (Cell(rest.strip("\n"), False, 0), *notebook[1:]):
        if not cell.code:
            parts.append(f"{cell.source}\n")
            continue
        parts.append(f"```py\n{cell.source}\n```\n")
        output = next(outputs)
        shown = [f"```text\n{output.text}\n```\n"] if output.text else []
        shown += [f"![{figure.label}](images/{next(files)[0]})\n" for figure in output.figures]
        parts.append("<!-- output -->\n" + "\n".join(shown) + "<!-- end -->\n")
    return "\n".join(part for part in parts if part.strip())


def figure_files(name: str, record: Record) -> list[tuple[str, bytes]]:
    """The name and the bytes of each figure, in the order of the page."""
    drawn = [figure.png for output in record.outputs for figure in output.figures]
    return [(f"{name}-{number}.png", png) for number, png in enumerate(drawn, 1)]


def stored(name: str) -> Record:
    """What the page of a notebook holds of its last run."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    head = HEAD.search(text)
    if head is None:
        raise ValueError(f"docs/notebooks/{name}.md names no digest; run python -m docs.notebooks {name}")
    outputs = []
    for match in OUTPUT.finditer(text):
        printed = re.search(r"^```text\n(.*?)\n```$", match["body"], re.DOTALL | re.MULTILINE)
        shown = [
            Figure(image["label"], (PAGES / image["file"]).read_bytes()) for image in IMAGE.finditer(match["body"])
        ]
        outputs.append(Output(printed[1] if printed else "", tuple(shown)))
    return Record(head["digest"], head["ran"], tuple(outputs))


def write(name: str, notebook: Sequence[Cell], record: Record) -> None:
    (PAGES / "images").mkdir(parents=True, exist_ok=True)
    for old in (PAGES / "images").glob(f"{name}-*.png"):
        old.unlink()
    for file, png in figure_files(name, record):
        (PAGES / "images" / file).write_bytes(png)
    (PAGES / f"{name}.md").write_text(page(name, notebook, record), encoding="utf-8")


# --- Jupyter ----------------------------------------------------------------------------------------------------------


def ipynb(notebook: Sequence[Cell], record: Record) -> dict[str, Any]:
    """The notebook in Jupyter's format 4.5."""
    outputs, written = iter(record.outputs), []
    for number, cell in enumerate(notebook, 1):
        entry: dict[str, Any] = {
            "cell_type": "code" if cell.code else "markdown",
            "id": f"cell-{number}",
            "metadata": {},
            "source": cell.source.splitlines(keepends=True),
        }
        if cell.code:
            entry |= {"execution_count": None, "outputs": shown(next(outputs))}
        written.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def shown(output: Output) -> list[dict[str, Any]]:
    text = output.text.splitlines(keepends=True)
    return [
        *([{"output_type": "stream", "name": "stdout", "text": text}] if text else []),
        *(
            {
                "output_type": "display_data",
                "data": {"image/png": base64.b64encode(figure.png).decode(), "text/plain": [figure.label]},
                "metadata": {},
            }
            for figure in output.figures
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names())}; all by default")
    parser.add_argument("--text", action="store_true", help="rewrite the pages from the stored outputs; run nothing")
    parser.add_argument("--ipynb", type=Path, metavar="FOLDER", help="write .ipynb files there; run nothing")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(names())):
        parser.error(f"no notebook is called {', '.join(unknown)}; there are {', '.join(names())}")
    for name in options.names or names():
        script = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")
        notebook = cells(script)
        record = stored(name) if options.text or options.ipynb else run(name, script)
        if record.digest != digest(notebook):
            print(f"the code of {name} has changed since it was run: python -m docs.notebooks {name}", file=sys.stderr)
            return 1
        if options.ipynb:
            options.ipynb.mkdir(parents=True, exist_ok=True)
            content = json.dumps(ipynb(notebook, record), indent=1, ensure_ascii=False) + "\n"
            (options.ipynb / f"{name}.ipynb").write_text(content, encoding="utf-8")
        else:
            write(name, notebook, record)
            print(f"docs/notebooks/{name}.md: {record.ran}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
