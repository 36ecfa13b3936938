"""Files of results that grow row by row and survive a kill: jsonl, csv, tsv, parquet, and npy for
vectors.

Beside ``OUT`` stand, while it is made, ``OUT.part``, which only grows, and ``OUT.part.json``: how many rows
and bytes of it are safe on disk, a digest of the rows that they came from, and which run makes them.
Who comes after a kill cuts the part there and goes on; at the end the part becomes ``OUT`` by one
rename.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy

from zoo.errors import InputError, missing_extra
from zoo.formats.disk import UNFINISHED, sync

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

Row = Mapping[str, Any]
SURROGATES = re.compile("[\ud800-\udfff]")


class Writing:
    """How rows become bytes. ``state``: what must be known again after a kill, as plain values."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.state = dict(state or {})

    def encode(self, rows: Sequence[Row]) -> bytes:
        """The bytes of further rows, at least one; the first call also gives what stands in front of all."""
        raise NotImplementedError

    def finish(self, part: Path, rows: int) -> Path:
        """Make the whole file of the part, in place or as another file that is given back."""
        return part


class Jsonl(Writing):
    """One JSON object a line."""

    def encode(self, rows: Sequence[Row]) -> bytes:
        return "".join(f"{json_of(row)}\n" for row in rows).encode()


class Csv(Writing):
    """Cells with quotes; what is no text is JSON."""

    dialect: ClassVar[Mapping[str, Any]] = {"lineterminator": "\n"}

    def encode(self, rows: Sequence[Row]) -> bytes:
        buffer = io.StringIO()
        writer = csv.writer(buffer, **self.dialect)
        if "columns" not in self.state:
            self.state["columns"] = list(rows[0])
            writer.writerow(self.state["columns"])
        for row in rows:
            check_columns(row, self.state["columns"])
            writer.writerow([self.cell(value) for value in row.values()])
        return buffer.getvalue().encode()

    def cell(self, value: Any) -> str:
        return value if isinstance(value, str) else "" if value is None else json_of(value)


class Tsv(Csv):
    """Cells as they stand, without quotes."""

    dialect = {"lineterminator": "\n", "delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}

    def cell(self, value: Any) -> str:
        text = super().cell(value)
        if any(character in text for character in "\t\r\n"):
            raise InputError(f"a cell of a tsv can't hold a tab or the end of a line: {text!r:.80}; write csv or jsonl")
        return text


class Npy(Writing):
    """The vectors alone, (rows, size) float32."""

    HEADER = 128

    def encode(self, rows: Sequence[Row]) -> bytes:
        vectors = [row["embedding"] for row in rows]
        first = b""
        if "size" not in self.state:
            self.state["size"] = len(vectors[0])
            first = self.header(0)
        return first + numpy.asarray(vectors, dtype="<f4").tobytes()

    def header(self, rows: int) -> bytes:
        about = str({"descr": "<f4", "fortran_order": False, "shape": (rows, self.state["size"])})
        return (
            b"\x93NUMPY\x01\x00" + struct.pack("<H", self.HEADER - 10) + about.ljust(self.HEADER - 11).encode() + b"\n"
        )

    def finish(self, part: Path, rows: int) -> Path:
        with part.open("r+b") as file:
            file.write(self.header(rows))
        return part


class Parquet(Writing):
    """Columns; nested results are JSON, lists of numbers are lists. Rows wait as an Arrow stream, since
    a parquet file can't grow once it is closed.
    """

    GROUP = 16_384  # rows

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        super().__init__(state)
        try:
            import pyarrow
        except ImportError:
            raise missing_extra("writing parquet", "pyarrow", "tables") from None
        self.arrow: Any = pyarrow
        self.schema: Any = None
        if "schema" in self.state:
            self.schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(bytes.fromhex(self.state["schema"])))

    def encode(self, rows: Sequence[Row]) -> bytes:
        if self.schema is None:
            self.state["json"] = [name for name in rows[0] if nested([row.get(name) for row in rows])]
        table = [{name: self.cell(name, value) for name, value in row.items()} for row in rows]
        first = b""
        try:
            if self.schema is None:
                found = self.arrow.Table.from_pylist(table).schema
                self.schema = self.arrow.schema([(name, self._known(found.field(name).type)) for name in rows[0]])
                first = self.schema.serialize().to_pybytes()
                self.state["schema"] = first.hex()
            for row in rows:
                check_columns(row, self.schema.names)
            return first + self.arrow.RecordBatch.from_pylist(table, self.schema).serialize().to_pybytes()
        except (self.arrow.ArrowInvalid, self.arrow.ArrowTypeError) as error:
            raise InputError(
                f"a column holds values of several kinds, which parquet can't: {error}; write jsonl"
            ) from None

    def cell(self, name: str, value: Any) -> Any:
        return json_of(value) if name in self.state["json"] and value is not None else value

    def _known(self, kind: Any) -> Any:
        """A column without a value so far is taken for text."""
        return self.arrow.string() if kind == self.arrow.null() else kind

    def finish(self, part: Path, rows: int) -> Path:
        import pyarrow.parquet

        whole = part.with_name(part.name + UNFINISHED)
        with pyarrow.parquet.ParquetWriter(whole, self.schema) as writer, part.open("rb") as file:
            for batches in self._groups(file):
                writer.write_table(self.arrow.Table.from_batches(batches, self.schema))
        return whole

    def _groups(self, file: Any) -> Iterator[list[Any]]:
        waiting: list[Any] = []
        for batch in self.arrow.ipc.open_stream(file):
            waiting.append(batch)
            if sum(len(one) for one in waiting) >= self.GROUP:
                yield waiting
                waiting = []
        yield waiting


def nested(values: Sequence[Any]) -> bool:
    """Whether a column holds more than plain values and lists of them, as far as its first rows say."""
    lists = [value for value in values if isinstance(value, list)]
    return any(isinstance(value, dict) for value in values) or (
        bool(lists) and (not any(lists) or any(isinstance(one, dict | list) for value in lists for one in value))
    )


WRITINGS: Mapping[str, type[Writing]] = {"jsonl": Jsonl, "csv": Csv, "tsv": Tsv, "npy": Npy, "parquet": Parquet}


def check_target(out: Path, vectors: bool = True) -> str:
    """The format that a file's name says. ``vectors``: whether there are vectors, which npy is for."""
    known = [kind for kind in WRITINGS if vectors or kind != "npy"]
    kind = out.suffix.lower().removeprefix(".")
    if kind not in known:
        why = "npy holds vectors, which only embed makes" if kind == "npy" else f"{out} doesn't say what to write"
        raise InputError(f"{why}; its name must end in .{', .'.join(known)}")
    if out.is_dir():
        raise InputError(f"{out} is a folder; give a file")
    if not out.parent.is_dir():
        raise InputError(f"{out} can't be written: there is no folder {out.parent}")
    WRITINGS[kind]()  # has what it needs
    return kind


def json_of(value: Any) -> str:
    """A value on one line of JSON: arrays as lists, NaN and infinity as null, what JSON can't say as
    text, and halves of surrogate pairs, which no file can hold, as escapes.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:  # NaN or infinity
        text = json.dumps(_finite(json.loads(json.dumps(value, default=_plain))), ensure_ascii=False)
    return text if text.isascii() or not SURROGATES.search(text) else json.dumps(json.loads(text))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_columns(row: Row, columns: Sequence[str]) -> None:
    """Whether a row has the columns of those before it."""
    if list(row) != list(columns):
        raise InputError(f"a row has the columns {', '.join(row)}, the first has {', '.join(columns)}; write jsonl")


def part_of(out: Path) -> tuple[Path, Path]:
    """The part of a file of results, and the record of how much of it is safe."""
    return out.with_name(out.name + ".part"), out.with_name(out.name + ".part.json")


def kept_rows(out: Path, run: Mapping[str, Any] | None = None) -> int:
    """How many rows a stopped run has left to go on with; ``run``: for this one, which none of
    another's are.
    """
    part, record = part_of(out)
    try:
        said = json.loads(record.read_text(encoding="utf-8"))
        foreign = run is not None and differing(json.loads(json_of(run)), said["run"])
        return int(said["rows"]) if part.is_file() and not foreign else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def differing(run: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In what two runs differ, by name."""
    return [name for name in {*run, *other} if run.get(name) != other.get(name)]


class ResultFile:
    """A file of results in the making: `add` rows, `commit` what is there, `finish` when all is.

    ``run``: what makes the rows, as plain values; the part of another run is not gone on with.
    """

    def __init__(self, out: Path, run: Mapping[str, Any]) -> None:
        kind = check_target(out)
        self.out, self.run = out, json.loads(json_of(run))
        self.part, self.record = part_of(out)
        try:
            self.file = self.part.open("a+b")
        except OSError as error:
            raise InputError(f"{self.part} can't be written: {error.strerror}") from error
        try:
            self._lock()
            said = self._said()
            self.writing = WRITINGS[kind](said.get("state"))
            self.rows, self.digest = int(said.get("rows", 0)), str(said.get("digest", ""))
            self.file.truncate(int(said.get("bytes", 0)))
            self.committed = self.rows
        except BaseException:
            self.file.close()
            raise

    def _lock(self) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self.file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"another process is writing {self.out}; wait for it, or give another name") from None

    def _said(self) -> dict[str, Any]:
        """What the record says of the part; nothing where there is none, or none of this file."""
        try:
            said = json.loads(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            said = None
        kinds = {"rows": int, "bytes": int, "digest": str, "state": dict, "run": dict}
        if not isinstance(said, dict) or not all(isinstance(said.get(name), kind) for name, kind in kinds.items()):
            raise InputError(f"{self.record} is damaged; remove it and {self.part.name} to begin anew")
        if not os.fstat(self.file.fileno()).st_size >= said["bytes"] > 0:
            return {}  # of a part that is no more
        for name in differing(self.run, said["run"])[:1]:
            raise InputError(
                f"{self.part} holds {said['rows']} rows of another run, whose {name} is {said['run'].get(name)!r} "
                f"and not {self.run.get(name)!r}; finish that run, or remove the file"
            )
        return said

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if not self.committed:  # nothing worth going on with
            self.part.unlink(missing_ok=True)

    def add(self, rows: Sequence[Row]) -> None:
        """Write further rows, which a kill may still undo."""
        if not rows:
            return
        with self._writing():
            self.file.write(self.writing.encode(rows))
        self.rows += len(rows)

    def commit(self, digest: str) -> None:
        """Bring what was added to disk and record it, with the digest of the rows that it came from."""
        with self._writing():
            self.file.flush()
            os.fsync(self.file.fileno())
            size = os.fstat(self.file.fileno()).st_size
            said = {"rows": self.rows, "bytes": size, "digest": digest, "state": self.writing.state, "run": self.run}
            self._record(json.dumps(said))
        self.committed, self.digest = self.rows, digest

    def _record(self, said: str) -> None:
        """Replace the record by one rename, by way of a name that the next one takes again."""
        fresh = self.record.with_name(self.record.name + UNFINISHED)
        with fresh.open("w", encoding="utf-8") as file:
            file.write(said)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.record)
        sync(self.out.parent)

    def finish(self) -> None:
        """The part becomes the file."""
        with self._writing():
            whole = self.writing.finish(self.part, self.rows)
            sync(whole)
            self.file.close()
            os.replace(whole, self.out)
            if whole != self.part:
                self.part.unlink()
            self.record.unlink(missing_ok=True)
            sync(self.out.parent)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.out} can't be written: {error.strerror or error}") from error
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.out} can't be written: a text holds half of a surrogate pair; write jsonl"
            ) from error
