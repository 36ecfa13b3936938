"""Rows of tables, one at a time: csv, tsv, jsonl, parquet, and plain lines of text.

A row is a dict from column to value: strings in csv, tsv and txt, what JSON and parquet hold in the
others. csv has quotes as spreadsheets write them; the cells of a tsv are taken as they stand, as
GLUE's files want it. A ``.gz`` behind the name is read through.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import IO, Any

from zoo.data.lines import written_lines
from zoo.errors import InputError, missing_extra, unknown

Row = Mapping[str, Any]
LONGEST_CELL = 64 << 20  # characters; one unclosed quote would otherwise swallow a file

NAMES: Mapping[str, tuple[str, ...]] = {
    "text": (
        *("text", "text1", "sentence1", "premise", "question1", "sent1", "question", "sentence"),
        *("caption", "review", "content", "source", "expression"),
    ),
    "pair": ("pair", "text_pair", "text2", "sentence2", "hypothesis", "question2", "sent2", "sentence", "second"),
    "label": ("label", "labels", "class", "category", "gold", "gold_label", "target", "score", "sentiment"),
    "words": ("words", "tokens"),
    "tags": ("tags", "ner_tags", "pos_tags", "labels", "label"),
    "question": ("question", "query"),
    "context": ("context", "passage", "paragraph", "text"),
    "answer": ("answer", "answers", "answer_text", "label"),
    "start": ("start", "answer_start"),
    "choices": ("choices", "endings", "options"),
    "image2": ("image2", "image_2", "right_image", "second_image"),
    "image": ("image", "image_id", "img_id", "picture", "img"),
    "id": ("id", "qid", "question_id", "guid", "index"),
    "source": ("source", "text", "document", "article", "input"),
    "target": ("target", "summary", "output", "translation"),
    "rewritten": ("rewritten", "paraphrases", "positives"),
    "wrong": ("wrong", "negatives", "foils"),
    "source_language": ("source_language", "source_lang", "src_lang"),
    "target_language": ("target_language", "target_lang", "tgt_lang"),
    "score": ("score", "similarity", "label"),
}
"""What the columns of public tables are called, by what they mean here; the first found is taken."""


def read_rows(path: str | PathLike[str], format: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a table in the order of the file. ``format``: csv, tsv, jsonl, parquet or txt,
    where the name doesn't say.

    Raises InputError for a file that can't be read, with the number of the line, MissingExtraError
    for parquet without pyarrow.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; give a file of rows")
    kind = format or format_of(path)
    if kind is None:
        raise InputError(f"{path} doesn't say what it is by its name; name one of {', '.join(READERS)}")
    if kind not in READERS:
        raise unknown("format of rows", kind, READERS)
    return READERS[kind](path)


def format_of(path: str | PathLike[str]) -> str | None:
    """The format that a file's name says, None where it says none."""
    name = Path(path).name.lower().removesuffix(".gz")
    return SUFFIXES.get(name.rpartition(".")[2]) if "." in name else None


def _text(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _cells(path: Path, quoted: bool) -> Iterator[dict[str, Any]]:
    dialect: dict[str, Any] = {"strict": True} if quoted else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with _text(path) as file:
        csv.field_size_limit(LONGEST_CELL)
        reader = csv.reader(file, **dialect)
        try:
            header = next(reader, None)
            if header is None:
                raise InputError(f"{path} is empty; its first line should name the columns")
            _check_header(header, path)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise InputError(
                        f"line {reader.line_num} of {path} has {len(cells)} cells where the header names {len(header)}"
                        f" ({', '.join(header)})"
                    )
                yield dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InputError(f"line {reader.line_num} of {path} can't be read: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} can't be read as UTF-8 text: {error}") from error
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error


def _check_header(header: Sequence[str], path: Path) -> None:
    twice = {name for name in header if header.count(name) > 1}
    if twice:
        raise InputError(f"the header of {path} names {sorted(twice)[0]!r} twice")


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    return _cells(path, quoted=True)


def _tsv(path: Path) -> Iterator[dict[str, Any]]:
    return _cells(path, quoted=False)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in written_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"line {number} of {path} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"line {number} of {path} must be an object with columns, got {type(row).__name__}")
        yield row


def _txt(path: Path) -> Iterator[dict[str, Any]]:
    return ({"text": line} for _, line in written_lines(path))


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet
        from pyarrow.lib import ArrowException
    except ImportError:
        raise missing_extra("reading parquet", "pyarrow", "tables") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} can't be read as parquet: {error}") from error


READERS: Mapping[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "txt": _txt,
}
SUFFIXES = {name: name for name in READERS} | {"ndjson": "jsonl", "pq": "parquet", "tab": "tsv", "text": "txt"}


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what: ``names`` from a meaning ("text", "label") to a column."""

    names: Mapping[str, str]

    def __contains__(self, meaning: object) -> bool:
        return meaning in self.names

    def of(self, row: Row, meaning: str) -> Any:
        """A row's value, by its meaning."""
        column = self.names[meaning]
        if column not in row:
            raise InputError(f"a row lacks the column {column!r}; it has {', '.join(map(repr, row))}")
        return row[column]

    def text(self, row: Row, meaning: str) -> str:
        """A row's value that has to be text."""
        value = self.of(row, meaning)
        if not isinstance(value, str):
            raise InputError(f"the column {self.names[meaning]!r} must hold text, got {value!r}")
        return value


def find_columns(
    header: Iterable[str], needed: Sequence[str], optional: Sequence[str] = (), named: Mapping[str, str] | None = None
) -> Columns:
    """Find the columns that hold what is ``needed``, and what is ``optional`` where it is there.

    ``named`` says it outright: {"text": "sentence"}; the rest is found by the names of public
    tables, whatever their case, each column once.
    """
    header = list(header)
    found: dict[str, str] = {}
    for meaning, column in (named or {}).items():
        if meaning not in (*needed, *optional):
            raise unknown("meaning of a column", meaning, [*needed, *optional])
        if column not in header:
            raise unknown("column", column, header)
        found[meaning] = column
    plain = {column.strip().lower(): column for column in reversed(header)}
    for meaning in (*needed, *optional):
        if meaning in found:
            continue
        free = [plain[name] for name in NAMES[meaning] if name in plain and plain[name] not in found.values()]
        if free:
            found[meaning] = free[0]
        elif meaning in needed:
            raise InputError(
                f"no column for {meaning!r} among {', '.join(map(repr, header))}; call it one of "
                f"{', '.join(NAMES[meaning])}, or say which it is: {meaning}=COLUMN"
            )
    return Columns(found)


def cells(value: Any) -> list[Any]:
    """A list, or a cell that holds several: JSON, or words with blanks between them."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return list(json.loads(value))
            except ValueError:
                pass
        return value.split()
    if isinstance(value, list | tuple):
        return list(value)
    raise InputError(f"words and tags must be lists, or cells with blanks between them, got {value!r}")
