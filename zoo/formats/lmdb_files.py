"""LMDB databases, read without the LMDB library: it maps the file and follows every number in it, so
that a file cut short or damaged ends the process.

A database is a tree of pages. Page 0 and page 1 are its two last states, of which the one with the
larger transaction counts: page size, number of the last page, root of the tree. A page lists nodes
by their places; a branch's node names a page, a leaf's node holds a key and a value, or the number of
the pages that hold a long value. Only the main database is read, with one value for each key.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from zoo.errors import CheckpointError
from zoo.formats.disk import open_regular

MAGIC, VERSION = 0xBEEFC0DE, 1
HEADER = struct.Struct("<QHHHH")  # number, padding, flags, end of the list of nodes, start of the nodes
META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
TREE = struct.Struct("<IHHQQQQQ")  # page size or padding, flags, depth, three counts of pages, entries, root
BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG, SUBTREE, DUPLICATES = 1, 2, 4  # flags of a node
NOTHING = (1 << 64) - 1
MAX_DEPTH = 32


def is_lmdb(head: bytes) -> bool:
    """Whether a file starts as an LMDB does."""
    return len(head) >= 24 and int.from_bytes(head[16:20], "little") == MAGIC


def read(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, in the order of the keys, of a ``data.mdb`` (or the folder that holds one)."""
    path = path / "data.mdb" if path.is_dir() else path
    with open_regular(path) as file:
        pages, root = _opened(file, path)
        if root != NOTHING:
            yield from pages.entries(root, 0)


def _opened(file: BinaryIO, path: Path) -> tuple[_Pages, int]:
    """The pages, and the root of the tree in its last whole state."""
    first = _state(file, 0)
    if first is None:
        raise CheckpointError(f"{path} does not start as an LMDB of version {VERSION} does")
    size = first[1]
    if not 512 <= size <= 65_536 or size & (size - 1):
        raise CheckpointError(f"{path} has pages of {size} bytes; a power of 2 from 512 to 65,536 was expected")
    second = _state(file, size)
    _, _, last, root, flags = max(first, second) if second is not None and second[1] == size else first
    length = os.fstat(file.fileno()).st_size
    if (root + 1) * size > length and root != NOTHING:
        raise CheckpointError(f"{path} has {length:,} bytes, its tree begins at {root * size:,}: it is truncated")
    if flags & 4:
        raise CheckpointError(f"{path} keeps several values for a key, which is not read")
    return _Pages(file, path, size, min(last, length // size)), root


def _state(file: BinaryIO, place: int) -> tuple[int, int, int, int, int] | None:
    """(transaction, page size, last page, root, flags of the main tree) of a page that holds a
    state.
    """
    file.seek(place + HEADER.size)
    raw = file.read(META.size + 2 * TREE.size + 16)
    if len(raw) < META.size + 2 * TREE.size + 16 or META.unpack_from(raw)[:2] != (MAGIC, VERSION):
        return None
    size = TREE.unpack_from(raw, META.size)[0]
    _, flags, *_, root = TREE.unpack_from(raw, META.size + TREE.size)
    last, transaction = struct.unpack_from("<QQ", raw, META.size + 2 * TREE.size)
    return transaction, size, last, root, flags


@dataclass
class _Pages:
    file: BinaryIO
    path: Path
    size: int
    last: int
    seen: set[int] = field(default_factory=set)  # each page belongs to one place of the tree
    taken: int = 0

    def broken(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {why}: the file is truncated or damaged")

    def take(self, number: int, count: int = 1) -> None:
        """Note that ``count`` pages from ``number`` on are used, here and nowhere else."""
        if not 2 <= number <= self.last or number + count - 1 > self.last:
            raise self.broken(f"page {number} is asked for, pages 2 to {self.last} are there")
        self.taken += count
        if number in self.seen or self.taken > self.last:
            raise self.broken(f"page {number} is used twice")
        self.seen.add(number)

    def bytes_of(self, number: int, offset: int, count: int) -> bytes:
        self.file.seek(number * self.size + offset)
        raw = self.file.read(count)
        if len(raw) < count:
            raise CheckpointError(f"{self.path} lacks {count - len(raw)} bytes of page {number}: it is truncated")
        return raw

    def entries(self, number: int, depth: int) -> Iterator[tuple[bytes, bytes]]:
        """What the tree below a page holds."""
        self.take(number)
        page = self.bytes_of(number, 0, self.size)
        _, _, flags, lower, _ = HEADER.unpack_from(page)
        count = (lower - HEADER.size) // 2
        if depth > MAX_DEPTH or flags & 0xF not in (BRANCH, LEAF) or not 0 <= count <= self.size // 2:
            raise self.broken(f"page {number} is neither a branch nor a leaf, or too deep")
        if HEADER.size + 2 * count > self.size:
            raise self.broken(f"page {number} lists {count} nodes")
        for place in struct.unpack_from(f"<{count}H", page, HEADER.size):
            if place + 8 > self.size:
                raise self.broken(f"a node lies outside page {number}")
            low, high, kind, key_size = struct.unpack_from("<HHHH", page, place)
            if flags & BRANCH:
                yield from self.entries(low | high << 16 | kind << 32, depth + 1)
                continue
            if kind & (SUBTREE | DUPLICATES):
                raise CheckpointError(f"{self.path} holds databases within the database, which are not read")
            start, size = place + 8 + key_size, low | high << 16
            if start + (8 if kind & BIG else size) > self.size:
                raise self.broken(f"a node reaches beyond page {number}")
            yield page[place + 8 : start], self.long(page, start, size) if kind & BIG else page[start : start + size]

    def long(self, page: bytes, place: int, size: int) -> bytes:
        """A value that lies in pages of its own."""
        number = int.from_bytes(page[place : place + 8], "little")
        count = -(-(size + HEADER.size) // self.size)
        self.take(number, count)
        if not HEADER.unpack(self.bytes_of(number, 0, HEADER.size))[2] & OVERFLOW:
            raise self.broken(f"page {number} should hold a long value")
        return self.bytes_of(number, HEADER.size, size)
