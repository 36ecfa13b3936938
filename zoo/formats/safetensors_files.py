"""safetensors: an 8-byte length, a JSON header of names, dtypes, shapes and offsets, then the
bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from zoo.errors import CheckpointError
from zoo.formats import sparse_tensors
from zoo.formats.archive import ITEM_SIZES, Archive, Entry, TensorInfo
from zoo.formats.buffers import tensor_at
from zoo.formats.limits import MAX_DIMENSIONS, MAX_HEADER, MAX_NAME, check_json, is_count, printable, repr_short


def is_safetensors(data: memoryview) -> bool:
    return len(data) >= 10 and data[8] == 0x7B and int.from_bytes(data[:8], "little") < 1 << 40


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys may not repeat: the hook that ``json.loads`` calls."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise CheckpointError(f"a JSON object names {printable(twice)!r} twice")
    return result


def load_json(raw: bytes, what: str) -> Any:
    """Parse JSON from a foreign file, strictly: UTF-8, no repeated keys, of bounded size once it is
    parsed.
    """
    check_json(raw, what)
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise CheckpointError(f"{what} is JSON nested too deeply") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{what}: {error}") from error
        raise CheckpointError(f"{what} is not valid JSON: {error}") from error


def read(path: Path, data: memoryview) -> Archive:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise CheckpointError(
            f"{path} announces a header of {length} bytes, the file has {len(data)}: it is truncated or lies"
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} announces a header of {length} bytes; at most {MAX_HEADER} are read")
    header = load_json(bytes(data[8 : 8 + length]), f"the header of {path}")
    if not isinstance(header, dict):
        raise CheckpointError(f"the header of {path} is {repr_short(header)}, not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"__metadata__ of {path} must map strings to strings")
    body = data[8 + length :]
    spans: list[tuple[int, int, TensorInfo]] = []
    entries: dict[str, Entry] = {}
    for name, record in header.items():
        info, start, end = _record(path, name, record)
        spans.append((start, end, info))
        entries[name] = Entry(info, lambda info=info, start=start: _load(body, info, start))  # type: ignore[misc]
    position = 0
    for start, end, info in sorted(spans, key=lambda span: span[:2]):
        if start != position:
            raise CheckpointError(
                f"{path}: tensor {info.name!r} starts at {start}, expected {position}: offsets overlap or leave a hole"
            )
        position = end
    if position != len(body):
        raise CheckpointError(
            f"{path}: the tensors take {position} bytes, the file holds {len(body)}: it is truncated or has a tail"
        )
    if sparse_tensors.KEY in metadata:
        whole = sparse_tensors.shown(entries, metadata, str(path))
        parts = Archive(path, "safetensors", entries)
        return Archive(path, "safetensors", whole, metadata=metadata).put_together_from(parts)
    return Archive(path, "safetensors", entries, metadata=metadata)


def _load(body: memoryview, info: TensorInfo, start: int) -> torch.Tensor:
    return tensor_at(body, start, info.dtype, info.shape)


def _record(path: Path, name: str, record: Any) -> tuple[TensorInfo, int, int]:
    what = f"{path}: tensor {printable(name)!r}"
    if not isinstance(record, dict) or set(record) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{what} must be described by dtype, shape and data_offsets")
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
        raise CheckpointError(f"{what} has no printable name of at most {MAX_NAME} characters")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise CheckpointError(f"{what} has dtype {printable(repr_short(dtype))}; known are {', '.join(ITEM_SIZES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(is_count(size) for size in shape):
        raise CheckpointError(f"{what} has a shape that is no short list of non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise CheckpointError(f"{what} has data_offsets that are no pair of non-negative integers")
    start, end = offsets
    expected = math.prod(shape) * ITEM_SIZES[dtype]
    if end - start != expected:
        raise CheckpointError(
            f"{what} of {dtype} {shape[:8]} needs {expected} bytes, its offsets {start} to {end} give {end - start}"
        )
    return TensorInfo(name, tuple(shape), dtype), start, end
