"""Files on disk: written whole or not at all, hashed, and named without leading anywhere else."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from zoo.errors import CheckpointError, ZooError
from zoo.formats.limits import printable

try:
    import fcntl
except ImportError:  # not on Windows; leftovers of killed processes then stay
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
UNFINISHED = ".incomplete"  # how the name of a file or folder ends that is being written
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # seconds between the tries to read what somebody is replacing

T = TypeVar("T")


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


# --- what is being written


def begin(path: Path) -> tuple[Path, int]:
    """A new file beside ``path`` to write what shall stand there, open and locked; what killed
    processes left of earlier tries is removed first.
    """
    clear_leftovers(path)
    while True:
        temporary = _name_beside(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if _claimed(temporary, descriptor):
            return temporary, descriptor
        os.close(descriptor)


@contextmanager
def workspace(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to write in what shall be moved there, removed in the end; what killed
    processes left of earlier tries is removed first.
    """
    clear_leftovers(path)
    while True:
        folder, descriptor = _name_beside(path), -1
        folder.mkdir()
        if fcntl is None:
            break
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # taken for a leftover, before it could be locked
            continue
        if _claimed(folder, descriptor):
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def clear_leftovers(path: Path) -> None:
    """Remove the files and folders beside ``path`` in which killed processes wrote what should stand
    there.
    """
    if path.parent.is_dir():
        for left in sorted(path.parent.glob(f".{_escaped(path.name)}.*{UNFINISHED}")):
            with suppress(OSError), abandoned(left) as nobodys:
                if nobodys:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Whether nobody is writing an unfinished file or folder; as far as the system tells, and for as
    long as the block runs.
    """
    if fcntl is None or not (stat.S_ISDIR(mode := path.lstat().st_mode) or stat.S_ISREG(mode)):
        yield False
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _try_flock(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Replace a small file by one rename, so that a reader sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, descriptor = begin(path)
    try:
        with open(descriptor, "wb") as file:
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


@contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Errors of the file system while ``path`` is written, as CheckpointErrors."""
    try:
        yield
    except ZooError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "\0" not in str(path):
            raise
        needed = "" if size is None else f" ({size:,} bytes)"
        raise CheckpointError(
            f"{path} can't be written{needed}: {getattr(error, 'strerror', None) or error}; nothing was left behind"
        ) from error


class Sink(io.RawIOBase):
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


@contextmanager
def in_use(folder: Path) -> Iterator[bool]:
    """Keep a folder from those who ask whether it is `unused`; False where it is gone already."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield fcntl is None and folder.is_dir()
        return
    try:
        with suppress(OSError):  # a file system without locks
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield is_still(folder, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether nobody says that a folder is `in_use`, as far as the system tells; nobody begins to while
    the block runs.
    """
    if fcntl is None:
        yield True
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield True
        return
    try:
        try:
            free = _try_flock(descriptor)
        except OSError:
            free = True
        yield free
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder against every other process that asks for it so, where the file system can."""
    descriptor = -1
    if fcntl is not None:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _name_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{UNFINISHED}")


def _claimed(path: Path, descriptor: int) -> bool:
    """Lock what was just made, so that it is not taken for a leftover; False where it has been taken
    for one already, between the making and the lock.
    """
    try:
        return fcntl is None or (_try_flock(descriptor) and is_still(path, descriptor))
    except OSError:  # a file system without locks, where nothing is removed either
        return True


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name: somebody may have removed it between open
    and lock.
    """
    try:
        return os.fstat(descriptor).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "[]*?" else letter for letter in name)


# --- what somebody may be replacing


def settled(read: Callable[[], T], path: Path) -> T:
    """What ``read`` makes of a folder (or of a file and its neighbors) that another process may be
    replacing file by file: where it fails while files change, it is tried again, a few times.
    """
    for pause in PAUSES:
        before = _state(path)
        try:
            return read()
        except (CheckpointError, OSError):
            time.sleep(pause)
            if _state(path) == before:
                raise
    return read()


def _state(path: Path) -> frozenset[tuple[str, int, int, int]]:
    """What tells the files of a folder from those of a moment ago."""
    found = set()
    with suppress(OSError):
        places = os.scandir(path) if path.is_dir() else (path, path.with_name("config.json"))
        for place in places:
            with suppress(OSError):
                status = place.stat()
                found.add((place.name, status.st_ino, status.st_mtime_ns, status.st_size))
    return frozenset(found)


# --- names


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
