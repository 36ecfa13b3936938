"""Members of tar and zip archives, taken out without trusting their names."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from zoo.checkpoints.fetching.jobs import listed
from zoo.checkpoints.fetching.sources import Want
from zoo.errors import CheckpointError, FetchError
from zoo.formats.disk import CHUNK, safe_path

MAX_MEMBERS = 100_000
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """The regular files of a zip or tar, every name checked; links and devices in it are passed
    over.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                infos = [
                    info
                    for info in opened.infolist()
                    if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
                ]
                yield [_Member(safe_path(i.filename), i.file_size, partial(opened.open, i)) for i in infos]
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                members = []
                for count, info in enumerate(tar):
                    if count >= MAX_MEMBERS:
                        raise CheckpointError(f"{archive.name} holds more than {MAX_MEMBERS:,} files")
                    name = safe_path(info.name) if info.name not in (".", "./") else info.name
                    if info.isreg():
                        members.append(_Member(name, info.size, lambda info=info: tar.extractfile(info)))  # type: ignore[misc,arg-type]
                yield members
                while tar.fileobj is not None and tar.fileobj.read(CHUNK):
                    pass  # to the end, where a compressor keeps its checksum
        else:
            raise CheckpointError(f"{archive.name} is neither a zip nor a tar archive")
    except DAMAGED as error:
        raise CheckpointError(f"{archive.name} is damaged or of a kind that can't be read: {error}") from error


def extract(archive: Path, folder: Path, *, path: str | None = None, want: Want | None = None) -> None:
    """Take a folder or file at ``path`` out of a zip or tar archive (its wanted files, or all of
    it) into ``folder``.

    Without a path, wanted files are looked for at the top and then in the one folder that has them
    all. A name that leads out of the folder condemns the whole archive; so does a promise of more
    bytes than an honest archive of its size can hold.
    """
    want = want or Want()
    with _members(archive) as members:
        by_name = {member.name: member for member in members}
        if len(by_name) != len(members):
            raise CheckpointError(f"{archive.name} holds a name twice")
        if path is None and want.files:
            base = _base(archive, by_name, want)
        else:
            base = f"{path}/" if path else ""
        if path in by_name:
            chosen = {path.rsplit("/", 1)[-1]: by_name[path]}
        else:
            inside = {name.removeprefix(base): member for name, member in by_name.items() if name.startswith(base)}
            if not inside:
                raise FetchError(
                    f"{archive.name} holds no {path}; it holds {listed({name.rsplit('/', 1)[0] for name in by_name})}"
                )
            names = [*want.files, *want.optional] if want.files else list(inside)
            chosen = {name: inside[name] for name in names if name in inside}
        total = sum(member.size for member in chosen.values())
        if total > 200 * archive.stat().st_size + CHUNK:
            raise CheckpointError(
                f"{archive.name} promises {total:,} bytes out of {archive.stat().st_size:,}: more than an honest "
                "archive holds"
            )
        if total > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, member in chosen.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            left = member.size
            with member.open() as read, target.open("xb") as write:
                while chunk := read.read(CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise CheckpointError(
                            f"{member.name} in {archive.name} is longer than the {member.size:,} bytes it promises"
                        )
                    write.write(chunk)
            if left:
                raise CheckpointError(f"{member.name} in {archive.name} is {left:,} bytes shorter than it promises")


def _base(archive: Path, names: Iterable[str], want: Want) -> str:
    names = set(names)
    first = next(iter(want.files))
    bases = sorted({name.removesuffix(first) for name in names if name == first or name.endswith(f"/{first}")}, key=len)
    whole = [base for base in bases if all(base + name in names for name in want.files)]
    if whole and (whole[0] == "" or len(whole) == 1):
        return whole[0]
    found = f"in {len(whole)} folders: {listed(whole)}" if whole else f"nowhere together; it holds {listed(names)}"
    raise FetchError(f"{archive.name} holds {', '.join(want.files)} {found}")
