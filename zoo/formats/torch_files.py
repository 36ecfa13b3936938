"""torch files: the zip archives of torch >= 1.6, the older format of pickles in a row, and
TorchScript archives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zoo.errors import CheckpointError
from zoo.formats.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.formats.buffers import Member, bytes_at, tensor_at
from zoo.formats.limits import is_count, printable, repr_short
from zoo.formats.nodes import ArrayRef, LongBytes, Refused, StorageRef, TensorRef
from zoo.formats.pickle_calls import storage_type
from zoo.formats.pickles import unpickle
from zoo.formats.tree import Leaf, Tree, gather

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
FAIRSEQ_MARKS = frozenset(("args", "cfg"))
FAIRSEQ_SIGNS = frozenset(("extra_state", "optimizer_history", "last_optimizer_state"))
NUMPY_DTYPES = {
    "b1": "BOOL", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64",
    "f2": "F16", "f4": "F32", "f8": "F64", "c8": "C64", "c16": "C128",
}  # fmt: skip

Storage = Callable[[str], memoryview]


@dataclass(frozen=True)
class _Torch:
    """Reads the persistent ids of one pickle; ``space`` keeps the storages of two pickles of a file
    apart.
    """

    what: str
    dtypes: dict[str, tuple[str | None, int]]  # of every storage that was mentioned

    def persistent(self, identity: Any) -> Any:
        if not isinstance(identity, tuple) or not identity:
            raise CheckpointError(f"{self.what}: a persistent id is {printable(repr_short(identity))}, not a storage")
        if identity[0] == "module" and len(identity) >= 2:  # a class, with its source, in files that hold whole modules
            return identity[1]
        if identity[0] != "storage" or len(identity) not in (5, 6):
            raise CheckpointError(
                f"{self.what}: a persistent id of kind {printable(repr_short(identity[0]))} is not a storage"
            )
        _, kind, key, _location, count, *view = identity
        known, dtype = storage_type(kind)
        if not known:
            raise CheckpointError(
                f"{self.what}: a storage of unknown type "
                f"{printable(str(kind)[:200] if not isinstance(kind, tuple) else 'tuple')}"
            )
        if not isinstance(key, str) or not is_count(count):
            raise CheckpointError(
                f"{self.what}: a storage with key {printable(repr_short(key))} and size {printable(repr_short(count))}"
            )
        if self.dtypes.setdefault(key, (dtype, count)) != (dtype, count):
            raise CheckpointError(f"{self.what}: storage {printable(key)!r} is described twice, differently")
        if view and view[0] is not None:
            part: tuple[Any, ...] = view[0] if isinstance(view[0], tuple) and len(view[0]) == 3 else (None, None, None)
            if not is_count(part[1]) or not is_count(part[2]) or part[1] + part[2] > count:
                raise CheckpointError(f"{self.what}: a view that reaches beyond storage {printable(key)!r}")
            return StorageRef(key, dtype, part[2], part[1])
        return StorageRef(key, dtype, count)


def _entry(name: str, leaf: Leaf, storage: Storage | None, space: str) -> Entry:
    if isinstance(leaf, ArrayRef):
        return _array_entry(name, leaf)
    if isinstance(leaf, StorageRef):
        leaf = TensorRef(leaf, leaf.start, (leaf.count,), (1,), leaf.dtype or "U8")
    assert storage is not None
    key, dtype = leaf.storage.key, leaf.dtype
    view = (leaf.offset * ITEM_SIZES[dtype], dtype, leaf.shape, _strides(leaf))
    return Entry(TensorInfo(name, leaf.shape, dtype), lambda: tensor_at(storage(key), *view), (space, key, *view))


def _strides(leaf: TensorRef) -> tuple[int, ...] | None:
    """``None`` where the tensor is row-major, so that it can be shown without a copy."""
    expected = 1
    for size, stride in zip(reversed(leaf.shape), reversed(leaf.strides), strict=True):
        if size != 1 and stride != expected:
            return leaf.strides
        expected *= size
    return None


def _array_entry(name: str, array: ArrayRef) -> Entry:
    assert array.dtype is not None
    code, shape, fortran, data = array.dtype.code, array.shape, array.fortran, array.data
    dtype, swapped = NUMPY_DTYPES[code], array.dtype.order == ">" and np.dtype(code).itemsize > 1

    def load() -> torch.Tensor:
        raw = data.open() if isinstance(data, LongBytes) else memoryview(bytearray(data))
        if len(raw) != math.prod(shape) * ITEM_SIZES[dtype]:
            raise CheckpointError(
                f"array {name!r} of shape {shape} needs {math.prod(shape) * ITEM_SIZES[dtype]} bytes, the file holds "
                f"{len(raw)}"
            )
        return array_tensor(raw, 0, dtype, shape, fortran=fortran, swapped=swapped)

    return Entry(TensorInfo(name, shape, dtype), load, ("array", id(array)))


def array_tensor(
    data: memoryview, offset: int, dtype: str, shape: tuple[int, ...], *, fortran: bool, swapped: bool
) -> torch.Tensor:
    """The tensor of a numpy array's bytes: column-major where ``fortran``, big-endian where
    ``swapped``.
    """
    if swapped:
        size, word = math.prod(shape) * ITEM_SIZES[dtype], ITEM_SIZES[dtype] // (2 if dtype.startswith("C") else 1)
        words = bytes_at(data, offset, size).numpy().view(np.dtype(f">u{word}")) if size else np.zeros(0, "u1")
        data, offset = memoryview(bytearray(words.astype(f"<u{word}").tobytes())), 0
    if fortran and len(shape) > 1:
        tensor = tensor_at(data, offset, dtype, shape[::-1])
        return tensor.permute(tuple(reversed(range(len(shape))))).clone(memory_format=torch.contiguous_format)
    return tensor_at(data, offset, dtype, shape)


def build(path: Path, format: str, tree: Tree, storage: Storage | None, space: str = "") -> Archive:
    """The archive of a walked pickle."""
    metadata = dict(tree.metadata)
    scales = {
        name: leaf.quantization
        for name, leaf in tree.tensors.items()
        if isinstance(leaf, TensorRef) and leaf.quantization is not None
    }
    if scales:
        metadata["quantization"] = {
            name: {k: v for k, v in scale.items() if isinstance(v, (int, float, str))} for name, scale in scales.items()
        }
    keys = set(tree.keys)
    if format.startswith("torch-") and tree.group == "model" and FAIRSEQ_MARKS & keys and FAIRSEQ_SIGNS & keys:
        format = "fairseq"
    entries = {name: _entry(name, leaf, storage, space) for name, leaf in tree.tensors.items()}
    return Archive(path, format, entries, metadata=metadata, refused=tree.refused, groups=tree.groups, group=tree.group)


# --- zip archives


def is_torch_zip(members: dict[str, Member]) -> bool:
    return any(name.rpartition("/")[2] == "data.pkl" for name in members)


def read_zip(path: Path, members: dict[str, Member], group: str | None) -> Archive:
    """A zip archive that holds ``data.pkl`` and its storages under ``data/``."""
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl" and name.count("/") <= 1]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} holds {len(pickles)} files named data.pkl at its top; a torch archive holds one")
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(root + "byteorder")
    if order is not None and order.size <= 16 and bytes(order.open()).strip() != b"little":
        raise CheckpointError(f"{path} was written on a big-endian machine; only little-endian archives are read")
    tree, storage = _read_pickle(path, members, root, "data", group)
    script = root + "constants.pkl" in members
    archive = build(path, "torchscript" if script else "torch-zip", tree, storage, "data")
    if not script:
        return archive
    constants, storage = _read_pickle(path, members, root, "constants", "")
    entries = dict(archive.entries)
    for name, leaf in constants.tensors.items():
        entries[f"constants.{name}"] = _entry(f"constants.{name}", leaf, storage, "constants")
    return Archive(
        path,
        archive.format,
        entries,
        metadata=archive.metadata,
        refused=(*archive.refused, *(f"{name} in constants.pkl" for name in constants.refused)),
        groups=archive.groups,
        group=archive.group,
    )


def _read_pickle(
    path: Path, members: dict[str, Member], root: str, space: str, group: str | None
) -> tuple[Tree, Storage]:
    what = f"{path}: {space}.pkl"
    reader = _Torch(what, {})
    result = unpickle(members[f"{root}{space}.pkl"].open(), persistent=reader.persistent, what=what)
    for key, (dtype, count) in reader.dtypes.items():
        member = members.get(f"{root}{space}/{key}")
        if member is None:
            raise CheckpointError(f"{path} mentions storage {printable(key)!r}, which is not in the archive")
        if member.size // (ITEM_SIZES[dtype] if dtype else 1) != count:
            raise CheckpointError(
                f"{path}: storage {printable(key)!r} of {count} {dtype or 'byte'} elements holds {member.size} bytes"
            )

    @cache  # many tensors may show one storage, which is unpacked and checked once
    def storage(key: str) -> memoryview:
        return members[f"{root}{space}/{key}"].open()

    return gather(result.value, result.refused, group, what), storage


# --- the older format: pickles in a row, then the storages


def is_legacy(data: memoryview) -> bool:
    """Whether the file starts with the pickle of torch's magic number."""
    head = bytes(data[:32])
    return head[:1] == b"\x80" and LEGACY_MAGIC.to_bytes(10, "little") in head


def read_legacy(path: Path, data: memoryview, group: str | None) -> Archive:
    magic = unpickle(data, what=f"{path}: its first pickle")
    version = unpickle(data, magic.end, what=f"{path}: its second pickle")
    if magic.value != LEGACY_MAGIC or version.value != LEGACY_VERSION:
        raise CheckpointError(
            f"{path} is no torch file of version {LEGACY_VERSION}: its version is "
            f"{printable(repr_short(version.value))}"
        )
    system = unpickle(data, version.end, what=f"{path}: its third pickle")
    if not isinstance(system.value, dict) or system.value.get("little_endian") is not True:
        raise CheckpointError(
            f"{path} does not say that it was written on a little-endian machine; only such files are read"
        )
    what = f"{path}: its pickle of the data"
    reader = _Torch(what, {})
    result = unpickle(data, system.end, persistent=reader.persistent, what=what)
    keys = unpickle(data, result.end, what=f"{path}: its list of storages")
    if not isinstance(keys.value, list) or len(keys.value) > len(reader.dtypes):
        raise CheckpointError(f"{path} has {printable(repr_short(keys.value))} where the list of storages should be")
    places: dict[str, memoryview] = {}
    position = keys.end
    for key in keys.value:
        if not isinstance(key, str) or key not in reader.dtypes or key in places:
            raise CheckpointError(
                f"{path} lists storage {printable(repr_short(key))}, which is unknown or listed twice"
            )
        dtype, count = reader.dtypes[key]
        stored = int.from_bytes(data[position : position + 8], "little")
        size = count * (ITEM_SIZES[dtype] if dtype else 1)
        if position + 8 > len(data) or stored != count or position + 8 + size > len(data):
            raise CheckpointError(
                f"{path}: storage {printable(key)!r} should hold {count} elements, {size} bytes; its header says "
                f"{stored} "
                f"and {max(0, len(data) - position - 8)} bytes are left: the file is truncated or lies"
            )
        places[key] = data[position + 8 : position + 8 + size]
        position += 8 + size
    missing = [key for key in reader.dtypes if key not in places]
    if missing:
        raise CheckpointError(f"{path} mentions storage {printable(missing[0])!r}, whose bytes are not in the file")
    refused: tuple[Refused, ...] = result.refused
    return build(path, "torch-legacy", gather(result.value, refused, group, what), lambda key: places[key])
