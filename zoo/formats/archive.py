"""What every reader returns: names and shapes at once, tensors one by one on demand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol

import torch

from zoo.errors import CheckpointError, counted, unknown
from zoo.formats.disk import sha256_of
from zoo.formats.limits import guarded


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, shape and dtype, the dtype in the words of safetensors: ``F32``, ``BF16``,
    ``I64``, ...
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Entry:
    """A tensor that a reader has located: how to load it and which bytes it shows.

    Two entries with an equal ``place`` show the same bytes in the same way; ``None`` is never
    shared.
    """

    info: TensorInfo
    load: Callable[[], torch.Tensor] = field(repr=False)
    place: Hashable | None = None


class Archive:
    """A checkpoint that has been opened: a context manager over names, shapes, plain metadata and
    tensors.

    ``tensors`` is in file order. ``metadata`` is the plain data beside the tensors. ``refused``
    names what was met and not executed. ``groups`` are the top-level entries of a torch file that
    hold tensors; ``group`` is the one that ``tensors`` shows (``""``: the whole file under dotted
    names). What is read holds a copy of its bytes, unless the archive was opened with ``mmap``.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        entries: Mapping[str, Entry],
        *,
        metadata: Mapping[str, object] | None = None,
        refused: Iterable[str] = (),
        groups: Iterable[str] = (),
        group: str = "",
        files: Iterable[Path] = (),
    ):
        self.path = path
        self.format = format
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType({name: entry.info for name, entry in entries.items()})
        self.metadata: Mapping[str, object] = MappingProxyType(dict(metadata or {}))
        self.refused = tuple(refused)
        self.groups = tuple(groups)
        self.group = group
        self.files = tuple(files) or (path,)
        self._entries = dict(entries)
        self._stored: Archive | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"Archive({str(self.path)!r}, format={self.format!r}, {counted(len(self.tensors), 'tensor')})"

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; tensors that were read stay valid."""
        self._entries.clear()
        self._closed = True
        if self._stored is not None:
            self._stored.close()

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The located tensors, for readers that are built from other readers."""
        return MappingProxyType(self._entries)

    @property
    def stored(self) -> Archive:
        """The tensors as the file holds them, where those shown are put together from several."""
        return self if self._stored is None else self._stored

    def put_together_from(self, stored: Archive) -> Archive:
        """This archive, whose tensors those of ``stored`` are parts of."""
        self._stored = stored
        return self

    def read(self, name: str) -> torch.Tensor:
        """One tensor, contiguous, on the CPU, in memory of its own; or in the mapped file, where the
        archive was opened so and the file's layout allows it.

        Writing to it never reaches the file.
        """
        if self._closed:
            raise CheckpointError(f"{self.path} was closed; read {name!r} before leaving the with block")
        entry = self._entries.get(name)
        if entry is None:
            raise unknown("tensor", name, self.tensors, hint=f"(in {self.path.name})")
        with guarded(f"{self.path}: tensor {name!r}"):
            tensor = entry.load()
        if tuple(tensor.shape) != entry.info.shape or tensor.dtype != TORCH_DTYPES[entry.info.dtype]:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} came out as {tensor.dtype} {tuple(tensor.shape)}, "
                f"announced as {entry.info.dtype} {entry.info.shape}"
            )
        return tensor.contiguous()

    def aliases(self) -> list[set[str]]:
        """The sets of names that show the same bytes in the same way (ties)."""
        names_of: dict[Hashable, set[str]] = {}
        for name, entry in self._entries.items():
            if entry.place is not None and entry.info.numel:
                names_of.setdefault(entry.place, set()).add(name)
        return [names for names in names_of.values() if len(names) > 1]

    def sha256(self) -> str:
        """The hash of the file; of several files, the hash of the lines that ``sha256sum`` would
        print for them, sorted by name.
        """
        with guarded(str(self.path)):
            return self.joint({file: sha256_of(file) for file in self.files})

    def joint(self, hashes: Mapping[Path, str]) -> str:
        """One hash for all the files of this archive, out of theirs."""
        if len(hashes) == 1:
            return next(iter(hashes.values()))
        base = self.path if self.path.is_dir() else self.path.parent
        lines = sorted(
            (file.relative_to(base).as_posix() if file.is_relative_to(base) else file.name, digest)
            for file, digest in hashes.items()
        )
        return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in lines).encode()).hexdigest()


TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "C128": torch.complex128,
}
ITEM_SIZES: Mapping[str, int] = {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()}


class Described(Protocol):
    """A tensor as an archive lists it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True)
class Info:
    """A shape and a dtype (in the words of safetensors), where nothing is behind them yet."""

    shape: tuple[int, ...]
    dtype: str = "F32"


DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


_WORDS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "fp32": "F32",
    "fp16": "F16",
    "bf16": "BF16",
}


def torch_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating point dtype by its name ("bfloat16", "fp16", "F32"), or itself; None stays None."""
    return None if dtype is None else TORCH_DTYPES[dtype_name(dtype)]


def dtype_name(dtype: torch.dtype | str) -> str:
    """``"F16"`` for ``torch.float16``, ``"float16"``, ``"fp16"`` or ``"F16"``; only floats are
    asked for.
    """
    if isinstance(dtype, torch.dtype):
        name = DTYPE_NAMES.get(dtype, str(dtype))
    else:
        name = _WORDS.get(dtype.removeprefix("torch.").lower(), dtype.upper())
    if name not in TORCH_DTYPES or not TORCH_DTYPES[name].is_floating_point:
        raise unknown("dtype", dtype, _WORDS)
    return name
