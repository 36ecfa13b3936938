"""HDF5 files, opened so that nothing in them leads outside: the library would follow names of other
files into the output, and load plug-ins for filters it doesn't know.

Refused by name are external and soft links, data sets that are stored in other files or put together
from them, filters other than the library's own, and data sets that would grow beyond the bounds of
``zoo.formats.limits`` when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy

from zoo.errors import CheckpointError, missing_extra
from zoo.formats.disk import open_regular, stored_bytes
from zoo.formats.limits import check_expansion, guarded, printable

FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
MAX_MEMBERS = 2_000_000
MAX_RANK = 32
MAX_ATTRIBUTES, MAX_ATTRIBUTE = 1_000, 1 << 16


@contextmanager
def open_hdf5(path: Path, extra: str = "regions") -> Iterator[Group]:
    """The top of a file; ``extra`` is the one that brings h5py."""
    try:
        import h5py  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise missing_extra("reading HDF5", "h5py", extra) from None
    open_regular(path).close()
    with guarded(str(path)), h5py.File(path, "r") as file:
        yield Group(file, str(path), _Budget(stored_bytes(path)))


class _Budget:
    """What the data sets of a file may grow to, all together, each as often as it is opened."""

    def __init__(self, stored: int):
        self.stored, self.counted = stored, 0

    def count(self, what: str, size: int) -> None:
        self.counted += size
        check_expansion(what, self.counted, self.stored)


class Group(Mapping[str, Any]):
    """A group: its names with groups and data sets, each checked before it is opened."""

    def __init__(self, group: Any, what: str, budget: _Budget, depth: int = 0):
        self._group, self.what, self._budget, self._depth = group, what, budget, depth
        if len(group) > MAX_MEMBERS:
            raise CheckpointError(f"{what} has {len(group):,} members; at most {MAX_MEMBERS:,} are read")

    def __len__(self) -> int:
        return len(self._group)

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __contains__(self, name: object) -> bool:
        return name in list(self._group.keys())

    def __getitem__(self, name: str) -> Group | DataSet:
        import h5py

        what = f"{self.what}: {printable(name)!r}"
        link = self._group.get(name, getlink=True)
        if link is None:
            raise KeyError(name)
        if not isinstance(link, h5py.HardLink):
            kind = "in another file" if isinstance(link, h5py.ExternalLink) else "elsewhere in the file"
            raise CheckpointError(f"{what} is a link to something {kind}, which is not followed; store a copy")
        found = self._group[name]
        if isinstance(found, h5py.Group):
            if self._depth > 8:
                raise CheckpointError(f"{what} is a group nested deeper than 8")
            return Group(found, what, self._budget, self._depth + 1)
        if isinstance(found, h5py.Dataset):
            return DataSet(found, what, self._budget)
        raise CheckpointError(f"{what} is neither a group nor a data set")

    @property
    def attributes(self) -> dict[str, Any]:
        """What is noted at the group."""
        found: dict[str, Any] = {}
        for name in self._group.attrs:
            about = self._group.attrs.get_id(name)
            plain = about.dtype.kind in "biufcS" and math.prod(about.shape) * about.dtype.itemsize <= MAX_ATTRIBUTE
            if len(found) >= MAX_ATTRIBUTES or not (plain or (_is_text(about.dtype) and about.shape == ())):
                raise CheckpointError(
                    f"{self.what}: the attribute {printable(name)!r} is no number, string or short list of numbers, or "
                    f"one of more than {MAX_ATTRIBUTES}"
                )
            found[name] = self._group.attrs[name]
        return found


class DataSet:
    """A data set that lies in its file; what is read is held against the bytes that are stored."""

    def __init__(self, found: Any, what: str, budget: _Budget):
        plist = found.id.get_create_plist()
        if found.is_virtual or found.external is not None:
            raise CheckpointError(f"{what} is stored in other files, which are not read; store a copy")
        filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
        if strange := [number for number in filters if number not in FILTERS]:
            raise CheckpointError(
                f"{what} is packed by filter {strange[0]}; known are {', '.join(FILTERS.values())}: store it plainly"
            )
        if found.shape is None or len(found.shape) > MAX_RANK:
            raise CheckpointError(f"{what} holds nothing")
        if found.dtype.kind not in "biufcS" and not _is_text(found.dtype):
            raise CheckpointError(f"{what} holds {found.dtype}; numbers and strings are read")
        size = math.prod(found.shape) * max(found.dtype.itemsize, 1)
        budget.count(what, size)
        self._budget, self._what = budget, what
        self._found, self.shape, self.dtype, self.ndim = found, tuple(found.shape), found.dtype, len(found.shape)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def __getitem__(self, key: Any) -> Any:
        """As of an array; texts of any length one by one, since many may show the same bytes."""
        if self.dtype.kind != "O" or self.ndim == 0 or isinstance(key, int):
            read = self._found[key]
            if isinstance(read, (bytes, str)):
                self._budget.count(self._what, len(read))
            return read
        places = numpy.arange(math.prod(self.shape)).reshape(self.shape)[key].reshape(-1)
        return [self[int(place)] for place in places] if self.ndim == 1 else []


def _is_text(dtype: Any) -> bool:
    import h5py

    return h5py.check_string_dtype(dtype) is not None
