"""Bytes of a file, mapped, and tensors that show them."""

from __future__ import annotations

import io
import math
import mmap
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, TORCH_DTYPES
from zoo.formats.disk import CHUNK, open_regular
from zoo.formats.inflating import inflate
from zoo.formats.limits import MAX_ZIP_DIRECTORY, check_expansion, printable

# a private map of a file larger than memory must not be refused
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class FileMap(mmap.mmap):
    """The bytes of a file, paged in when they are touched.

    ``shown``: whether tensors may show these pages. Otherwise what makes a tensor is read from the
    file into memory of its own, so that the file may change or shrink while the tensor lives, and
    no page of a mapped file counts as memory of the process.
    """

    path: Path
    identity: tuple[int, int]  # device and inode: whether the path still names this file
    address: int
    shown: bool


def map_file(path: Path, *, shown: bool = False) -> memoryview:
    """The whole file as writable private memory: pages come in when touched, and writing never
    reaches the file. ``shown``: whether tensors may show these pages, see `FileMap`.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            return memoryview(bytearray())
        if sys.platform == "win32":
            made = FileMap(file.fileno(), status.st_size, access=mmap.ACCESS_COPY)
        else:
            flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
            made = FileMap(file.fileno(), status.st_size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    made.path, made.identity, made.shown = path, (status.st_dev, status.st_ino), shown
    made.address = torch.frombuffer(made, dtype=torch.uint8, count=1).data_ptr()
    return memoryview(made)


def bytes_at(data: memoryview, offset: int, count: int) -> torch.Tensor:
    """``count`` bytes of ``data`` as a tensor that shows them; of a file whose map is not to be
    shown, as one that holds them.
    """
    source = data.obj
    if not isinstance(source, FileMap) or source.shown:
        return torch.frombuffer(data, dtype=torch.uint8, count=count, offset=offset)
    start = torch.frombuffer(data, dtype=torch.uint8, count=1).data_ptr() - source.address + offset
    out = torch.empty(count, dtype=torch.uint8)
    target, done = out.numpy().data, 0
    with suppress(OSError), open_regular(source.path) as file:
        status = os.fstat(file.fileno())
        if (status.st_dev, status.st_ino) == source.identity:
            file.seek(start)
            while done < count and (got := file.readinto(target[done:])):
                done += got
            if done < count:
                raise CheckpointError(
                    f"{source.path} was truncated while it was read: {status.st_size:,} bytes are left"
                )
            return out
    if source.size() < start + count:  # the name is another file's by now, or nobody's: the map remains
        raise CheckpointError(f"{source.path} was truncated while it was read: {source.size():,} bytes are left")
    return out.copy_(torch.frombuffer(data, dtype=torch.uint8, count=count, offset=offset))


def pieces(data: memoryview) -> Iterator[memoryview]:
    """All of ``data``, piece by piece, as ``bytes_at`` gives it."""
    for start in range(0, len(data), CHUNK):
        yield bytes_at(data, start, min(CHUNK, len(data) - start)).numpy().data


def tensor_at(
    data: memoryview, offset: int, dtype: str, shape: Sequence[int], strides: Sequence[int] | None = None
) -> torch.Tensor:
    """The tensor at byte ``offset`` of ``data``; strides count elements, ``None`` is row-major.

    Shares memory with ``data`` unless that is a file whose map is not to be shown (`bytes_at`), or
    the bytes are not aligned for the dtype.
    """
    itemsize, torch_dtype = ITEM_SIZES[dtype], TORCH_DTYPES[dtype]
    numel = math.prod(shape)
    if numel == 0:
        return torch.empty(tuple(shape), dtype=torch_dtype)
    span = numel
    if strides is not None:
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if offset < 0 or offset + span * itemsize > len(data):
        raise CheckpointError(
            f"a tensor of {span * itemsize} bytes at offset {offset} does not fit into {len(data)} bytes: the file is "
            "truncated"
        )
    if span < numel:
        check_expansion("a tensor whose strides overlap", numel * itemsize, span * itemsize)
    raw = bytes_at(data, offset, span * itemsize)
    if raw.data_ptr() % itemsize:
        raw = raw.clone()
    if dtype == "BOOL" and not bool((raw <= 1).all()):
        flat = raw != 0  # a byte that is neither 0 nor 1 is no valid bool in memory
    else:
        flat = raw.view(torch_dtype)
    return flat.view(tuple(shape)) if strides is None else flat.as_strided(tuple(shape), tuple(strides)).contiguous()


class BufferFile(io.RawIOBase):
    """A seekable, read-only file over mapped bytes that refuses to copy more than ``limit`` bytes
    at once.
    """

    def __init__(self, data: memoryview, limit: int):
        self._data, self._limit, self._position = data, limit, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if position < 0:
            raise OSError(f"seek to {position}, before the start")
        self._position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, len(self._data) - self._position)
        count = left if size is None or size < 0 else min(size, left)
        if count > self._limit:
            raise CheckpointError(f"a table of {count} bytes inside an archive; at most {self._limit} are read at once")
        chunk = bytes(self._data[self._position : self._position + count])
        self._position += count
        return chunk


@dataclass(frozen=True)
class Member:
    """A file inside a zip: where its bytes lie, how large it says it is when unpacked, and the
    CRC-32 of that (None: the archive was written without).
    """

    name: str
    data: memoryview
    size: int
    compressed: bool
    checksum: int | None = None

    def head(self, count: int) -> memoryview:
        """Its first bytes, at most ``count``."""
        if not self.compressed:
            return self.data[:count]
        return memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(self.data[: 4 * count + 1024], count))

    def open(self) -> memoryview:
        """Its bytes, held against their checksum: the mapped ones where stored, else unpacked into
        memory, never beyond the announced size. Of a map that is to be shown nothing is read ahead,
        and so nothing checked.
        """
        shown = printable(self.name)
        if not self.compressed:
            if not (isinstance(self.data.obj, FileMap) and self.data.obj.shown):
                self._check(pieces(self.data), shown)
            return self.data
        unpacked = inflate(self.data, self.size, wbits=-zlib.MAX_WBITS, what=f"member {shown!r}")
        if len(unpacked) != self.size:
            raise CheckpointError(f"member {shown!r} unpacks to {len(unpacked)} bytes, announced are {self.size}")
        self._check([unpacked], shown)
        return unpacked

    def _check(self, parts: Iterable[memoryview], shown: str) -> None:
        if self.checksum is None:
            return
        found = 0
        for part in parts:
            found = zlib.crc32(part, found)
        if found != self.checksum:
            raise CheckpointError(
                f"member {shown!r} has checksum {found:#010x}, stored is {self.checksum:#010x}: the file is damaged"
            )


def zip_members(data: memoryview, what: str) -> dict[str, Member]:
    """The members of a zip, in directory order; encrypted, overlapping, duplicate or exploding ones
    are refused.
    """
    try:
        directory = zipfile.ZipFile(BufferFile(data, MAX_ZIP_DIRECTORY))
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{what} is a damaged or truncated zip archive: {error}") from error
    members: dict[str, Member] = {}
    ranges: list[tuple[int, int, str]] = []
    written = any(info.CRC for info in directory.infolist())  # torch may be told to leave them out
    for info in directory.infolist():
        if info.is_dir():
            continue
        if info.flag_bits & 0x1:
            raise CheckpointError(f"{what}: member {info.filename!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointError(
                f"{what}: member {info.filename!r} is packed by method {info.compress_type}; stored and deflated are "
                "read"
            )
        if info.filename in members:
            raise CheckpointError(f"{what}: two members are called {info.filename!r}")
        if not 0 <= info.header_offset <= len(data) - _LOCAL_HEADER.size:
            raise CheckpointError(f"{what}: member {info.filename!r} lies outside the file")
        signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(data, info.header_offset)
        if signature != b"PK\x03\x04":
            raise CheckpointError(f"{what}: no member header where {info.filename!r} should start")
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        end = start + info.compress_size
        if end > len(data):
            raise CheckpointError(f"{what}: member {info.filename!r} ends at {end}, the file at {len(data)}")
        compressed = info.compress_type == zipfile.ZIP_DEFLATED
        if not compressed and info.file_size != info.compress_size:
            raise CheckpointError(
                f"{what}: stored member {info.filename!r} has {info.compress_size} bytes but announces {info.file_size}"
            )
        if compressed:
            check_expansion(f"{what}: member {info.filename!r}", info.file_size, info.compress_size)
        ranges.append((info.header_offset, end, info.filename))
        checksum = info.CRC if written else None
        members[info.filename] = Member(info.filename, data[start:end], info.file_size, compressed, checksum)
    ranges.sort()
    for (_, end, first), (start, _, second) in pairwise(ranges):
        if start < end:
            raise CheckpointError(f"{what}: members {first!r} and {second!r} overlap")
    check_expansion(f"{what}: its members", sum(member.size for member in members.values()), len(data))
    return members
