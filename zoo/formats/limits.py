"""The bounds that a foreign file is held to, and the net that turns any surprise into a
CheckpointError.

A hostile file may lie about every length. Nothing is allocated on a file's word alone: sizes are
held against the bytes that are there, and where bytes multiply (decompression, views with stride 0,
containers in a pickle) against these limits.
"""

from __future__ import annotations

import struct
import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.errors import CheckpointError, ZooError

MIB = 1 << 20
MAX_HEADER = 16 * MIB  # a safetensors header, a shard index
MAX_JSON_VALUES = 4_000_000  # a header of 16 MiB describes 130,000 tensors by 1,000,000 values
MAX_ZIP_DIRECTORY = 8 * MIB  # a zip's list of members: about 80 bytes each
MAX_OPCODES = 6_000_000  # XLM's three dictionaries of 200,000 words take about 2,000,000
MAX_MEMO = 2_000_000
MAX_CONTAINERS = 1_000_000  # lists, dicts, sets and refused objects that one pickle may create
MAX_COMPOUND_KEYS = 2_000  # tuples as keys, whose hashes can be chosen to collide; others are left out
MAX_TEXT = 16 * MIB  # one string that is plain data
LONG_VALUE = 64 << 10  # longer strings and byte strings stay in the mapped file until they are wanted
MAX_INTEGER_BYTES = 1024
# plain values in the tree of a pickle, where shared parts count each time and a container counts as 16
MAX_NODES = 4_000_000
MAX_DEPTH = 100
MAX_NAME = 2048  # characters of a tensor's name
MAX_DIMENSIONS = 64
FREE_EXPANSION = 64 * MIB  # decompressed or expanded bytes that are always allowed
MAX_RATIO = 100  # beyond that: decompressed bytes per compressed byte


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Let the zoo's own errors pass; turn every other error that a damaged file can provoke into a
    CheckpointError.
    """
    try:
        yield
    except ZooError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{what}: no such file ({error.filename})") from error
    except OSError as error:
        raise CheckpointError(f"{what}: cannot be read: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{what}: nested too deeply to be a checkpoint") from error
    except (
        ValueError,  # with UnicodeDecodeError and json's errors
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,  # torch's, with NotImplementedError
        AttributeError,
        EOFError,
        MemoryError,
        AssertionError,
        SyntaxError,
        struct.error,
        tokenize.TokenError,  # numpy's, of a header
        zlib.error,
        zipfile.BadZipFile,
        tarfile.TarError,
    ) as error:
        raise CheckpointError(
            f"{what}: damaged or not a checkpoint ({type(error).__name__}: {str(error)[:300]})"
        ) from error


def check_expansion(what: str, declared: int, stored: int) -> None:
    """Refuse ``declared`` bytes that are to come out of ``stored`` bytes when that looks like a
    bomb.
    """
    if declared > FREE_EXPANSION and declared > MAX_RATIO * max(stored, 1):
        raise CheckpointError(
            f"{what} would grow from {stored} to {declared} bytes; more than {MAX_RATIO} times is refused beyond "
            f"{FREE_EXPANSION} bytes"
        )


def check_json(raw: bytes | str, what: str, at_most: int = MAX_JSON_VALUES) -> None:
    """Refuse JSON of more than ``at_most`` values: two bytes of it can take a hundred of memory.
    Counted are the signs that begin or part them, within strings too.
    """
    count = sum(raw.count(sign.encode()) if isinstance(raw, bytes) else raw.count(sign) for sign in "[{,")
    if count > at_most:
        raise CheckpointError(f"{what} is JSON of about {count:,} values; at most {at_most:,} are read")


def printable(text: str, limit: int = 200) -> str:
    """A foreign name, made safe to show."""
    shown = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)


def is_count(value: object) -> bool:
    """Whether a value of a file can be a size or a place."""
    return type(value) is int and 0 <= value < 1 << 62


def repr_short(value: object) -> str:
    """A description that never walks into containers."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a huge integer"
    if value is None or isinstance(value, (int, float, str)):
        return repr(value)[:100]
    sized = f" of length {len(value)}" if isinstance(value, (tuple, list, dict, bytes)) else ""
    return f"{type(value).__name__}{sized}"
