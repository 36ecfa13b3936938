"""Small bounded readers of tokenizer files: whatever is wrong with a file is a ``CheckpointError``
that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import CheckpointError
from zoo.formats.disk import read_regular
from zoo.formats.plain_json import parse_json

MAX_FILE_BYTES = 128 * 2**20  # the largest public tokenizer.json is about 60 MB
MAX_ENTRIES = 4_000_000
MAX_VALUES = 8_000_000  # of a JSON file: a piece with its score is three

T = TypeVar("T")


def read_bytes(path: Path) -> bytes:
    """The whole file, refused above ``MAX_FILE_BYTES``."""
    try:
        return read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """The file as UTF-8, a byte order mark dropped."""
    return decode_utf8(read_bytes(path), str(path))


def decode_utf8(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file whose top is an object."""
    value = parse_json(read_text(path), str(path))
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_lines(path: Path) -> list[str]:
    """Lines ended by LF, CR LF or CR (not by the other separators of Unicode, which vocabularies
    list as entries).
    """
    return split_lines(read_text(path), str(path))


def split_lines(text: str, what: str) -> list[str]:
    if (count := text.count("\n") + text.count("\r")) > 2 * MAX_ENTRIES:
        raise CheckpointError(f"{what} has {count:,} ends of lines; more than {MAX_ENTRIES:,} are no vocabulary")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    lines = lines if lines[-1] else lines[:-1]
    if len(lines) > MAX_ENTRIES:
        raise CheckpointError(f"{what} has {len(lines):,} lines; more than {MAX_ENTRIES:,} are no vocabulary")
    return lines


def read_vocab_lines(path: Path) -> dict[str, int]:
    """One token a line, the id is the line number counted from 0; a token listed twice keeps its
    last line and blanks behind a token are none of it, as in BERT's own reader. A line of blanks
    alone stands for itself.
    """
    vocab = {(token.rstrip() or token.rstrip(" \t") or token): index for index, token in enumerate(read_lines(path))}
    if not vocab:
        raise CheckpointError(f"{path} is empty; a vocabulary has one token a line")
    return vocab


def read_vocab_json(path: Path) -> dict[str, int]:
    """A JSON object of token -> id, with ids that are distinct and not far apart."""
    return check_vocab(read_json_object(path), path)


def check_vocab(raw: Mapping[str, Any], path: Path | str) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for token, index in raw.items():
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_ENTRIES:
            raise CheckpointError(
                f"{path} gives token {token!r} the id {index!r}; ids are whole numbers from 0 to {MAX_ENTRIES - 1}"
            )
        vocab[encodable(token, path)] = index
    if not vocab:
        raise CheckpointError(f"{path} holds no tokens")
    if len(set(vocab.values())) != len(vocab):
        raise CheckpointError(f"{path} gives the same id to two tokens")
    return vocab


def encodable(token: str, path: Path | str) -> str:
    """The token itself, refused where it holds half of a surrogate pair (JSON can spell one, no
    text can hold it).
    """
    if any("\ud800" <= character <= "\udfff" for character in token):
        raise CheckpointError(f"{path} holds the token {token!r}, which is not valid Unicode")
    return token


def guarded(what: str, error_type: type[Exception], call: Callable[[], T]) -> T:
    """Run ``call`` into the tokenizers library and turn whatever it raises, its panics included,
    into ``error_type``.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise error_type(f"{what}: {error}") from error
