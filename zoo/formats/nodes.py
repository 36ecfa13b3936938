"""What a pickle holds that is no plain Python value: descriptions of objects, of which none is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.formats.limits import printable


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle mentions; nothing was looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}")


@dataclass(slots=True, eq=False)
class Refused:
    """An object that was not made: its name, how it was asked for, and the plain data that was fed
    to it.
    """

    name: str
    how: str = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None
    elements: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage: ``count`` elements of ``dtype``, or ``count`` bytes where that is ``None``; a view
    begins at element ``start``.
    """

    key: str
    dtype: str | None
    count: int
    start: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TensorRef:
    """A tensor inside a storage; offset and strides count elements of ``dtype``."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    quantization: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class LongBytes:
    """A byte string left in the file; ``text`` tells that it is stored as UTF-8 of latin-1
    characters.
    """

    data: memoryview
    text: bool = False

    def open(self) -> memoryview:
        return memoryview(bytearray(str(self.data, "utf-8").encode("latin-1"))) if self.text else self.data


@dataclass(slots=True, eq=False)
class NumpyType:
    code: str
    order: str = "="

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(("<" if self.order in "=|<" else ">") + self.code)


@dataclass(slots=True, eq=False)
class ArrayRef:
    """A numpy array: its bytes are ``data``, Fortran order where told so."""

    shape: tuple[int, ...] = (0,)
    dtype: NumpyType | None = None
    fortran: bool = False
    data: bytes | LongBytes = b""
