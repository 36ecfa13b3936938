"""Parameters that Flax saved as MessagePack, such as ``flax_model.msgpack`` of transformers, under the
names and in the layout that the torch model has: ``kernel`` is ``weight``, transposed, ``scale`` and
``embedding`` are ``weight``.

MessagePack has a small grammar of values; Flax adds arrays (type 1: shape, dtype, bytes) and splits
those above a gigabyte into chunks. Nothing is executed, and arrays stay in the mapped file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.formats.buffers import tensor_at
from zoo.formats.limits import MAX_DEPTH, MAX_DIMENSIONS, MAX_NAME, MAX_NODES, is_count, printable, repr_short

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
CHUNKED = "__msgpack_chunked_array__"
ARRAY = 1
# first byte -> struct code of the number behind it
NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes of a length
SIZED |= {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}  # bytes of a value of a type of its own


@dataclass(frozen=True)
class _Extension:
    kind: int
    data: memoryview


@dataclass
class _Reader:
    """Reads the values of a file one after another."""

    what: str
    data: memoryview
    position: int = 0
    nodes: int = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.position:
            raise CheckpointError(f"{self.what} ends in the middle of a value: it is truncated or damaged")
        part = self.data[self.position : self.position + count]
        self.position += count
        return part

    def integer(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def value(self, depth: int = 0) -> Any:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise CheckpointError(
                f"{self.what} is nested deeper than {MAX_DEPTH} or holds more than {MAX_NODES} values"
            )
        first = self.integer(1)
        if first <= 0x7F or first >= 0xE0:
            return first if first <= 0x7F else first - 0x100
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first in NUMBERS:
            return struct.unpack(NUMBERS[first], self.take(struct.calcsize(NUMBERS[first])))[0]
        if first in FIXED:
            return _Extension(self.integer(1), self.take(FIXED[first]))
        size = self.integer(SIZED[first]) if first in SIZED else first & (0x1F if 0xA0 <= first <= 0xBF else 0x0F)
        if first <= 0x8F or first in (0xDE, 0xDF):
            return self.table(size, depth)
        if first <= 0x9F or first in (0xDC, 0xDD):
            return [self.value(depth + 1) for _ in range(size)]
        if first <= 0xBF or first in (0xD9, 0xDA, 0xDB):
            return str(self.take(size), "utf-8")
        if first in (0xC4, 0xC5, 0xC6):
            return self.take(size)
        if first in (0xC7, 0xC8, 0xC9):
            return _Extension(self.integer(1), self.take(size))
        raise CheckpointError(f"{self.what} has the byte {first:#04x}, which begins no value of MessagePack")

    def table(self, size: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(size):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found:
                raise CheckpointError(f"{self.what} has the key {printable(repr_short(key))} twice, or as no string")
            found[key] = self.value(depth + 1)
        return found


def is_flax(data: memoryview) -> bool:
    """A table whose first key is a string."""
    skip = {0xDE: 3, 0xDF: 5}.get(data[0], 1) if len(data) > 8 else 0
    if not skip or (skip == 1 and not 0x81 <= data[0] <= 0x8F):
        return False
    return 0xA0 <= data[skip] <= 0xBF or 0xD9 <= data[skip] <= 0xDB


def read(path: Path, data: memoryview) -> Archive:
    reader = _Reader(str(path), data)
    top = reader.value()
    if reader.position != len(data):
        raise CheckpointError(f"{path} has {len(data) - reader.position} bytes behind its end: it is damaged")
    if isinstance(top.get("params"), Mapping):  # of a training state, beside its optimizer
        top = top["params"]
    entries: dict[str, Entry] = {}
    refused: list[str] = []
    waiting: list[tuple[tuple[str, ...], Any]] = [((), top)]
    while waiting:
        place, value = waiting.pop()
        shown = printable("/".join(place))
        if isinstance(value, Mapping) and CHUNKED not in value:
            waiting += [((*place, *key.split("/")), part) for key, part in [*value.items()][::-1]]
            continue
        parts = _parts(f"{path}: {shown!r}", value)
        if parts is None:
            refused.append(f"{printable(repr_short(value))} at {shown}")
            continue
        dtype, shape, pieces = parts
        name, turned = (
            ".".join([*place[:-1], LAST.get(place[-1], place[-1])]),
            place[-1] == "kernel" and len(shape) == 2,
        )
        if name in entries or len(name) > MAX_NAME or not name.isprintable():
            raise CheckpointError(
                f"{path}: {shown!r} would be called {printable(name)!r}, as another is, or is no name"
            )
        info = TensorInfo(name, shape[::-1] if turned else shape, dtype)
        entries[name] = Entry(info, lambda p=pieces, d=dtype, s=shape, t=turned: _load(p, d, s, t))  # type: ignore[misc]
    return Archive(path, "flax", entries, refused=refused)


def _parts(what: str, value: Any) -> tuple[str, tuple[int, ...], list[memoryview]] | None:
    """The dtype, the shape and the bytes, perhaps in chunks, of an array; None for other values."""
    if isinstance(value, Mapping):  # of a chunked array: {"shape": {"0": ...}, "chunks": {"0": array, ...}}
        chunks = [_parts(what, value["chunks"][str(n)]) for n in range(len(value["chunks"]))]
        shape = tuple(value["shape"][str(n)] for n in range(len(value["shape"])))
        if not chunks or any(chunk is None or chunk[0] != chunks[0][0] for chunk in chunks):  # type: ignore[index]
            raise CheckpointError(f"{what} is made of chunks that are no arrays of one dtype")
        dtype, pieces = chunks[0][0], [piece for chunk in chunks for piece in chunk[2]]  # type: ignore[index, union-attr]
    elif isinstance(value, _Extension) and value.kind == ARRAY:
        reader = _Reader(what, value.data)
        written = reader.value()
        if not isinstance(written, list) or len(written) != 3 or not isinstance(written[0], list):
            raise CheckpointError(f"{what} is no array of shape, dtype and bytes")
        shape, named, raw = tuple(written[0]), written[1], written[2]
        named = str(named, "utf-8") if isinstance(named, memoryview) else named
        if named not in DTYPES or not isinstance(raw, memoryview):
            raise CheckpointError(f"{what} has the dtype {printable(repr_short(named))}; known are {', '.join(DTYPES)}")
        dtype, pieces = DTYPES[named], [raw]
    else:
        return None
    if len(shape) > MAX_DIMENSIONS or not all(is_count(size) for size in shape):
        raise CheckpointError(f"{what} has the shape {shape[:8]}")
    if (held := sum(map(len, pieces))) != (needed := math.prod(shape) * ITEM_SIZES[dtype]):
        raise CheckpointError(f"{what} of {dtype} {shape[:8]} needs {needed} bytes, the file holds {held}")
    return dtype, shape, pieces


def _load(pieces: list[memoryview], dtype: str, shape: tuple[int, ...], turned: bool) -> torch.Tensor:
    flat = [tensor_at(piece, 0, dtype, (len(piece) // ITEM_SIZES[dtype],)) for piece in pieces]
    tensor = (flat[0] if len(flat) == 1 else torch.cat(flat)).reshape(shape)
    return tensor.t().contiguous() if turned else tensor
