"""Files on disk: written whole or not at all, hashed, and named without leading anywhere else."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path, PurePosixPath

from zoo.errors import CheckpointError
from zoo.formats.limits import printable

CHUNK = 1 << 20
UNFINISHED = ".incomplete"  # how the name of a file ends that is being written


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
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
