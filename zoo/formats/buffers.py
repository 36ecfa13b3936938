"""Bytes of a file, mapped, and tensors that show them."""

from __future__ import annotations

import io
import math
import mmap
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, TORCH_DTYPES
from zoo.formats.limits import MAX_ZIP_DIRECTORY, check_expansion

# a private map of a file larger than memory must not be refused
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DEFLATE_CHUNK = 1 << 20


def map_file(path: Path) -> memoryview:
    """The whole file as writable private memory: pages come in when touched, and writing never
    reaches the file.
    """
    with path.open("rb") as file:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file")
        if status.st_size == 0:
            return memoryview(bytearray())
        if sys.platform == "win32":
            return memoryview(mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_COPY))
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return memoryview(mmap.mmap(file.fileno(), status.st_size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def tensor_at(
    data: memoryview, offset: int, dtype: str, shape: Sequence[int], strides: Sequence[int] | None = None
) -> torch.Tensor:
    """The tensor at byte ``offset`` of ``data``; strides count elements, ``None`` is row-major.

    Shares memory with ``data`` unless the bytes are not aligned for the dtype.
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
    raw = torch.frombuffer(data, dtype=torch.uint8, count=span * itemsize, offset=offset)
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
    """A file inside a zip: where its bytes lie and how large it says it is when unpacked."""

    name: str
    data: memoryview
    size: int
    compressed: bool

    def head(self, count: int) -> memoryview:
        """Its first bytes, at most ``count``."""
        if not self.compressed:
            return self.data[:count]
        return memoryview(zlib.decompressobj(-zlib.MAX_WBITS).decompress(self.data[: 4 * count + 1024], count))

    def open(self) -> memoryview:
        """Its bytes: the mapped ones where stored, else unpacked into memory, never beyond the
        announced size.
        """
        if not self.compressed:
            return self.data
        unpacked = inflate(self.data, self.size, wbits=-zlib.MAX_WBITS, what=f"member {self.name!r}")
        if len(unpacked) != self.size:
            raise CheckpointError(f"member {self.name!r} unpacks to {len(unpacked)} bytes, announced are {self.size}")
        return unpacked


def inflate(data: memoryview, at_most: int, *, wbits: int, what: str) -> memoryview:
    """Unpack a deflate stream, refusing what grows beyond ``at_most`` bytes or at the rate of a
    bomb.
    """
    unpacker = zlib.decompressobj(wbits)
    out = bytearray()
    for start in range(0, len(data), _DEFLATE_CHUNK):
        pending: bytes | memoryview = data[start : start + _DEFLATE_CHUNK]
        while len(pending) and not unpacker.eof:
            out += unpacker.decompress(pending, _DEFLATE_CHUNK)
            pending = unpacker.unconsumed_tail
            if len(out) > at_most:
                raise CheckpointError(f"{what} unpacks to more than the {at_most} bytes announced")
            check_expansion(what, len(out), len(data))
        if unpacker.eof:
            break
    while not unpacker.eof and len(out) <= at_most:  # what the stream still holds back
        more = unpacker.decompress(unpacker.unconsumed_tail, _DEFLATE_CHUNK)
        if not more:
            raise CheckpointError(f"{what} ends in the middle: the file is truncated")
        out += more
        check_expansion(what, len(out), len(data))
    return memoryview(out)


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
        members[info.filename] = Member(info.filename, data[start:end], info.file_size, compressed)
    ranges.sort()
    for (_, end, first), (start, _, second) in pairwise(ranges):
        if start < end:
            raise CheckpointError(f"{what}: members {first!r} and {second!r} overlap")
    return members
