"""Tensors in memory, read like a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.formats.archive import DTYPE_NAMES, Archive, Entry, TensorInfo
from zoo.formats.writer import content_hash, tensor_hash


class DictArchive(Archive):
    """A dict of tensors (or numpy arrays) as an archive: what ``zoo.load`` makes of a state dict in
    a foreign layout.
    """

    def __init__(
        self, tensors: Mapping[str, object], metadata: Mapping[str, object] | None = None, name: str = "tensors"
    ):
        self._tensors = {str(key): _tensor(key, value) for key, value in tensors.items()}
        entries = {key: _entry(key, tensor) for key, tensor in self._tensors.items()}
        super().__init__(Path(name), "dict", entries, metadata=metadata)

    def close(self) -> None:
        """The tensors are the caller's and stay."""

    def sha256(self) -> str:
        return content_hash(self.tensors, {name: tensor_hash(self.read(name)) for name in self.tensors})


def _tensor(key: object, value: object) -> Tensor:
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{key!r} is a {type(value).__name__}, not a tensor or array: {error}") from None
    if tensor.dtype not in DTYPE_NAMES:
        raise InputError(f"tensor {key!r} is {tensor.dtype}, which no checkpoint format of the zoo holds")
    return tensor.detach()


def _entry(name: str, tensor: Tensor) -> Entry:
    info = TensorInfo(name, tuple(tensor.shape), DTYPE_NAMES[tensor.dtype])
    return Entry(info, tensor.cpu, (tensor.device, tensor.data_ptr(), info.shape, tensor.stride(), info.dtype))
