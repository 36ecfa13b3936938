"""numpy files: ``.npy``, one array, and ``.npz``, a zip of them. Arrays of objects are refused,
never unpickled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.formats.buffers import Member
from zoo.formats.limits import MAX_DIMENSIONS, is_count, printable
from zoo.formats.torch_files import NUMPY_DTYPES, array_tensor

MAGIC = b"\x93NUMPY"
MAX_NPY_HEADER = 10_000  # numpy's own limit
HEADER = re.compile(  # what numpy writes; it would parse any Python literal
    r"\s*\{\s*'descr': '([<>|=])(\w{1,8})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,19}L?, ?)*(?:\d{1,19}L?)?),?\),? *\}\s*"
)


def is_npy(data: memoryview) -> bool:
    return bytes(data[:6]) == MAGIC


def is_npz(members: dict[str, Member]) -> bool:
    return bool(members) and all(name.endswith(".npy") for name in members)


def read_npy(path: Path, data: memoryview) -> Archive:
    """The one array of a ``.npy`` file, called ``array``."""
    entry = _entry(str(path), "array", data, lambda: data)
    if isinstance(entry, str):
        return Archive(path, "numpy", {}, refused=[entry])
    return Archive(path, "numpy", {"array": entry})


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


def _entry(
    what: str, name: str, head: memoryview, data: Callable[[], memoryview], size: int | None = None
) -> Entry | str:
    """The entry of one array, or why it is refused."""
    wide = len(head) > 6 and head[6] in (2, 3)
    length = int.from_bytes(head[8 : 12 if wide else 10], "little")
    start = (12 if wide else 10) + length
    known = bytes(head[:6]) == MAGIC and bytes(head[6:8]) in (b"\1\0", b"\2\0", b"\3\0")
    if not known or length > MAX_NPY_HEADER or start > len(head):
        raise CheckpointError(
            f"{what} does not start as an array of npy version 1.0, 2.0 or 3.0 with a header of at most "
            f"{MAX_NPY_HEADER} bytes"
        )
    header = HEADER.fullmatch(bytes(head[12 if wide else 10 : start]).decode("latin-1"))
    if header is None:
        text = printable(bytes(head[12 if wide else 10 : start][:80]).decode("latin-1"))
        if "[(" in text:  # a list of named columns
            return f"a numpy array of records at {name}"
        raise CheckpointError(f"{what} has the header {text!r}, which does not describe an array")
    order, code, fortran, sizes = header.groups()
    if code not in NUMPY_DTYPES:
        return f"a numpy array of type {printable(order + code)} at {name}"
    dtype, shape = NUMPY_DTYPES[code], tuple(int(number.rstrip("L")) for number in sizes.replace(",", " ").split())
    if len(shape) > MAX_DIMENSIONS or not all(is_count(n) for n in shape):
        raise CheckpointError(f"{what} has a shape that is no short tuple of non-negative integers")
    expected = math.prod(shape) * ITEM_SIZES[dtype]
    stored = (len(head) if size is None else size) - start
    if stored != expected:
        raise CheckpointError(f"{what} of {dtype} {shape[:8]} needs {expected} bytes, the file holds {stored}")
    return Entry(
        TensorInfo(name, shape, dtype),
        lambda: array_tensor(data(), start, dtype, shape, fortran=fortran == "True", swapped=order == ">"),
    )
