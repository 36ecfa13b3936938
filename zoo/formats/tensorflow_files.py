"""TensorFlow checkpoints, read without TensorFlow: ``NAME.index`` and ``NAME.data-00000-of-00001``.

The index is a sorted string table (the table format of LevelDB) from tensor names to messages that
say dtype, shape, shard, offset and size; the shards are the raw bytes. A partitioned variable has
one entry that lists its slices, and one for each slice under an encoded name; it is joined when
read. Names come out as stored: ``bert/encoder/layer_0/attention/self/query/kernel``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, TORCH_DTYPES, Archive, Entry, TensorInfo
from zoo.formats.buffers import tensor_at
from zoo.formats.crc32c import masked
from zoo.formats.limits import MAX_DIMENSIONS, MAX_NAME, MIB, check_expansion, printable
from zoo.formats.protobuf import fields, message, number, signed, text, varint

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TRAILER = 5  # after each block: how it is packed, and a checksum
MAX_INDEX = 64 * MIB
MAX_KEYS = 400_000
MAX_BLOCKS = 100_000
MAX_SHARDS = 10_000
MAX_SLICES = 10_000
DTYPES = {
    1: "F32", 2: "F64", 3: "I32", 4: "U8", 5: "I16", 6: "I8", 8: "C64", 9: "I64", 10: "BOOL", 14: "BF16", 17: "U16",
    18: "C128", 19: "F16", 22: "U32", 23: "U64", 24: "F8_E5M2", 25: "F8_E4M3",
}  # fmt: skip

Lookup = Callable[[str], memoryview | None]
Extent = tuple[tuple[int, int], ...]  # start and length in each dimension; length -1 is all of it


@dataclass
class _Record:
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    shard: int = 0
    offset: int = 0
    size: int = 0
    checksum: int | None = None
    slices: list[Extent] = field(default_factory=list)


def is_index(data: memoryview) -> bool:
    return len(data) >= FOOTER and int.from_bytes(data[-8:], "little") == MAGIC


def read(
    path: Path, name: str, data: memoryview, lookup: Lookup, files: Callable[[str], Path | None] = lambda name: None
) -> Archive:
    """The checkpoint whose index, called ``name``, is ``data``; ``lookup`` gives the bytes of the
    shards by name.
    """
    if len(data) > MAX_INDEX:
        raise CheckpointError(f"{path}: an index of {len(data)} bytes; at most {MAX_INDEX} are read")
    records: dict[bytes, _Record] = {}
    header: memoryview | None = None
    for key, value in _table(data):
        if key == b"":
            if header is not None:
                raise CheckpointError(f"{path} has two headers")
            header = value
        elif key in records:
            raise CheckpointError(f"{path} lists {printable(key.decode('utf-8', 'replace'))!r} twice")
        elif len(records) >= MAX_KEYS:
            raise CheckpointError(f"{path} lists more than {MAX_KEYS} tensors")
        else:
            records[key] = _record(value)
    if header is None:
        raise CheckpointError(f"{path} is a string table without the header of a TensorFlow checkpoint")
    count = 1
    for tag, part in fields(header):
        count = number(part) if tag == 1 else count
        if tag == 2 and part:
            raise CheckpointError(
                f"{path} was written on a big-endian machine; only little-endian checkpoints are read"
            )
    if not 1 <= count <= MAX_SHARDS:
        raise CheckpointError(f"{path} announces {count} shards; 1 to {MAX_SHARDS} are read")
    prefix = name.removesuffix(".index")
    shards: dict[int, memoryview] = {}
    used: list[str] = []

    def shard(index: int) -> memoryview:
        if index not in shards:
            file = f"{prefix}.data-{index:05d}-of-{count:05d}"
            found = lookup(file) if 0 <= index < count else None
            if found is None:
                raise CheckpointError(f"{path} needs the file {printable(file)!r} beside it, which is missing")
            shards[index] = found
            used.append(file)
        return shards[index]

    def located(key: bytes, record: _Record) -> tuple[memoryview, str]:
        dtype = DTYPES[record.dtype]
        expected = math.prod(record.shape) * ITEM_SIZES[dtype]
        shown = printable(key.decode("utf-8", "replace"))
        if record.size != expected:
            raise CheckpointError(
                f"{path}: tensor {shown!r} of {dtype} {record.shape} needs {expected} bytes, the index says "
                f"{record.size}"
            )
        data = shard(record.shard)
        if record.offset + record.size > len(data):
            raise CheckpointError(
                f"{path}: tensor {shown!r} ends at byte {record.offset + record.size}, its shard has {len(data)}: it "
                "is truncated"
            )
        return data, dtype

    entries: dict[str, Entry] = {}
    refused: list[str] = []
    parts = {slice_key(key, extent) for key, record in records.items() for extent in record.slices}
    for key, record in records.items():
        if key in parts:
            continue
        shown = text(memoryview(key), MAX_NAME)
        if not shown.isprintable():
            raise CheckpointError(f"{path} names a tensor {printable(shown)!r}, which is not printable")
        if record.dtype not in DTYPES:
            refused.append(f"a tensor of {'strings' if record.dtype == 7 else f'type {record.dtype}'} at {shown}")
            continue
        info = TensorInfo(shown, tuple(record.shape), DTYPES[record.dtype])
        if record.slices:
            pieces = [
                (extent, *_piece(path, info, records, slice_key(key, extent), extent, located))
                for extent in record.slices
            ]
            covered = sum(math.prod(shape) for _, _, shape, _ in pieces)
            if covered != info.numel:
                raise CheckpointError(f"{path}: the slices of {shown!r} hold {covered} of its {info.numel} elements")
            check_expansion(f"{path}: tensor {shown!r}", info.nbytes, covered * ITEM_SIZES[info.dtype])
            entries[shown] = Entry(info, lambda info=info, pieces=pieces: _join(info, pieces))  # type: ignore[misc]
        else:
            where, _ = located(key, record)
            entries[shown] = Entry(
                info,
                partial(_loaded, info, where, record),
                (record.shard, record.offset, info.dtype, info.shape),
            )
    paths = [found for file in used if (found := files(file)) is not None]
    return Archive(path, "tensorflow", entries, refused=refused, files=(path, *paths))


Piece = tuple[Extent, memoryview, tuple[int, ...], _Record]  # extent, bytes of the shard, shape, where


def _loaded(info: TensorInfo, data: memoryview, record: _Record, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """A tensor, or one slice of it, held against its checksum."""
    tensor = tensor_at(data, record.offset, info.dtype, info.shape if shape is None else shape)
    if record.checksum is not None:
        flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
        if info.dtype != "BOOL" and (found := masked(flat.numpy().data)) != record.checksum:
            raise CheckpointError(
                f"tensor {info.name!r} has checksum {found:#010x}, stored is {record.checksum:#010x}: the file is "
                "damaged"
            )
    return tensor


def _piece(
    path: Path,
    info: TensorInfo,
    records: dict[bytes, _Record],
    key: bytes,
    extent: Extent,
    located: Callable[[bytes, _Record], tuple[memoryview, str]],
) -> tuple[memoryview, tuple[int, ...], _Record]:
    record = records.get(key)
    if record is None or record.slices or record.dtype not in DTYPES or DTYPES[record.dtype] != info.dtype:
        raise CheckpointError(f"{path}: a slice of {info.name!r} is missing or of another type")
    if len(extent) != len(info.shape):
        raise CheckpointError(
            f"{path}: a slice of {info.name!r} has {len(extent)} dimensions, the tensor {len(info.shape)}"
        )
    shape = tuple(full if length < 0 else length for full, (_, length) in zip(info.shape, extent, strict=True))
    inside = all(
        start >= 0 and start + size <= full for full, size, (start, _) in zip(info.shape, shape, extent, strict=True)
    )
    if not inside or shape != tuple(record.shape):
        raise CheckpointError(f"{path}: a slice of {info.name!r} lies outside it or has another shape than announced")
    data, _ = located(key, record)
    return data, shape, record


def _join(info: TensorInfo, pieces: list[Piece]) -> torch.Tensor:
    whole = torch.empty(info.shape, dtype=TORCH_DTYPES[info.dtype])
    seen = torch.zeros(info.shape, dtype=torch.bool)
    for extent, data, shape, record in pieces:
        at = tuple(slice(start, start + size) for (start, _), size in zip(extent, shape, strict=True))
        if bool(seen[at].any()):
            raise CheckpointError(f"the slices of {info.name!r} overlap")
        seen[at] = True
        whole[at] = _loaded(info, data, record, shape)
    return whole


def _record(data: memoryview) -> _Record:
    record = _Record()
    for tag, value in fields(data):
        if tag == 1:
            record.dtype = number(value)
        elif tag == 2:
            record.shape = _shape(message(value))
        elif tag == 3:
            record.shard = number(value)
        elif tag == 4:
            record.offset = number(value)
        elif tag == 5:
            record.size = number(value)
        elif tag == 6:
            record.checksum = number(value)
        elif tag == 7:
            record.slices.append(_extents(message(value)))
            if len(record.slices) > MAX_SLICES:
                raise CheckpointError(f"a tensor in more than {MAX_SLICES} slices")
    return record


def _shape(data: memoryview) -> list[int]:
    shape: list[int] = []
    for tag, value in fields(data):
        if tag == 2:
            size = next((signed(number(part)) for inner, part in fields(message(value)) if inner == 1), 0)
            shape.append(size)
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape) or math.prod(shape) >= 1 << 62:
        raise CheckpointError(f"the shape {shape[:8]} is not one of a stored tensor")
    return shape


def _extents(data: memoryview) -> Extent:
    extents: list[tuple[int, int]] = []
    for tag, value in fields(data):
        if tag == 1:
            parts = dict(fields(message(value)))
            extents.append((signed(number(parts.get(1, 0))), signed(number(parts[2])) if 2 in parts else -1))
    if len(extents) > MAX_DIMENSIONS:
        raise CheckpointError(f"a slice of {len(extents)} dimensions")
    return tuple(extents)


# --- the string table


def _table(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The keys and values of the table, in order."""
    if not is_index(data):
        raise CheckpointError(
            "no string table: the last bytes are not its magic number; the file is truncated or something else"
        )
    footer = data[len(data) - FOOTER :]
    _, position = varint(footer, 0)
    _, position = varint(footer, position)
    offset, position = varint(footer, position)
    size, _ = varint(footer, position)
    end = 0
    for blocks, (_, handle) in enumerate(_block(data, offset, size)):
        start, position = varint(handle, 0)
        length, _ = varint(handle, position)
        if blocks >= MAX_BLOCKS:
            raise CheckpointError(f"a string table of more than {MAX_BLOCKS} blocks")
        if start < end:
            raise CheckpointError(
                f"the block at byte {start} of a string table begins before the last one ends, at {end}"
            )
        end = start + length + TRAILER
        yield from _block(data, start, length)


def _block(data: memoryview, offset: int, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """The entries of a block: each key drops the start that it shares with the one before."""
    if offset + size + TRAILER > len(data) - FOOTER or size < 4:
        raise CheckpointError(f"a block of {size} bytes at {offset} does not fit into a table of {len(data)} bytes")
    block = data[offset : offset + size]
    if data[offset + size] != 0:
        raise CheckpointError(
            f"a block is compressed (method {data[offset + size]}); TensorFlow writes its indexes uncompressed"
        )
    check_sum(
        data[offset : offset + size + 1], int.from_bytes(data[offset + size + 1 : offset + size + TRAILER], "little")
    )
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise CheckpointError(f"a block of {size} bytes announces {restarts} restart points")
    position, key = 0, b""
    while position < end:
        shared, position = varint(block, position)
        added, position = varint(block, position)
        length, position = varint(block, position)
        if shared > len(key) or shared + added > 2 * MAX_NAME or position + added + length > end:
            raise CheckpointError("an entry of a string table reaches beyond its block: the file is damaged")
        key = key[:shared] + bytes(block[position : position + added])
        position += added
        yield key, block[position : position + length]
        position += length


def check_sum(data: memoryview, stored: int) -> None:
    """Hold a block against its checksum."""
    found = masked(data)
    if found != stored:
        raise CheckpointError(
            f"a block of the index has checksum {found:#010x}, stored is {stored:#010x}: the file is damaged"
        )


# --- the encoded names of slices: numbers and strings whose bytes sort like the values


def slice_key(name: bytes, extent: Extent) -> bytes:
    """The key of one slice of a partitioned variable: 0, the name, the rank, then start and length
    of each dimension.
    """
    parts = [_ordered_number(0), _escaped(name), b"\0\x01"]
    parts.append(_ordered_number(len(extent)))
    for start, length in extent:
        parts += [_ordered_signed(start), _ordered_signed(length)]
    return b"".join(parts)


def _escaped(name: bytes) -> bytes:
    return b"".join({0: b"\0\xff", 255: b"\xff\0"}.get(byte, bytes([byte])) for byte in name)


def _ordered_number(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _ordered_signed(value: int) -> bytes:
    """``length`` leading bits tell how many bytes follow; a negative number is the complement of a
    positive one.
    """
    magnitude = ~value if value < 0 else value
    length = next(n for n in range(1, 11) if magnitude < 1 << (7 * n - 1))
    raw = value.to_bytes(length, "big", signed=True)
    mark = ((1 << length) - 1) << (16 - length)  # ``length`` ones at the top of two bytes
    head = int.from_bytes(raw[:2].ljust(2, b"\0"), "big") ^ mark
    return head.to_bytes(2, "big")[: min(length, 2)] + raw[2:]
