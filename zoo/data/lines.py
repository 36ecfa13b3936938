"""The lines of text files: UTF-8, with or without a byte order mark, gzipped or not, ended as on
any system.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from zoo.errors import InputError


def numbered_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """The lines of a text file, .gz or not, with their numbers from 1 and without their ends.

    LF, CR LF and CR end a line. The other separators of Unicode (U+2028, U+0085, ...) don't: they
    may stand inside a text.
    """
    path = Path(path)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip("\n")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} can't be read as UTF-8 text: {error}") from error


def written_lines(path: str | PathLike[str]) -> Iterator[tuple[int, str]]:
    """Those of the lines that hold more than blanks."""
    return ((number, line) for number, line in numbered_lines(path) if line.strip())
