"""CRC-32C (Castagnoli), which TensorFlow keeps of each block of an index and of each tensor.

    state = zeros_4(state ^ word)            for each 32-bit word; the first is turned by the initial ones

``zeros_k`` is what k zero bytes do to the state, and it is linear. So a file is laid out in rows, and
row after row is folded onto the next: ``state = zeros_row(state) ^ row``, a whole row at once; what is
left is halved until one word remains. numpy does about 400 MB in a second so, on one x86 core.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
MASK_DELTA = 0xA282EAD8
NARROW, WIDE = 64, 16_384  # words of a row: for the index and small tensors, for large ones

Words = np.ndarray[Any, Any]


def crc32c(data: memoryview | bytes) -> int:
    """The CRC-32C of some bytes."""
    size = len(data)
    if size < 4:
        register = 0xFFFFFFFF
        for byte in bytes(data):
            register = _zero_byte(register ^ byte)
        return register ^ 0xFFFFFFFF
    width = WIDE if size >= 16 * WIDE else NARROW
    block = 4 * width
    first = size % block if size % block >= 4 else size % block + block
    ahead = -first % block  # zeros in front of a message change nothing
    head = bytearray(ahead) + bytes(data[:first])
    for place in range(ahead, ahead + 4):
        head[place] ^= 0xFF
    low, high = _tables(width)
    state: Words = np.zeros(width, np.uint32)
    for source, start in ((memoryview(head), 0), (memoryview(data), first)):
        for position in range(start, len(source), block):
            row = np.frombuffer(source[position : position + block], "<u4")
            state = low[state & 0xFFFF] ^ high[state >> 16] ^ row
    while len(state) > 1:
        half = len(state) // 2
        state = _applied(_zeros(half.bit_length() - 1), state[:half]) ^ state[half:]
    return int(_applied(_zeros(0), state)[0]) ^ 0xFFFFFFFF


def masked(data: memoryview | bytes) -> int:
    """The checksum as LevelDB and TensorFlow store it: rotated, and shifted by a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def _zero_byte(state: int) -> int:
    for _ in range(8):
        state = (state >> 1) ^ (POLYNOMIAL if state & 1 else 0)
    return state


@cache
def _zeros(power: int) -> tuple[int, ...]:
    """What ``4 * 2 ** power`` zero bytes make of each of the 32 bits of a state."""
    if power == 0:
        columns = [1 << bit for bit in range(32)]
        for _ in range(4):
            columns = [_zero_byte(column) for column in columns]
        return tuple(columns)
    before = _zeros(power - 1)
    return tuple(int(word) for word in _applied(before, np.array(before, np.uint32)))


def _applied(columns: tuple[int, ...], words: Words) -> Words:
    out = np.zeros_like(words)
    for bit, column in enumerate(columns):
        out ^= np.where(words >> np.uint32(bit) & np.uint32(1), np.uint32(column), np.uint32(0))
    return out


@cache
def _tables(width: int) -> tuple[Words, Words]:
    """What the zeros of a row make of the low and of the high half of a state."""
    columns, halves = _zeros(width.bit_length() - 1), np.arange(1 << 16, dtype=np.uint32)
    return _applied(columns, halves), _applied(columns, halves << np.uint32(16))
