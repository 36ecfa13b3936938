"""Files on disk: written whole or not at all, hashed, and named without leading anywhere else."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import CheckpointError
from zoo.formats.limits import printable

CHUNK = 1 << 20
UNFINISHED = ".incomplete"  # how the name of a file ends that is being written


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read its bytes. What is no regular file (a FIFO, a socket, a device, a folder)
    is refused with a ``CheckpointError``: it may never answer, or never end.
    """
    _regular(path, os.stat(path).st_mode)
    file: io.BufferedReader = io.BufferedReader(io.FileIO(path, opener=_without_waiting))
    try:
        _regular(path, os.fstat(file.fileno()).st_mode)  # it may have been exchanged since
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, at_most: int) -> bytes:
    """The bytes of a regular file that has no more than ``at_most``."""
    with open_regular(path) as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise CheckpointError(
            f"{path} has {os.stat(path).st_size:,} bytes; at most {at_most:,} of such a file are read"
        )
    return data


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def _regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise CheckpointError(
            f"{path} is {kind}, not a regular file; only such are read: write its bytes into one first"
        )


def stored_bytes(path: Path) -> int:
    """How many bytes of a file lie on the disk: fewer than its length where the file has holes."""
    status = os.stat(path)
    blocks = getattr(status, "st_blocks", 0)  # some file systems, and Windows, don't say
    return min(status.st_size, blocks * 512) if blocks else status.st_size


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Bring a file or folder to disk, where the system lets us."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Replace a small file by one rename, so that a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{UNFINISHED}")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


class Target(io.RawIOBase):
    """A file for a writer in C++, which would end the process where Python raises: what goes wrong is
    kept for `check`, and what comes behind it is thrown away.
    """

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence) if self.error is None else 0

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def check(self) -> None:
        """Raise what went wrong, the last bytes included."""
        if self.error is not None:
            raise self.error
        self._file.flush()


def safe_path(name: str) -> str:
    """A relative path with forward slashes, or a ``CheckpointError`` where it would lead out of its
    folder.
    """
    parts = PurePosixPath(name).parts
    absolute = name.startswith("/") or re.match(r"[A-Za-z]:", name)
    if not parts or absolute or ".." in parts or "\\" in name or "\0" in name:
        raise CheckpointError(
            f"the name {name!r} leads out of its folder; names must be relative, without '..', drives or backslashes"
        )
    return str(PurePosixPath(name))


def plain_name(file: str, path: Path) -> str:
    """``file`` where it is a plain name of a file beside ``path``, which names it; anything with a
    folder in it is refused.
    """
    if file in ("", ".", "..") or any(c in file for c in '/\\:\0"') or not file.isprintable() or len(file) > 255:
        raise CheckpointError(
            f"{path} names the file {printable(file)!r}; only plain names in the same folder are followed"
        )
    return file
