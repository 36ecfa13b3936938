"""Tensors in memory, read like a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from zoo.errors import InputError, unknown
from zoo.formats.archive import DTYPE_NAMES, Described, Info
from zoo.formats.writer import content_hash, tensor_hash


class Source(Protocol):
    """What the engine reads from: any archive of ``zoo.formats.opening``, or a DictArchive."""

    @property
    def path(self) -> Path: ...
    @property
    def format(self) -> str: ...
    @property
    def tensors(self) -> Mapping[str, Described]: ...
    @property
    def metadata(self) -> Mapping[str, object]: ...
    def read(self, name: str) -> Tensor: ...
    def aliases(self) -> list[set[str]]: ...
    def sha256(self) -> str: ...


class DictArchive:
    """A dict of tensors (or numpy arrays) as an archive: what ``zoo.load`` makes of a state dict in
    a foreign layout.
    """

    format = "dict"

    def __init__(
        self, tensors: Mapping[str, object], metadata: Mapping[str, object] | None = None, name: str = "tensors"
    ):
        self.path = Path(name)
        self._tensors: dict[str, Tensor] = {}
        for key, value in tensors.items():
            tensor = value if isinstance(value, Tensor) else _from_numpy(key, value)
            if tensor.dtype not in DTYPE_NAMES:
                raise InputError(f"tensor {key!r} is {tensor.dtype}, which no checkpoint format of the zoo holds")
            self._tensors[str(key)] = tensor.detach()
        self.tensors: Mapping[str, Info] = {
            key: Info(tuple(t.shape), DTYPE_NAMES[t.dtype]) for key, t in self._tensors.items()
        }
        self.metadata: Mapping[str, object] = dict(metadata or {})
        self.refused: tuple[str, ...] = ()

    def __enter__(self) -> DictArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def read(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise unknown("tensor", name, self._tensors)
        return self._tensors[name].cpu().contiguous()

    def aliases(self) -> list[set[str]]:
        places: dict[tuple[object, ...], set[str]] = {}
        for name, tensor in self._tensors.items():
            if tensor.numel():
                place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
                places.setdefault(place, set()).add(name)
        return [names for names in places.values() if len(names) > 1]

    def sha256(self) -> str:
        return content_hash(self.tensors, {name: tensor_hash(self.read(name)) for name in self.tensors})


def _from_numpy(key: str, value: object) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{key!r} is a {type(value).__name__}, not a tensor or array: {error}") from None
