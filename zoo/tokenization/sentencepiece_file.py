"""Reader of SentencePiece ``.model`` files: protocol buffers, bounded, with nothing believed
unchecked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zoo.errors import CheckpointError
from zoo.formats.protobuf import fields, message, number, signed, text
from zoo.tokenization.files import read_bytes

Value = int | memoryview  # of a field
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
MAX_PIECES = 2_000_000
MAX_TRIE_STEPS = 1_000_000  # the widest public table (NFKC with case folding) has 264,227
MAX_KEY, MAX_REPLACEMENT = 128, 1024  # bytes; the longest public ones are 18 and 33
MAX_TABLE_BYTES = 32 << 20  # of all keys and replacements together
MAX_FIXED_PIECES = 10_000  # control pieces and user-defined symbols
NODES_AT_ONCE = 4096
MAX_PIECE_LENGTH = 512  # characters; the trainer's default is 16


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
    try:
        model = _parse(memoryview(data), what)
        _check(model)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error
    return model


def _flag(value: Value) -> bool:
    return bool(number(value))


def _enum(value: Value) -> int:
    return signed(number(value), 32)


# fields of the messages ModelProto, TrainerSpec and NormalizerSpec that are read: number -> name, how
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_TRAINER_FIELDS: Mapping[int, tuple[str, Callable[[Value], Any]]] = {
    3: ("algorithm", _enum),
    24: ("space_at_end", _flag),
    35: ("byte_fallback", _flag),
}
_NORMALIZER_FIELDS: Mapping[int, tuple[str, Callable[[Value], Any]]] = {
    2: ("charsmap", lambda value: bytes(message(value))),
    3: ("add_dummy_prefix", _flag),
    4: ("remove_extra_whitespaces", _flag),
    5: ("escape_whitespaces", _flag),
}


def _parse(data: memoryview, what: str) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    specs = {_TRAINER: bytearray(), _NORMALIZER: bytearray()}
    for part, value in fields(data):
        if part == _PIECES:
            pieces.append(_piece(message(value)))
            if len(pieces) > MAX_PIECES:
                raise CheckpointError(f"more than {MAX_PIECES:,} pieces")
        elif part in specs:  # a message given twice is merged, which on the wire is joining the bytes
            specs[part] += message(value)
    options: dict[str, Any] = {}
    for part, known in ((_TRAINER, _TRAINER_FIELDS), (_NORMALIZER, _NORMALIZER_FIELDS)):
        found = [(known[field], value) for field, value in fields(memoryview(specs[part])) if field in known]
        options |= {name: read(value) for (name, read), value in found}
    if not options.pop("escape_whitespaces", True):
        raise CheckpointError(
            f"it keeps blanks as blanks (escape_whitespaces is false); only pieces with {SPACE} are read here"
        )
    texts, scores, types = zip(*pieces, strict=True) if pieces else ((), (), ())
    return SentencePieceModel(pieces=texts, scores=scores, types=types, what=what, **options)


def _piece(data: memoryview) -> tuple[str, float, int]:
    piece, score, kind = "", 0.0, NORMAL
    for place, value in fields(data):
        if place == 1:
            piece = text(value, 1 << 20)
        elif place == 2:
            score = float(struct.unpack("<f", struct.pack("<I", number(value)))[0])
        elif place == 3:
            kind = _enum(value)
    return piece, score, kind


def _check(model: SentencePieceModel) -> None:
    if not model.pieces:
        raise CheckpointError("it holds no pieces, so it is no SentencePiece model")
    if model.algorithm not in (UNIGRAM, BPE):
        raise CheckpointError(
            f"it was trained as model type {model.algorithm}; unigram (1) and BPE (2) are read here, word and char are "
            "not"
        )
    if len(set(model.pieces)) != len(model.pieces):
        raise CheckpointError("it lists a piece twice")
    if model.types.count(UNKNOWN) != 1:
        raise CheckpointError(f"it must have one unknown piece, it has {model.types.count(UNKNOWN)}")
    if (fixed := sum(kind in (CONTROL, USER_DEFINED) for kind in model.types)) > MAX_FIXED_PIECES:
        raise CheckpointError(
            f"{fixed:,} control pieces and user-defined symbols; at most {MAX_FIXED_PIECES:,} are read"
        )
    for index, (piece, score, kind) in enumerate(zip(model.pieces, model.scores, model.types, strict=True)):
        if not 0 < len(piece) <= MAX_PIECE_LENGTH:
            raise CheckpointError(f"piece {index} has {len(piece)} characters; 1 to {MAX_PIECE_LENGTH} are allowed")
        if not math.isfinite(score) or abs(score) > 1e9:
            raise CheckpointError(f"piece {index} ({piece!r}) has the score {score}")
        if not NORMAL <= kind <= BYTE:
            raise CheckpointError(f"piece {index} ({piece!r}) has the type {kind}; types are 1 to 6")
    if model.byte_fallback and (count := model.types.count(BYTE)) != 256:
        raise CheckpointError(f"it says byte fallback but has {count} byte pieces, not 256")
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
    visited = taken = 0
    # (bases, keys) of nodes whose children are next; a base is where they lie: the unit's own place xor its offset
    waiting = [(offsets[:1], [b""])]
    while waiting:
        bases, keys = waiting.pop()
        if len(bases) > NODES_AT_ONCE:
            waiting.append((bases[NODES_AT_ONCE:], keys[NODES_AT_ONCE:]))
            bases, keys = bases[:NODES_AT_ONCE], keys[:NODES_AT_ONCE]
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
        if keys and len(keys[0]) > MAX_KEY:
            raise CheckpointError(f"{what}: the normalizer's trie has a key of more than {MAX_KEY} bytes")
        bases = nodes ^ offsets[nodes]
        for row in numpy.nonzero(units[nodes] & 0x100)[0].tolist():
            place = int(bases[row])
            start = int(units[place]) & 0x7FFFFFFF if place < len(units) else len(strings)
            if start >= len(strings):
                raise CheckpointError(f"{what}: the normalizer's trie points outside its replacements")
            end = strings.find(b"\0", start, start + MAX_REPLACEMENT + 1)
            if end < 0:
                raise CheckpointError(f"{what}: the normalizer has a replacement of more than {MAX_REPLACEMENT} bytes")
            taken += len(keys[row]) + end - start
            if taken > MAX_TABLE_BYTES:
                raise CheckpointError(f"{what}: the normalizer's table unfolds to more than {MAX_TABLE_BYTES:,} bytes")
            try:
                rules[keys[row].decode("utf-8")] = strings[start:end].decode("utf-8")
            except UnicodeDecodeError as error:
                raise CheckpointError(
                    f"{what}: the normalizer's table is not UTF-8 text at the key {keys[row]!r}"
                ) from error
        if len(nodes):
            waiting.append((bases, keys))
    return MappingProxyType(rules)
