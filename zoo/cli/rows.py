"""What the commands that predict share: where rows come from, and where their results go."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.data.lines import numbered_lines
from zoo.data.tables import Columns, find_columns, format_of, read_rows
from zoo.errors import InputError, unknown

Texts = Annotated[
    list[str],
    typer.Argument(
        help="Texts; or files of rows (.txt, .csv, .tsv, .jsonl, .parquet); or - for lines of standard input."
    ),
]
ModelName = Annotated[str, typer.Option("--model", "-m", help="A pretrained name, a file or a folder.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="Write the rows with their results here, by the name: .jsonl, .csv, .tsv, .parquet."
    ),
]
Column = Annotated[
    str | None, typer.Option(help="The column that holds the text; found by its name if you leave it out.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts that the model reads at once.")]
Dtype = Annotated[str, typer.Option(help="In which the model computes: float32, bfloat16 or int8.")]

Engine = Annotated[str, typer.Option(help="Where the model runs: local, or ray, on a cluster of Ray (extra ray).")]
Address = Annotated[str | None, typer.Option(help="The Ray cluster's address; without it one is started here.")]

STDIN = "-"
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class RowSource:
    """Rows to predict on. ``spoken``: the texts stand in the command itself. ``total``: how many rows
    there are, where that is known.
    """

    rows: Iterator[Mapping[str, Any]]
    spoken: bool
    total: int | None = None
    header: Sequence[str] = ()

    @classmethod
    def of(cls, texts: Sequence[str]) -> RowSource:
        """What a command's arguments name: texts, files or standard input."""
        files = [text for text in texts if text == STDIN or Path(text).is_file()]
        if not files:
            words = "if these very words are meant, give them on standard input (-)"
            if lost := [text for text in texts if format_of(text) and not any(c.isspace() for c in text)]:
                raise InputError(f"there is no file {lost[0]!r}; {words}")
            if folders := [text for text in texts if "/" in text and Path(text).is_dir()]:
                raise InputError(f"{folders[0]} is a folder without pictures; give files of rows, or texts; {words}")
            return cls(({"text": text} for text in texts), True, len(texts), ("text",))
        if len(files) < len(texts):
            other = next(text for text in texts if text not in files)
            raise InputError(f"{files[0]!r} is a file and {other!r} is none; give files, or texts")
        rows = chain.from_iterable(rows_of(name) for name in files)
        first = next(rows, None)
        if first is None:
            what = "standard input" if files == [STDIN] else ", ".join(files)
            raise InputError(f"{what} holds no rows; give a text on each line")
        counts = [rows_in(name) for name in files]
        total = None if None in counts else sum(count for count in counts if count is not None)
        return cls(chain([first], rows), False, total, tuple(first))


def rows_of(name: str) -> Iterator[Mapping[str, Any]]:
    """The rows of one file; each line of a text file is one, also an empty one."""
    if name == STDIN:
        return ({"text": line} for line in stdin_lines())
    if format_of(name) == "txt":
        return ({"text": line} for _, line in numbered_lines(name))
    return read_rows(name)


def stdin_lines() -> Iterator[str]:
    """The lines of standard input as those of a text file are read, each as soon as it is there."""
    binary = getattr(sys.stdin, "buffer", None)
    lines: Iterable[str] = sys.stdin if binary is None else io.TextIOWrapper(binary, encoding="utf-8-sig")
    try:
        for line in lines:
            yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input can't be read as UTF-8 text: {error}") from error


def rows_in(name: str) -> int | None:
    """How many rows a file has, where that is quickly told."""
    if name == STDIN or name.endswith(".gz"):
        return None
    kind = format_of(name)
    if kind == "parquet":
        import pyarrow.parquet

        return int(pyarrow.parquet.ParquetFile(name).metadata.num_rows)
    if kind not in ("txt", "jsonl", "tsv"):
        return None
    with open(name, "rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return lines - (kind == "tsv")


@dataclass(frozen=True)
class Reader:
    """From a row of a table to what a pipeline reads: the cells of its columns, and what is the same
    for every row.
    """

    columns: Columns
    pipeline: Any
    fixed: Mapping[str, Any] = field(default_factory=dict)
    count: list[int] = field(default_factory=lambda: [0])

    @classmethod
    def of(cls, pipeline: Any, header: Sequence[str], named: Mapping[str, str | None], **fixed: Any) -> Reader:
        """Find the columns that the pipeline needs. ``named``: those that the user named, by their
        meaning; ``fixed``: meanings that need no column.
        """
        said = {meaning: column for meaning, column in named.items() if column is not None}
        fixed = {meaning: value for meaning, value in fixed.items() if value is not None}
        needed = [meaning for meaning in pipeline.meanings if meaning not in fixed]
        other = [meaning for meaning in pipeline.more_meanings if not said or meaning in said]
        return cls(find_columns(header, needed, other, said), pipeline, fixed)

    def __call__(self, row: Mapping[str, Any]) -> Any:
        self.count[0] += 1
        try:
            cells = {meaning: self.columns.of(row, meaning) for meaning in self.columns.names}
            made = self.pipeline.row_of({**cells, **self.fixed})
        except InputError as error:
            raise InputError(f"row {self.count[0]}: {error}") from error
        if not self.pipeline.is_row(made):
            raise InputError(f"row {self.count[0]} must hold {self.pipeline.row}, got {made!r:.80}")
        return made


@dataclass(frozen=True)
class Making:
    """How a command's pipeline is made, here or in another process: the options of `zoo.pipeline`, and
    the engine that it runs on.
    """

    task: str
    model: str
    options: Mapping[str, Any]
    engine: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        if self.address is not None and self.engine == "local":
            raise InputError("--address is for --engine ray")

    def __call__(self) -> Any:
        """The pipeline."""
        return zoo.pipeline(self.task, self.model, **self.options)

    def runs(self, pipeline: Any) -> Callable[[Iterator[Any]], Iterator[Mapping[str, Any]]]:
        """From rows to results: a ``pipeline`` that was made, or its like on Ray."""
        if self.engine == "local":
            return pipeline.stream  # type: ignore[no-any-return]
        from zoo.inference.ray import on_ray

        return on_ray(self, address=self.address)


@dataclass(frozen=True)
class Prediction:
    """A command's work: rows of a source, through a pipeline, to wherever they go.

    ``run``: what the results depend on besides the rows, for who resumes. ``shape``: what is
    kept of a row and its result.
    """

    source: RowSource
    reader: Reader
    making: Making
    run: Mapping[str, Any]
    shape: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]

    def results(self) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Each row with its result."""
        from zoo.inference.bulk import results

        return results(self.source.rows, self.reader, self.making.runs(self.reader.pipeline))

    def print_rows(self) -> None:
        """Print rows with their results as lines of JSON, as they are made."""
        from zoo.inference.results import json_of

        for row, result in self.results():
            print(json_of(self.shape(row, result)), flush=True)

    def write(self, out: Path) -> int:
        """Write rows with their results into a file, with a bar on stderr; what is there when
        something goes wrong is kept, and said.
        """
        from zoo.inference.results import kept_rows

        try:
            return self._write(out)
        except BaseException:
            if kept := kept_rows(out, self.run):
                print(f"zoo: {counted(kept, 'row')} kept; the same command goes on from there", file=sys.stderr)
            raise

    def _write(self, out: Path) -> int:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from zoo.inference.bulk import write_results

        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            shown = bar.add_task("rows", total=self.source.total)
            return write_results(
                out,
                self.source.rows,
                self.reader,
                self.making.runs(self.reader.pipeline),
                run=self.run,
                shape=self.shape,
                progress=lambda done: bar.update(shown, completed=done),
            )


def counted(number: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def target(out: Path | None, vectors: bool = False) -> None:
    """Refuse a file that could not be written, before anything is loaded."""
    if out is not None:
        from zoo.inference.results import check_target

        check_target(out, vectors)


MODEL_FILES = (".safetensors", ".bin", ".pt", ".h5", ".npz", ".onnx", ".model", ".json", ".txt")


def stamp(source: str) -> list[Any]:
    """What tells a model that lies in a folder or file from another at the same place: names, sizes
    and times of its files.
    """
    path = Path(source)
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    own = [file for file in files if file.is_file() and file.name.endswith(MODEL_FILES) and ".part" not in file.name]
    return [[file.name, (state := file.stat()).st_size, state.st_mtime_ns] for file in own]
