"""Writes safetensors files tensor by tensor: memory stays flat, the bytes are the same each time, a
file appears whole or not at all.

The library's own writer wants all tensors at once and orders metadata at random; this one writes a
sorted header and seeks. Each tensor goes through in blocks: cast, check that it is finite, hash,
write. The library reads the result.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from zoo.errors import CheckpointError, InputError
from zoo.formats.archive import DTYPE_NAMES, Described, Info
from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.disk import begin, sync, write_atomically, writing

BLOCK = 4 << 20  # bytes that are handled at once: small enough for a processor's cache


@dataclass(frozen=True)
class Written:
    """What was written: the files (of a sharded output the index first), the tensors' bytes, and a
    hash of the tensors, however sharded.
    """

    files: tuple[Path, ...]
    bytes: int
    content_sha256: str


@dataclass
class _Shard:
    names: list[str]
    offsets: dict[str, int]  # within the data
    size: int  # of the data
    reserved: int = 0  # bytes before the data
    temporary: Path | None = None
    descriptor: int = -1


class _Hasher:
    """Hashes blocks beside the writing of them: one thread, and only so many blocks behind that
    memory stays flat.
    """

    def __init__(self, behind: int = 8):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="zoo-content")
        self._free = threading.Semaphore(behind)
        self._hashes: dict[str, Any] = {}
        self._current: Any = None

    def begin(self, name: str) -> None:
        self._current = self._hashes[name] = hashlib.sha256()

    def resume(self, name: str) -> None:
        self._current = self._hashes[name]

    def update(self, data: memoryview) -> None:
        self._free.acquire()
        self._pool.submit(self._update, self._current, data)

    def _update(self, digest: Any, data: memoryview) -> None:
        try:
            digest.update(data)
        finally:
            self._free.release()

    def digests(self) -> dict[str, str]:
        """Of every tensor, once all blocks are through."""
        self._pool.submit(int).result()
        return {name: digest.hexdigest() for name, digest in self._hashes.items()}

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class SafetensorsWriter:
    """A safetensors file, or several with an index, in the making; a context manager.

    ``tensors`` says every name, shape and dtype beforehand; ``write`` takes whole tensors and
    ``append`` rows, in any order. ``metadata`` reserves room for what ``finish`` gets: the same
    keys with values that are at least as long. ``seal`` gives what the header says besides, once
    the hash of the tensors is known: always the same keys, with values of the same length. Leaving
    the block without ``finish`` removes everything.
    """

    def __init__(
        self,
        path: Path | str,
        tensors: Mapping[str, Described],
        metadata: Mapping[str, str] | None = None,
        *,
        shard_size: int | None = None,
        durable: bool = True,
        progress: Callable[[int, int], None] | None = None,
        seal: Callable[[str], Mapping[str, str]] | None = None,
    ):
        self.path = Path(path)
        self.infos = {name: Info(tuple(info.shape), info.dtype) for name, info in tensors.items()}
        self.seal = seal or (lambda content: {})
        self.room = {**(metadata or {}), **self.seal("0" * 64)}
        self.durable, self.progress = durable, progress
        if shard_size is not None and shard_size < 1:
            raise InputError(f"shard_size={shard_size} must be a positive number of bytes")
        for name, info in self.infos.items():
            if info.dtype not in DTYPES:
                raise CheckpointError(f"tensor {name!r} has dtype {info.dtype!r}, which safetensors does not know")
        order = sorted(self.infos, key=lambda name: (-DTYPES[self.infos[name].dtype].itemsize, name))
        self.shards = list(_shards(order, {name: nbytes(info) for name, info in self.infos.items()}, shard_size))
        self.sharded = shard_size is not None and len(self.shards) > 1
        self.total = sum(shard.size for shard in self.shards)
        self.digests: dict[str, str] = {}
        self._rows: dict[str, int] = {}  # of tensors that come in pieces
        self._place = {name: shard for shard in self.shards for name in shard.names}
        self._done = 0
        self._hasher = _Hasher()

    def __enter__(self) -> SafetensorsWriter:
        with writing(self.path, self.total):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
            if self.total > free:
                raise CheckpointError(
                    f"{self.path} can't be written: {self.total:,} bytes are needed, {free:,} are free"
                )
            try:
                for shard in self.shards:
                    shard.reserved = len(self._header(shard, self.room))
                    shard.temporary, shard.descriptor = begin(self.path)
                    os.ftruncate(shard.descriptor, shard.reserved + shard.size)
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def write(self, name: str, tensor: Tensor) -> None:
        """One tensor, of any strides; floats are cast to the dtype that was announced. Refused if
        it is not finite.
        """
        info, shard = self._announced(name)
        if name in self.digests or name in self._rows:
            raise CheckpointError(f"{name!r} was written to {self.path.name} already")
        if tuple(tensor.shape) != info.shape:
            raise CheckpointError(f"{name!r} has shape {tuple(tensor.shape)}, announced was {info.shape}")
        self._hasher.begin(name)
        self._put(name, tensor, info, shard.reserved + shard.offsets[name], shard)
        self.digests[name] = ""

    def append(self, name: str, rows: Tensor) -> None:
        """The next rows of a tensor that comes piece by piece along its first axis; all of them
        make the announced shape.
        """
        info, shard = self._announced(name)
        done = self._rows.get(name, 0)
        if name in self.digests and name not in self._rows:
            raise CheckpointError(f"{name!r} was written to {self.path.name} already")
        if not info.shape or tuple(rows.shape[1:]) != info.shape[1:] or done + len(rows) > info.shape[0]:
            raise CheckpointError(
                f"{name!r} gets rows of shape {tuple(rows.shape)} behind {done}, announced was {info.shape}"
            )
        if name in self._rows:
            self._hasher.resume(name)
        else:
            self._hasher.begin(name)
        row = nbytes(Info(info.shape[1:], info.dtype))
        self._put(name, rows, info, shard.reserved + shard.offsets[name] + done * row, shard)
        self._rows[name] = done + len(rows)
        if self._rows[name] == info.shape[0]:
            self.digests[name] = ""

    def _announced(self, name: str) -> tuple[Info, _Shard]:
        if name not in self.infos:
            raise CheckpointError(f"{name!r} was not announced to the writer of {self.path.name}")
        return self.infos[name], self._place[name]

    def _put(self, name: str, tensor: Tensor, info: Info, at: int, shard: _Shard) -> None:
        dtype = DTYPES[info.dtype]
        if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
            raise CheckpointError(f"{name!r} is {tensor.dtype}; only floats are cast, and {dtype} was announced")
        with writing(self.path, self.total):
            for block in blocks(tensor.detach()):
                check_finite(block, name)
                if block.dtype != dtype:
                    block = block.to(dtype)
                    check_finite(
                        block, name, f" in {info.dtype}: the value is too large for it; keep the file's own dtype"
                    )
                data = raw(block)
                self._hasher.update(data)
                _write_at(shard.descriptor, data, at)
                at += len(data)
                self._done += len(data)
                if self.progress is not None:
                    self.progress(self._done, self.total)

    def content_sha256(self) -> str:
        """A hash of all names, dtypes, shapes and bytes, whatever their order and sharding."""
        self.digests.update(self._hasher.digests())
        return content_hash(self.infos, self.digests)

    def finish(self, metadata: Mapping[str, str] | None = None) -> Written:
        """Write the headers and put the files under their final names."""
        lacking = [name for name in self.infos if name not in self.digests]
        if lacking:
            raise CheckpointError(
                f"{self.path.name} lacks {lacking[0]!r} and {len(lacking) - 1} more; nothing was written"
            )
        content = self.content_sha256()
        said = {**(self.room if metadata is None else metadata), **self.seal(content)}
        with writing(self.path, self.total):
            for shard in self.shards:
                header = self._header(shard, said, shard.reserved)
                _write_at(shard.descriptor, memoryview(header), 0)
                if self.durable:
                    os.fsync(shard.descriptor)
            files = self._publish(content, said) if self.sharded else self._publish_one()
            if self.durable:
                sync(self.path.parent)
        return Written(tuple(files), self.total, content)

    def _header(self, shard: _Shard, metadata: Mapping[str, str], reserved: int | None = None) -> bytes:
        entries: dict[str, object] = {
            name: {
                "data_offsets": [shard.offsets[name], shard.offsets[name] + nbytes(self.infos[name])],
                "dtype": self.infos[name].dtype,
                "shape": list(self.infos[name].shape),
            }
            for name in shard.names
        }
        if metadata:
            entries["__metadata__"] = {str(key): str(value) for key, value in metadata.items()}
        text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        length = len(text) + -len(text) % 8 if reserved is None else reserved - 8
        if len(text) > length:
            raise CheckpointError(
                f"the metadata of {self.path.name} is longer than announced: {len(text)} bytes in {length}"
            )
        return length.to_bytes(8, "little") + text + b" " * (length - len(text))

    def _publish_one(self) -> list[Path]:
        old = _old_shards(self.path)
        self._rename(self.shards[0], self.path)
        _remove([index_path(self.path), *old] if index_path(self.path).exists() else [])
        return [self.path]

    def _publish(self, content: str, said: Mapping[str, str]) -> list[Path]:
        """Shards are named after what they hold and say, so that the files of an older output stay
        whole until the index, last, is replaced.
        """
        assignment = json.dumps([[shard.names for shard in self.shards], sorted(said.items())])
        tag = hashlib.sha256(f"{content}{assignment}".encode()).hexdigest()[:8]
        stem, count = self.path.name.removesuffix(".safetensors"), len(self.shards)
        names = [f"{stem}-{tag}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        old = _old_shards(self.path)
        for shard, name in zip(self.shards, names, strict=True):
            self._rename(shard, self.path.with_name(name))
        weight_map = {name: file for shard, file in zip(self.shards, names, strict=True) for name in shard.names}
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        write_atomically(
            index_path(self.path), json.dumps(index, indent=2, sort_keys=True) + "\n", durable=self.durable
        )
        new = [self.path.with_name(name) for name in names]
        _remove([file for file in old if file not in new] + ([self.path] if self.path.exists() else []))
        return [index_path(self.path), *new]

    def _rename(self, shard: _Shard, path: Path) -> None:
        assert shard.temporary is not None
        os.replace(shard.temporary, path)
        shard.temporary = None
        os.close(shard.descriptor)
        shard.descriptor = -1

    def _discard(self) -> None:
        self._hasher.close()
        for shard in self.shards:
            if shard.temporary is not None:
                _remove([shard.temporary])
                shard.temporary = None
            if shard.descriptor >= 0:
                os.close(shard.descriptor)
                shard.descriptor = -1


def write_tensors(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, **options: object
) -> Written:
    """Tensors that are at hand, into one file or shards; the same options as
    ``SafetensorsWriter``.
    """
    infos = {name: Info(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype]) for name, tensor in tensors.items()}
    with SafetensorsWriter(path, infos, metadata, **options) as writer:  # type: ignore[arg-type]
        for name in sorted(tensors):
            writer.write(name, tensors[name])
        return writer.finish(metadata)


def nbytes(info: Described) -> int:
    return math.prod(info.shape) * DTYPES[info.dtype].itemsize


def raw(block: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, without a copy."""
    flat = block.reshape(-1)
    if flat.stride(0) != 1:  # one element of a strided tensor counts as contiguous and still can't be seen as bytes
        flat = flat.clone(memory_format=torch.contiguous_format)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def blocks(tensor: Tensor, size: int = BLOCK) -> Iterator[Tensor]:
    """A tensor's elements in row order, as contiguous pieces of at most ``size`` bytes. Copies only
    where the strides ask for it.
    """
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        yield from tensor.reshape(-1).split(max(1, size // tensor.itemsize))
        return
    rows = size * tensor.shape[0] // (tensor.numel() * tensor.itemsize)
    if rows:
        for start in range(0, tensor.shape[0], rows):
            yield tensor[start : start + rows].contiguous().reshape(-1)
    else:
        for row in tensor:
            yield from blocks(row, size)


_SERIAL = 30 << 10  # elements that torch adds up without waking its other threads, which a busy machine makes wait
_WIDENED = (torch.float8_e4m3fn, torch.float8_e5m2)


def check_finite(block: Tensor, name: str, where: str = "") -> None:
    """Refuse a block that holds infinity or NaN. One pass, nothing allocated."""
    if not block.is_floating_point() or not block.numel():
        return
    if block.dtype not in _WIDENED:
        kind = torch.promote_types(block.dtype, torch.float32)
        if all(math.isfinite(piece.sum(dtype=kind)) for piece in block.reshape(-1).split(_SERIAL)):
            return  # a sum of which one term is not finite is not finite either
    low, high = torch.aminmax(block.float() if block.dtype in _WIDENED else block)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise CheckpointError(f"tensor {name!r} is not finite{where} (it holds {low.item()} or {high.item()})")


def tensor_hash(tensor: Tensor) -> str:
    """The sha256 of a tensor's bytes in row order."""
    digest = hashlib.sha256()
    for block in blocks(tensor):
        digest.update(raw(block))
    return digest.hexdigest()


def content_hash(infos: Mapping[str, Described], digests: Mapping[str, str]) -> str:
    """The sha256 of the lines ``<tensor's sha256> <dtype> <shape> <name>``, sorted by name."""
    lines = (f"{digests[name]} {infos[name].dtype} {list(infos[name].shape)} {name}\n" for name in sorted(infos))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def index_path(path: Path) -> Path:
    return path.with_name(path.name + ".index.json")


def _shards(order: list[str], sizes: Mapping[str, int], limit: int | None) -> Iterator[_Shard]:
    names: list[str] = []
    offsets: dict[str, int] = {}
    size = 0
    for name in order:
        if limit is not None and names and size + sizes[name] > limit:
            yield _Shard(names, offsets, size)
            names, offsets, size = [], {}, 0
        names.append(name)
        offsets[name] = size
        size += sizes[name]
    yield _Shard(names, offsets, size)


def _write_at(descriptor: int, data: memoryview, at: int) -> None:
    os.lseek(descriptor, at, os.SEEK_SET)
    while len(data):
        data = data[os.write(descriptor, data) :]


def _old_shards(path: Path) -> list[Path]:
    """The files of a sharded output that lies under this name already: only those that can be ours,
    beside the index.
    """
    try:
        files = set(json.loads(index_path(path).read_text(encoding="utf-8-sig"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    stem = path.name.removesuffix(".safetensors")
    return [
        path.with_name(f)
        for f in sorted(map(str, files))
        if f.startswith(f"{stem}-") and "/" not in f and os.sep not in f
    ]


def _remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
