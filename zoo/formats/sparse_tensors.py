"""Tensors with many zeros in a safetensors file: one bit for each value says whether it is 0, and
only the others are stored.

A tensor ``name`` is stored as ``name.kept`` (U8, its bits, the first in the lowest place) and
``name.values``; the file's metadata lists their shapes under ``zoo.sparse``. A reader of ours shows
the whole tensor again, so nothing else needs to know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import CheckpointError
from zoo.formats.archive import Entry, TensorInfo
from zoo.formats.limits import MAX_DIMENSIONS, is_count
from zoo.formats.plain_json import parse_json

KEY = "zoo.sparse"


def packed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors as they are stored, each sparsely where that takes fewer bytes, and the metadata
    that says which.
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        kept = tensor != 0
        count = int(kept.sum())
        if (
            tensor.is_floating_point()
            and math.ceil(tensor.numel() / 8) + count * tensor.element_size() < tensor.numel() * tensor.element_size()
        ):
            stored[f"{name}.kept"] = torch.from_numpy(np.packbits(kept.cpu().numpy().reshape(-1), bitorder="little"))
            stored[f"{name}.values"] = tensor[kept]
            shapes[name] = list(tensor.shape)
        else:
            stored[name] = tensor
    return stored, {KEY: json.dumps(shapes, sort_keys=True)} if shapes else {}


def shown(entries: Mapping[str, Entry], metadata: Mapping[str, Any], where: str) -> dict[str, Entry]:
    """A file's entries with whole tensors in place of the parts that ``zoo.sparse`` names; refuses
    parts that don't fit together.
    """
    shapes = parse_json(metadata[KEY], f"{where}: {KEY} in the metadata")
    if not isinstance(shapes, dict):
        raise CheckpointError(f"{where}: {KEY} in the metadata must name tensors and their shapes")
    found = dict(entries)
    for name, shape in shapes.items():
        bits, values = found.pop(f"{name}.kept", None), found.pop(f"{name}.values", None)
        if (
            not isinstance(shape, list)
            or len(shape) > MAX_DIMENSIONS
            or not all(is_count(size) for size in shape)
            or bits is None
            or values is None
            or name in found
        ):
            raise CheckpointError(
                f"{where}: the sparse tensor {name!r} needs a shape, {name}.kept and {name}.values, and no other {name}"
            )
        size = math.prod(shape)
        if bits.info.dtype != "U8" or bits.info.shape != (math.ceil(size / 8),) or len(values.info.shape) != 1:
            raise CheckpointError(
                f"{where}: {name}.kept must hold a bit for each of the {size} values of {shape}, got {bits.info}"
            )
        found[name] = Entry(
            TensorInfo(name, tuple(shape), values.info.dtype), _loader(bits, values, tuple(shape), f"{where}: {name}")
        )
    return {name: found[name] for name in sorted(found)}


def _loader(bits: Entry, values: Entry, shape: tuple[int, ...], what: str) -> Any:
    def load() -> Tensor:
        size = math.prod(shape)
        kept = np.unpackbits(bits.load().numpy(), bitorder="little", count=size).astype(bool)
        some = values.load()
        if int(kept.sum()) != len(some):
            raise CheckpointError(f"{what}: {int(kept.sum())} values are announced and {len(some)} stored")
        whole = torch.zeros(size, dtype=some.dtype)
        whole[torch.from_numpy(kept)] = some
        return whole.view(shape)

    return load
