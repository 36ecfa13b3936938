"""Protocol buffers on the wire: the fields of one message, without a schema and without copying.

TensorFlow's checkpoint index, Paddle's tensor descriptions, ONNX and SentencePiece models are such
messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from zoo.errors import CheckpointError

Field = tuple[int, int | memoryview]  # number; an integer, or the bytes of a string, message or packed list

_FIXED = {1: 8, 5: 4}
_PIECE = 1 << 20


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """The unsigned integer of up to 64 bits at ``position``, and where it ends."""
    value = 0
    for i in range(10):
        if position + i >= len(data):
            raise CheckpointError("the file ends in the middle of a number: it is truncated or damaged")
        byte = data[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & ((1 << 64) - 1), position + i + 1
    raise CheckpointError(f"a number of more than ten bytes at byte {position}: the file is damaged")


def signed(value: int, bits: int = 64) -> int:
    """The signed integer of so many bits that a varint carries."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def fields(message: memoryview) -> Iterator[Field]:
    """The fields of a message in the order they were written."""
    position = 0
    while position < len(message):
        tag, position = varint(message, position)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise CheckpointError(f"a field has the number 0 before byte {position}: the file is damaged")
        if wire == 0:
            value, position = varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = varint(message, position)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise CheckpointError(f"field {number} has the wire type {wire}: the file is damaged")
        if size > len(message) - position:
            raise CheckpointError(
                f"field {number} claims {size} bytes where {len(message) - position} are left: the file is truncated "
                "or lies"
            )
        part = message[position : position + size]
        position += size
        yield number, int.from_bytes(part, "little") if wire in _FIXED else part


def integers(value: int | memoryview, limit: int) -> list[int]:
    """A repeated integer field, packed or not, of at most ``limit`` numbers."""
    if isinstance(value, int):
        return [signed(value)]
    numbers, position = [], 0
    while position < len(value):
        number, position = varint(value, position)
        numbers.append(signed(number))
        if len(numbers) > limit:
            raise CheckpointError(f"a list of more than {limit} integers where a shape is expected")
    return numbers


def packed_integers(value: int | memoryview) -> Iterator[np.ndarray[Any, Any]]:
    """A repeated integer field of any length, piece by piece, as uint64: a list of them would take
    ten times their bytes.
    """
    if isinstance(value, int):
        yield np.array([value & ((1 << 64) - 1)], np.uint64)
        return
    position = 0
    while position < len(value):
        raw = np.frombuffer(value[position : position + _PIECE], np.uint8)
        ends = np.flatnonzero(raw < 0x80)
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts + 1
        if not len(ends) or lengths.max() > 10:
            raise CheckpointError("a list of numbers ends in the middle of one: the file is truncated or damaged")
        numbers = np.zeros(len(ends), np.uint64)
        for place in range(int(lengths.max())):
            longer = lengths > place
            digits = raw[starts[longer] + place].astype(np.uint64) & np.uint64(0x7F)
            numbers[longer] |= digits << np.uint64(7 * place)
        yield numbers
        position += int(ends[-1]) + 1


def text(value: int | memoryview, limit: int = 4096) -> str:
    """A string field."""
    if isinstance(value, int) or len(value) > limit:
        raise CheckpointError(f"a field that should be a string of at most {limit} bytes is not")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError("a string that is not UTF-8: the file is damaged") from error


def message(value: int | memoryview) -> memoryview:
    """A field that holds bytes or another message."""
    if isinstance(value, int):
        raise CheckpointError("a number where a message is expected: the file is damaged")
    return value


def number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise CheckpointError("bytes where a number is expected: the file is damaged")
    return value
