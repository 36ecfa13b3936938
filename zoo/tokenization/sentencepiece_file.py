"""Reader of SentencePiece ``.model`` files: our own, of the protocol buffer wire format, bounded,
and with nothing believed unchecked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zoo.errors import CheckpointError
from zoo.tokenization.files import read_bytes

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
MAX_PIECES = 2_000_000
MAX_TRIE_STEPS = 1_000_000  # the widest public table (NFKC with case folding) has 264,227
MAX_PIECE_LENGTH = 512  # characters; the trainer's default is 16


# --- the wire format


def fields_of(data: memoryview, what: str) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of one message: a varint as int, anything else as the bytes
    that it is.
    """
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place, what)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise CheckpointError(f"{what}: a field has the number 0 at byte {place}")
        if wire == 0:
            value, place = _varint(data, place, what)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place, what)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise CheckpointError(f"{what}: field {number} has the wire type {wire}; only 0, 1, 2 and 5 are in use")
        if size > end - place:
            raise CheckpointError(f"{what}: field {number} claims {size:,} bytes where {end - place:,} are left")
        yield number, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int, what: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise CheckpointError(f"{what}: the file ends in the middle of a number")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), place
    raise CheckpointError(f"{what}: a number of more than ten bytes at byte {place}")


def _integer(value: int | memoryview, what: str) -> int:
    if not isinstance(value, int):
        raise CheckpointError(f"{what}: a number was expected, got {len(value)} bytes")
    value &= 2**32 - 1
    return value - 2**32 if value >= 2**31 else value


def _bytes(value: int | memoryview, what: str) -> memoryview:
    if isinstance(value, int):
        raise CheckpointError(f"{what}: bytes were expected, got the number {value}")
    return value


def _text(value: int | memoryview, what: str) -> str:
    try:
        return bytes(_bytes(value, what)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what}: a piece is not UTF-8 text") from error


# --- the model


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What a ``.model`` says that matters for encoding; ids are the order of the pieces."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    algorithm: int = UNIGRAM
    byte_fallback: bool = False
    space_at_end: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    what: str = field(default="the model", compare=False)

    @cached_property
    def rules(self) -> Mapping[str, str]:
        """The normalizer's table as text -> replacement."""
        return rules_of(self.charsmap) if self.charsmap else {}

    @property
    def unk_id(self) -> int:
        return self.types.index(UNKNOWN)


def read_sentencepiece(path: Path | str) -> SentencePieceModel:
    """Read and check a ``.model`` file; nothing of it is believed before it is checked."""
    path = Path(path)
    return parse_sentencepiece(read_bytes(path), str(path))


def parse_sentencepiece(data: bytes, what: str = "the model") -> SentencePieceModel:
    pieces: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer, normalizer = b"", b""
    for number, value in fields_of(memoryview(data), what):
        if number == 1:
            piece, score, kind = "", 0.0, NORMAL
            for inner, content in fields_of(_bytes(value, what), what):
                if inner == 1:
                    piece = _text(content, what)
                elif inner == 2:
                    raw = _bytes(content, what)
                    if len(raw) != 4:
                        raise CheckpointError(f"{what}: the score of piece {len(pieces)} has {len(raw)} bytes, not 4")
                    score = float(struct.unpack("<f", raw)[0])
                elif inner == 3:
                    kind = _integer(content, what)
            pieces.append(piece)
            scores.append(score)
            types.append(kind)
            if len(pieces) > MAX_PIECES:
                raise CheckpointError(f"{what} has more than {MAX_PIECES:,} pieces")
        elif number == 2:
            trainer += _bytes(
                value, what
            )  # a message given twice is merged, which for the wire format is joining the bytes
        elif number == 3:
            normalizer += _bytes(value, what)

    options: dict[str, Any] = {}
    for number, value in fields_of(memoryview(trainer), what):
        if number == 3:
            options["algorithm"] = _integer(value, what)
        elif number == 24:
            options["space_at_end"] = bool(_integer(value, what))
        elif number == 35:
            options["byte_fallback"] = bool(_integer(value, what))
    for number, value in fields_of(memoryview(normalizer), what):
        if number == 2:
            options["charsmap"] = bytes(_bytes(value, what))
        elif number == 3:
            options["add_dummy_prefix"] = bool(_integer(value, what))
        elif number == 4:
            options["remove_extra_whitespaces"] = bool(_integer(value, what))
        elif number == 5 and not _integer(value, what):
            raise CheckpointError(
                f"{what} keeps blanks as blanks (escape_whitespaces is false); only pieces with {SPACE} are read here"
            )
    model = SentencePieceModel(pieces=tuple(pieces), scores=tuple(scores), types=tuple(types), what=what, **options)
    _check(model)
    return model


def _check(model: SentencePieceModel) -> None:
    what = model.what
    if not model.pieces:
        raise CheckpointError(f"{what} holds no pieces, so it is no SentencePiece model")
    if model.algorithm not in (UNIGRAM, BPE):
        raise CheckpointError(
            f"{what} was trained as model type {model.algorithm}; unigram (1) and BPE (2) are read here, word and char "
            "are not"
        )
    if len(set(model.pieces)) != len(model.pieces):
        raise CheckpointError(f"{what} lists a piece twice")
    if model.types.count(UNKNOWN) != 1:
        raise CheckpointError(f"{what} must have one unknown piece, it has {model.types.count(UNKNOWN)}")
    for index, (piece, score, kind) in enumerate(zip(model.pieces, model.scores, model.types, strict=True)):
        if not 0 < len(piece) <= MAX_PIECE_LENGTH:
            raise CheckpointError(
                f"{what}: piece {index} has {len(piece)} characters; 1 to {MAX_PIECE_LENGTH} are allowed"
            )
        if not math.isfinite(score) or abs(score) > 1e9:
            raise CheckpointError(f"{what}: piece {index} ({piece!r}) has the score {score}")
        if not NORMAL <= kind <= BYTE:
            raise CheckpointError(f"{what}: piece {index} ({piece!r}) has the type {kind}; types are 1 to 6")
    if model.byte_fallback and sum(kind == BYTE for kind in model.types) != 256:
        raise CheckpointError(
            f"{what} says byte fallback but has {sum(kind == BYTE for kind in model.types)} byte pieces, not 256"
        )
    _ = model.rules  # a broken table is met here and not in the middle of a text


# --- the normalizer's table


@lru_cache(maxsize=1)  # half a second for the public tables, which most models share
def rules_of(blob: bytes, what: str = "the SentencePiece model") -> Mapping[str, str]:
    """The table as text -> replacement, having followed every path of its double-array trie, so
    that no text can lead outside it.

    A unit: bits 0-7 the byte it is reached by, bit 8 whether a key ends here, bits 10-30 the offset
    to its children (times 256 where bit 9 is set), or with bit 31 a value: where in the strings
    behind the trie the replacement starts.
    """
    import numpy

    if len(blob) < 4:
        raise CheckpointError(f"{what}: the normalizer's table has {len(blob)} bytes")
    size = int.from_bytes(blob[:4], "little")
    strings = blob[4 + size :]
    if size % 1024 or not 0 < size < len(blob) - 4:
        raise CheckpointError(
            f"{what}: the normalizer's trie claims {size:,} bytes of {len(blob) - 4:,}; a multiple of 1024 was expected"
        )
    if not strings.endswith(b"\0"):
        raise CheckpointError(f"{what}: the normalizer's last replacement has no end")

    units = numpy.frombuffer(blob, dtype="<u4", count=size // 4, offset=4).astype(numpy.int64)
    offsets = (units >> 10) << ((units & 0x200) >> 6)
    labels = numpy.arange(1, 256)
    rules: dict[str, str] = {}
    visited, keys, bases = (
        0,
        [b""],
        offsets[:1],
    )  # a base is where the children lie: the unit's own place xor its offset
    while len(bases):
        if bases.max() >= len(units):
            raise CheckpointError(f"{what}: the normalizer's trie leads outside itself")
        children = bases[:, None] ^ labels  # (nodes, 255), inside the trie because blocks of 256 units are whole
        parents, steps = numpy.nonzero((units[children] & 0x800000FF) == labels)
        nodes = children[parents, steps]
        visited += len(nodes)  # keys share their ends in the trie, so a forged one could have endless keys
        if visited > MAX_TRIE_STEPS:
            raise CheckpointError(f"{what}: the normalizer's trie has more than {MAX_TRIE_STEPS:,} ways through it")
        keys = [
            keys[parent] + bytes((step + 1,)) for parent, step in zip(parents.tolist(), steps.tolist(), strict=True)
        ]
        bases = nodes ^ offsets[nodes]
        for row in numpy.nonzero(units[nodes] & 0x100)[0].tolist():
            place = int(bases[row])
            start = int(units[place]) & 0x7FFFFFFF if place < len(units) else len(strings)
            if start >= len(strings):
                raise CheckpointError(f"{what}: the normalizer's trie points outside its replacements")
            try:
                rules[keys[row].decode("utf-8")] = strings[start : strings.index(b"\0", start)].decode("utf-8")
            except UnicodeDecodeError as error:
                raise CheckpointError(
                    f"{what}: the normalizer's table is not UTF-8 text at the key {keys[row]!r}"
                ) from error
    return MappingProxyType(rules)
