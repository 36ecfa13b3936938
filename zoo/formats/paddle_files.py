"""Paddle files: ``.pdparams``, a pickle of numpy arrays, and the folders of paddle 1.x with one
binary file per parameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.formats.buffers import map_file, tensor_at
from zoo.formats.limits import MAX_DIMENSIONS, is_count, printable
from zoo.formats.pickles import unpickle
from zoo.formats.protobuf import fields, integers, number
from zoo.formats.torch_files import build
from zoo.formats.tree import gather

BIG_PARAMETERS = "UnpackBigParamInfor@@"  # paddle's own spelling
PARAMETER_NAMES = "StructuredToParameterName@@"
DTYPES = {
    0: "BOOL", 1: "I16", 2: "I32", 3: "I64", 4: "F16", 5: "F32", 6: "F64", 19: "U64", 20: "U8", 21: "I8", 22: "BF16",
    23: "C64", 24: "C128",
}  # fmt: skip
MAX_LEVELS = 16
MAX_DESCRIPTION = 1024
MAX_FILES = 100_000


def is_pickle(data: memoryview) -> bool:
    """A pickle of protocol 2 to 5 that is whole: it ends with STOP."""
    return len(data) >= 4 and data[0] == 0x80 and 2 <= data[1] <= 5 and data[-1] == 0x2E


def read_pickle(path: Path, data: memoryview, group: str | None) -> Archive:
    """A bare pickle of arrays: paddle's ``.pdparams``, or a dict that somebody pickled."""
    result = unpickle(data, what=str(path))
    if result.end != len(data):
        raise CheckpointError(f"{path} goes on after the end of its pickle, at byte {result.end} of {len(data)}")
    tree = gather(result.value, result.refused, group, str(path))
    paddle = path.suffix in (".pdparams", ".pdopt") or PARAMETER_NAMES in tree.keys or BIG_PARAMETERS in tree.keys
    archive = build(path, "paddle" if paddle else "pickle", tree, None)
    parts = archive.metadata.get(BIG_PARAMETERS)
    return _joined(archive, parts) if isinstance(parts, dict) else archive


def _joined(archive: Archive, parts: Mapping[Any, Any]) -> Archive:
    """Put together the parameters that paddle cut in flat pieces because a pickle of protocol 2
    holds at most 4 GB in one.
    """
    entries = dict(archive.entries)
    for name, how in parts.items():
        pieces = how.get("slices") if isinstance(how, dict) else None
        shape = how.get("OriginShape") if isinstance(how, dict) else None
        if (
            not isinstance(name, str)
            or not isinstance(pieces, list)
            or not pieces
            or not all(isinstance(p, str) and p in entries for p in pieces)
        ):
            raise CheckpointError(
                f"{archive.path}: {BIG_PARAMETERS} names pieces of {printable(str(name)[:200])!r} that are not in the "
                "file"
            )
        found = [entries.pop(piece) for piece in dict.fromkeys(pieces)]
        dtypes = {entry.info.dtype for entry in found}
        if (
            not isinstance(shape, list)
            or not all(is_count(size) for size in shape)
            or len(dtypes) != 1
            or len(found) != len(pieces)
        ):
            raise CheckpointError(f"{archive.path}: the pieces of {name!r} do not fit together")
        info = TensorInfo(name, tuple(shape), dtypes.pop())
        if info.numel != sum(entry.info.numel for entry in found) or len(shape) > MAX_DIMENSIONS or name in entries:
            raise CheckpointError(f"{archive.path}: the pieces of {name!r} do not make up its shape {shape[:8]}")
        entries[name] = Entry(info, lambda found=found, info=info: _cat(found, info))  # type: ignore[misc]
    metadata = {key: value for key, value in archive.metadata.items() if key != BIG_PARAMETERS}
    return Archive(
        archive.path,
        archive.format,
        entries,
        metadata=metadata,
        refused=archive.refused,
        groups=archive.groups,
        group=archive.group,
    )


def _cat(pieces: list[Entry], info: TensorInfo) -> torch.Tensor:
    return torch.cat([piece.load().reshape(-1) for piece in pieces]).reshape(info.shape)


# --- paddle 1.x: one file per parameter


def is_parameter(data: memoryview) -> bool:
    """Version 0, no levels of detail, version 0, a short description: what every file of a dense
    parameter starts with.
    """
    return (
        len(data) > 20
        and bytes(data[:16]) == bytes(16)
        and 0 < int.from_bytes(data[16:20], "little") <= MAX_DESCRIPTION
    )


def parameter(path: Path, name: str, data: memoryview) -> Entry:
    """A tensor as paddle 1.x saves it: version, levels of detail, version, size of a description,
    description, bytes.
    """
    position = 4
    levels = int.from_bytes(data[position : position + 8], "little")
    position += 8
    if bytes(data[:4]) != bytes(4) or levels > MAX_LEVELS:
        raise CheckpointError(f"{path} is no paddle parameter of version 0 with at most {MAX_LEVELS} levels of detail")
    for _ in range(levels):
        position += 8 + int.from_bytes(data[position : position + 8], "little")
        if position > len(data):
            raise CheckpointError(f"{path} announces levels of detail beyond its end: it is truncated or lies")
    version = int.from_bytes(data[position : position + 4], "little")
    size = int.from_bytes(data[position + 4 : position + 8], "little")
    position += 8
    if version != 0 or not 0 < size <= MAX_DESCRIPTION or position + size > len(data):
        raise CheckpointError(
            f"{path} has no description of its tensor where one should be: it is truncated or no paddle parameter"
        )
    kind, shape = -1, list[int]()
    for tag, value in fields(data[position : position + size]):
        if tag == 1:
            kind = number(value)
        elif tag == 2:
            shape += integers(value, MAX_DIMENSIONS)
    position += size
    if kind not in DTYPES or len(shape) > MAX_DIMENSIONS or not all(is_count(n) for n in shape):
        raise CheckpointError(f"{path} describes a tensor of type {kind} and shape {shape[:8]}, which is none")
    info = TensorInfo(name, tuple(shape), DTYPES[kind])
    if math.prod(shape) * ITEM_SIZES[info.dtype] != len(data) - position:
        raise CheckpointError(
            f"{path} of {info.dtype} {info.shape} needs {info.nbytes} bytes, the file holds {len(data) - position}"
        )
    return Entry(info, lambda: tensor_at(data, position, info.dtype, info.shape))


def is_folder(path: Path) -> bool:
    """Whether the folder holds paddle parameters: by the first few files without an ending of their
    own.
    """
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return any(is_parameter(map_file(file)) for file in files[:8])


def read_folder(path: Path, *, mmap: bool = False) -> Archive:
    """Every file of the folder that is a parameter, under the file's name; the names of other files
    are listed as refused.
    """
    entries: dict[str, Entry] = {}
    refused: list[str] = []
    used: list[Path] = []
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if len(files) > MAX_FILES:
        raise CheckpointError(f"{path} holds {len(files)} files; at most {MAX_FILES} are read")
    for file in files:
        data = map_file(file, shown=mmap)
        if not is_parameter(data):
            refused.append(f"a file that is no paddle parameter at {printable(file.name)}")
            continue
        if not file.name.isprintable():
            raise CheckpointError(f"{path} holds a file called {printable(file.name)!r}")
        entries[file.name] = parameter(file, file.name, data)
        used.append(file)
    return Archive(path, "paddle", entries, refused=refused, files=used)
