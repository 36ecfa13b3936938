"""The lines of text files: UTF-8, with or without a byte order mark, gzipped or not, ended as on
any system.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

from zoo.errors import CheckpointError, InputError
from zoo.formats.disk import open_regular
from zoo.formats.limits import MIB, check_expansion

LONGEST_LINE = 64 * MIB  # a line of a dump of regions has 1.2 MB


def numbered_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of a text file, .gz or not, with their numbers from 1 and without their ends.

    LF, CR LF and CR end a line. The other separators of Unicode (U+2028, U+0085, ...) don't: they
    may stand inside a text.
    """
    path = Path(path)
    try:
        with open_regular(path) as stored:
            source = cast(BinaryIO, _Unpacked(stored, path)) if path.suffix == ".gz" else stored
            with io.TextIOWrapper(io.BufferedReader(cast(Any, source), MIB), encoding="utf-8-sig") as file:
                number = 0
                while line := file.readline(LONGEST_LINE):
                    number += 1
                    if len(line) == LONGEST_LINE:
                        raise InputError(f"{path}, line {number} has more than {LONGEST_LINE:,} characters")
                    yield number, line.rstrip("\n")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} can't be read as UTF-8 text: {error}") from error
    except CheckpointError as error:
        raise InputError(str(error)) from error


class _Unpacked(io.RawIOBase):
    """What a gzipped file unpacks to, as long as that looks honest."""

    def __init__(self, stored: BinaryIO, path: Path):
        self.source, self.what = gzip.GzipFile(fileobj=stored, mode="rb"), str(path)
        self.size, self.given = path.stat().st_size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        data = self.source.read1(len(target))
        target[: len(data)] = data
        self.given += len(data)
        check_expansion(self.what, self.given, self.size)
        return len(data)


def written_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """Those of the lines that hold more than blanks."""
    return ((number, line) for number, line in numbered_lines(path) if line.strip())
