"""Folders of ``torch.distributed.checkpoint`` (FSDP's sharded state dicts too), in which each process of
a training run wrote its share: ``.metadata``, a pickle that says which piece of which tensor lies
where, and files of small torch archives, one for each piece. The pieces are joined when a tensor is
read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import DTYPE_NAMES, TORCH_DTYPES, Archive, Entry, TensorInfo
from zoo.formats.buffers import map_file, zip_members
from zoo.formats.disk import plain_name
from zoo.formats.limits import MAX_DIMENSIONS, MAX_NAME, is_count, printable, repr_short
from zoo.formats.nodes import Refused
from zoo.formats.pickles import unpickle
from zoo.formats.torch_files import read_zip
from zoo.formats.tree import WRAPPERS

METADATA = ".metadata"
WORDS = "torch.distributed.checkpoint.metadata."
DTYPES = {str(dtype): name for dtype, name in DTYPE_NAMES.items()}
MAX_PIECES = 1_000_000


@dataclass(frozen=True)
class _Piece:
    """A part of a tensor: where it begins there and how large it is; where its archive lies."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


def read(path: Path) -> Archive:
    """All the tensors of the group that a torch file would show, see `zoo.formats.tree`."""
    what = f"{path / METADATA}"
    found = unpickle(map_file(path / METADATA), what=what, keys=(f"{WORDS}MetadataIndex",))
    about = _state(found.value, what)
    tensors, stored = about.get("state_dict_metadata"), about.get("storage_data")
    if not isinstance(tensors, dict) or not isinstance(stored, dict) or len(stored) > MAX_PIECES:
        raise CheckpointError(f"{what} does not say which tensors there are and where they lie")
    places: dict[tuple[str, tuple[int, ...]], Mapping[str, Any]] = {}
    for index, info in stored.items():
        key = _state(index, what)
        places[str(key.get("fqn")), _sizes(key.get("offset") or (), what)] = _state(info, what)
    paths = about.get("planner_data") if isinstance(about.get("planner_data"), dict) else {}
    parts = {str(name): _path(str(name), paths.get(name)) for name in tensors}  # type: ignore[union-attr]
    bare = {path[0] for path in parts.values() if len(path) == 1}
    groups = tuple(dict.fromkeys(path[0] for path in parts.values() if len(path) > 1))
    group = next((name for name in WRAPPERS if name in groups and name not in bare), "")
    opened = cache(lambda file: map_file(path / plain_name(file, path / METADATA)))
    entries: dict[str, Entry] = {}
    refused: list[str] = []
    files: dict[str, None] = {}
    for name, value in tensors.items():
        own = parts[str(name)]
        if group and (len(own) == 1 or own[0] != group):
            continue
        shown = ".".join(own[1:] if group else own)
        if not isinstance(value, Refused) or value.name != f"{WORDS}TensorStorageMetadata":
            refused.append(f"a pickled value at {printable(shown)}")
            continue
        if len(shown) > MAX_NAME or not shown.isprintable() or shown in entries:
            raise CheckpointError(f"{what} names a tensor {printable(shown)!r}, which is no name or stands there twice")
        info, pieces = _tensor(f"{what}: tensor {shown!r}", shown, str(name), value, places)
        files |= dict.fromkeys(piece.file for piece in pieces)
        entries[shown] = Entry(info, partial(_join, path, info, pieces, opened))
    kept = [path / METADATA, *(path / plain_name(file, path / METADATA) for file in files)]
    return Archive(path, "torch-dcp", entries, refused=refused, groups=groups, group=group, files=kept)


def _path(name: str, said: object) -> tuple[str, ...]:
    """The keys that lead to a tensor, as the saver noted them, else by the dots of its name."""
    if isinstance(said, tuple) and said and all(isinstance(part, (str, int)) for part in said):
        return tuple(map(str, said))
    first, dot, rest = name.partition(".")
    return (first, rest) if dot else (name,)


def _state(node: object, what: str) -> Mapping[str, Any]:
    """The attributes of an object that was not made."""
    state = node.state if isinstance(node, Refused) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{what} holds {printable(repr_short(node))} where an object with attributes should be")
    return state


def _sizes(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS or not all(map(is_count, value)):
        raise CheckpointError(f"{what} has the sizes {printable(repr_short(value))}")
    return tuple(value)


def _tensor(
    what: str, shown: str, name: str, value: Refused, places: Mapping[tuple[str, tuple[int, ...]], Mapping[str, Any]]
) -> tuple[TensorInfo, list[_Piece]]:
    state = _state(value, what)
    shape = _sizes(state.get("size"), what)
    properties = state.get("properties")
    said = properties.state if isinstance(properties, Refused) else None
    dtype = said[0] if isinstance(said, tuple) and said else None
    if dtype not in DTYPES:
        raise CheckpointError(f"{what} has the dtype {printable(repr_short(dtype))}")
    pieces = []
    for chunk in state.get("chunks") or ():
        about = _state(chunk, what)
        start, size = _sizes(about.get("offsets"), what), _sizes(about.get("sizes"), what)
        place = places.get((name, start))
        if (
            place is None
            or len(start) != len(shape)
            or any(a + n > full for a, n, full in zip(start, size, shape, strict=True))
        ):
            raise CheckpointError(f"{what} has a piece at {start} that lies nowhere, or outside of {shape}")
        file, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
        if (
            not isinstance(file, str)
            or not is_count(offset)
            or not is_count(length)
            or place.get("transform_descriptors")
        ):
            raise CheckpointError(f"{what} has a piece at {start} that is packed, or says not where it lies")
        pieces.append(_Piece(start, size, file, offset, length))  # type: ignore[arg-type]
    if sum(math.prod(piece.shape) for piece in pieces) != math.prod(shape):
        raise CheckpointError(f"{what}: its pieces don't make up its shape {shape}")
    return TensorInfo(shown, shape, DTYPES[dtype]), pieces


def _join(path: Path, info: TensorInfo, pieces: Iterable[_Piece], opened: Any) -> torch.Tensor:
    pieces = list(pieces)
    parts = [_read(path, info, piece, opened(piece.file)) for piece in pieces]
    if len(parts) == 1:
        return parts[0]
    joined = torch.zeros(info.shape, dtype=TORCH_DTYPES[info.dtype])
    written = torch.zeros(info.shape, dtype=torch.bool)
    for piece, part in zip(pieces, parts, strict=True):
        where = tuple(slice(start, start + size) for start, size in zip(piece.start, piece.shape, strict=True))
        joined[where], written[where] = part, True
    if not bool(written.all()):
        raise CheckpointError(f"{path}: the pieces of {info.name!r} overlap and leave places empty")
    return joined


def _read(path: Path, info: TensorInfo, piece: _Piece, data: memoryview) -> torch.Tensor:
    what = f"{path / piece.file}: the piece of {info.name!r} at {piece.start}"
    if piece.offset + piece.length > len(data):
        raise CheckpointError(f"{what} ends behind the end of the file: it is truncated")
    members = zip_members(data[piece.offset : piece.offset + piece.length], what)
    with read_zip(path / piece.file, members, "") as archive:
        if len(archive.tensors) != 1:
            raise CheckpointError(f"{what} holds {len(archive.tensors)} tensors; a piece is one")
        tensor = archive.read(next(iter(archive.tensors)))
    if tuple(tensor.shape) != piece.shape or tensor.dtype != TORCH_DTYPES[info.dtype]:
        raise CheckpointError(
            f"{what} is {tensor.dtype} {tuple(tensor.shape)}, announced as {info.dtype} {piece.shape}"
        )
    return tensor
