"""Weights that Keras saved as HDF5, such as ``tf_model.h5`` of transformers, under the names and in
the layout that the torch model has.

A data set ``bert/tf_bert_model/bert/encoder/layer_._0/attention/self/query/kernel:0`` stands below
the name of its layer and that of its model: it is ``bert.encoder.layer.0.attention.self.query.weight``,
transposed. Nothing leads outside of the file: links, data sets that lie elsewhere and filters that
are not HDF5's own are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from zoo.errors import CheckpointError, missing_extra
from zoo.formats.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.formats.limits import MAX_DIMENSIONS, MAX_NAME, check_expansion, printable
from zoo.formats.torch_files import NUMPY_DTYPES

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_DEPTH = 24
MAX_MEMBERS = 200_000
FILTERS = frozenset((1, 2, 3))  # deflate, shuffle, fletcher32
TOPS = ("model_weights", "optimizer_weights")  # of a whole model: its weights, and what trained them
LAST = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias"}


def is_hdf5(data: memoryview) -> bool:
    return bytes(data[:8]) == MAGIC


def read(path: Path) -> Archive:
    h5py = _library()
    entries: dict[str, Entry] = {}
    refused: list[str] = []
    with h5py.File(path, "r") as file:
        declared = 0
        for place, found in _data_sets(h5py, file, str(path)):
            shown = f"{path}: {printable('/'.join(place))!r}"
            code = f"{found.dtype.kind}{found.dtype.itemsize}"
            if place[0] == "optimizer_weights" or code not in NUMPY_DTYPES:
                refused.append(f"a data set of {found.dtype} at {printable('/'.join(place))}")
                continue
            shape = tuple(found.shape)
            declared += math.prod(shape) * ITEM_SIZES[NUMPY_DTYPES[code]]
            check_expansion(shown, declared, path.stat().st_size)
            name, turned = _torch_name(place)
            turned = turned and len(shape) == 2
            if name in entries:
                raise CheckpointError(f"{shown} and another data set would both be called {name!r}")
            info = TensorInfo(name, shape[::-1] if turned else shape, NUMPY_DTYPES[code])
            entries[name] = Entry(info, lambda place=place, turned=turned: _load(path, place, turned))  # type: ignore[misc]
    return Archive(path, "keras", entries, refused=refused)


def _library() -> Any:
    try:
        import h5py  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise missing_extra("reading HDF5", "h5py", "regions") from None
    return h5py


def _data_sets(h5py: Any, file: Any, what: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The data sets and the names that lead to them, in order; none is read."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), file)]
    seen = 0
    while waiting:
        place, group = waiting.pop(0)
        for name in group:
            path, seen = (*place, name), seen + 1
            shown = f"{what}: {printable('/'.join(path))!r}"
            if seen > MAX_MEMBERS or len(path) > MAX_DEPTH or sum(map(len, path)) > MAX_NAME or not name.isprintable():
                raise CheckpointError(
                    f"{shown} has a name of more than {MAX_NAME} characters, lies deeper than {MAX_DEPTH}, or is one "
                    f"of more than {MAX_MEMBERS}"
                )
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CheckpointError(f"{shown} is a link to something elsewhere, which is not followed; store a copy")
            found = group[name]
            if isinstance(found, h5py.Group):
                waiting.append((path, found))
            elif isinstance(found, h5py.Dataset):
                yield path, _own(found, shown)


def _own(found: Any, shown: str) -> Any:
    """The data set, if all of it lies in its own file and HDF5 itself can unpack it."""
    made = found.id.get_create_plist()
    if found.is_virtual or found.external is not None:
        raise CheckpointError(f"{shown} is stored in other files, which are not read; store a copy")
    strange = {made.get_filter(number)[0] for number in range(made.get_nfilters())} - FILTERS
    if strange or found.shape is None or len(found.shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{shown} is packed by filter {sorted(strange)}, or has no shape; store it plainly")
    return found


def _load(path: Path, place: tuple[str, ...], turned: bool) -> torch.Tensor:
    h5py = _library()
    with h5py.File(path, "r") as file:
        array = _own(file["/".join(place)], f"{path}: {printable('/'.join(place))!r}")[()]
    tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return tensor.t().contiguous() if turned else tensor


def _torch_name(place: tuple[str, ...]) -> tuple[str, bool]:
    """The name in torch of a data set, and whether it lies transposed there."""
    place = place[1:] if place[0] in TOPS else place
    parts = [part for one in place[min(2, len(place) - 1) :] for part in one.split("_._")]
    parts = [part.rpartition("___")[2] for part in parts]  # "mlm___cls" is the layer cls
    last = parts[-1].partition(":")[0]
    return ".".join([*parts[:-1], LAST.get(last, last)]), last == "kernel"
