"""numpy files: ``.npy``, one array, and ``.npz``, a zip of them. Arrays of objects are refused, never unpickled."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo.convert.readers.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.convert.readers.buffers import Member
from zoo.convert.readers.limits import MAX_DIMENSIONS
from zoo.convert.readers.pickles import is_count, printable
from zoo.convert.readers.torch_files import NUMPY_DTYPES, array_tensor
from zoo.errors import CheckpointError

MAGIC = b"\x93NUMPY"
MAX_NPY_HEADER = 10_000  # numpy's own limit


def is_npy(data: memoryview) -> bool:
    return bytes(data[:6]) == MAGIC


def is_npz(members: dict[str, Member]) -> bool:
    return bool(members) and all(name.endswith(".npy") for name in members)


def read_npy(path: Path, data: memoryview) -> Archive:
    """The one array of a ``.npy`` file, called ``array``."""
    entry = _entry(str(path), "array", data, lambda: data)
    return Archive(path, "numpy", {} if isinstance(entry, str) else {"array": entry}, refused=[entry] if isinstance(entry, str) else [])


def read_npz(path: Path, members: dict[str, Member]) -> Archive:
    entries: dict[str, Entry] = {}
    refused: list[str] = []
    for file, member in members.items():
        name = file.removesuffix(".npy")
        if not name or not name.isprintable():
            raise CheckpointError(f"{path} names an array {printable(name)!r}")
        entry = _entry(f"{path}: array {name!r}", name, member.head(MAX_NPY_HEADER + 16), member.open, member.size)
        if isinstance(entry, str):
            refused.append(entry)
        else:
            entries[name] = entry
    return Archive(path, "numpy", entries, refused=refused)


def _entry(what: str, name: str, head: memoryview, data: Callable[[], memoryview], size: int | None = None) -> Entry | str:
    """The entry of one array, or why it is refused."""
    file = io.BytesIO(bytes(head[: MAX_NPY_HEADER + 16]))
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, kind = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_NPY_HEADER)
    elif version in ((2, 0), (3, 0)):
        shape, fortran, kind = np.lib.format.read_array_header_2_0(file, max_header_size=MAX_NPY_HEADER)
    else:
        raise CheckpointError(f"{what} is of npy version {version}; known are 1.0, 2.0, 3.0")
    code = f"{kind.kind}{kind.itemsize}"
    if kind.hasobject or kind.names or kind.subdtype or code not in NUMPY_DTYPES:
        return f"a numpy array of type {printable(str(kind))} at {name}"
    dtype, start = NUMPY_DTYPES[code], file.tell()
    if len(shape) > MAX_DIMENSIONS or not all(is_count(n) for n in shape):
        raise CheckpointError(f"{what} has a shape that is no short tuple of non-negative integers")
    expected = math.prod(shape) * ITEM_SIZES[dtype]
    stored = (len(head) if size is None else size) - start
    if stored != expected:
        raise CheckpointError(f"{what} of {dtype} {shape[:8]} needs {expected} bytes, the file holds {stored}")
    return Entry(
        TensorInfo(name, tuple(shape), dtype),
        lambda: array_tensor(data(), start, dtype, tuple(shape), fortran=fortran, swapped=kind.byteorder == ">"),
    )
