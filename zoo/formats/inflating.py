"""Deflated bytes, unpacked within bounds."""

from __future__ import annotations

import zlib

from zoo.errors import CheckpointError
from zoo.formats.limits import check_expansion

_DEFLATE_CHUNK = 1 << 20


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
