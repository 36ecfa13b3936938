"""Many rows: from an iterator of rows to a file of results, every row exactly once however often the
work is killed and begun again.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.inference.results import ResultFile, json_of

Engine = Callable[[Iterator[Any]], Iterator[Mapping[str, Any]]]
"""From rows to their results, in order: `Pipeline.stream` on this machine, or what runs it elsewhere."""

CHUNK = 1024
"""The most rows that wait to be written."""
SECONDS = 2.0
"""How much work a kill may undo."""


def results(
    rows: Iterable[Mapping[str, Any]],
    reading: Callable[[Mapping[str, Any]], Any],
    engine: Engine,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Each row with its result. ``reading``: what the engine reads of a row. ``idle`` is called when
    the engine asks for rows though it owes no result: a window of rows is done.
    """
    waiting: deque[Mapping[str, Any]] = deque()

    def read() -> Iterator[Any]:
        for row in rows:
            if not waiting:
                idle()
            waiting.append(row)
            yield reading(row)

    for result in engine(read()):
        yield waiting.popleft(), result


def joined(row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """A row's columns and its results; a result whose name the row has is called ``predicted_NAME``."""
    found = dict(row)
    for name, value in result.items():
        while name in found:
            name = f"predicted_{name}"
        found[name] = value
    return found


def write_results(
    out: Path,
    rows: Iterable[Mapping[str, Any]],
    reading: Callable[[Mapping[str, Any]], Any],
    engine: Engine,
    *,
    run: Mapping[str, Any],
    shape: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = joined,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Write what ``shape`` makes of each row and its result into ``out``, in order, and give back how
    many there are.

    Where an earlier call for the same ``run`` was stopped, the rows it committed are read over, held
    against its digest of them, and not computed again. ``progress`` is told how many rows are done.
    """
    with ResultFile(out, run) as file:
        remaining, digest = iter(rows), hashlib.sha256()
        _read_over(remaining, digest, file)
        waiting: list[dict[str, Any]] = []
        last = time.monotonic()

        def write(whole: bool = False) -> None:
            nonlocal last
            file.add(waiting)
            waiting.clear()
            progress(file.rows)
            if whole or time.monotonic() - last >= SECONDS:
                file.commit(digest.hexdigest())
                last = time.monotonic()

        progress(file.rows)
        for row, result in results(remaining, reading, engine, write):
            digest.update(told(row))
            waiting.append(shape(row, result))
            if len(waiting) >= CHUNK:
                write()
        if file.rows or waiting:
            write(whole=True)
            file.finish()
        return file.rows


def _read_over(rows: Iterator[Mapping[str, Any]], digest: Any, file: ResultFile) -> None:
    """Pass over the rows whose results are there, and see that they are the same as before."""
    for done in range(file.rows):
        row = next(rows, None)
        if row is None:
            raise InputError(
                f"{file.part} holds the results of {file.rows} rows, the input now ends after {done}; remove the file "
                "to begin anew"
            )
        digest.update(told(row))
    if file.rows and digest.hexdigest() != file.digest:
        raise InputError(
            f"the first {file.rows} rows are not those that {file.part} came from; remove it to begin anew"
        )


def told(row: Mapping[str, Any]) -> bytes:
    """A row as bytes, for its digest."""
    return f"{json_of(row)}\n".encode()
