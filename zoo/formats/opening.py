"""Readers of foreign checkpoints: ``open_archive`` recognises the format and runs nothing from the
file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError
from zoo.formats import (
    bundles,
    dcp_files,
    flax_files,
    keras_files,
    numpy_files,
    onnx_files,
    paddle_files,
    safetensors_files,
    shards,
    tensorflow_files,
    torch_files,
)
from zoo.formats.archive import Archive, Entry, TensorInfo
from zoo.formats.buffers import map_file, zip_members
from zoo.formats.disk import plain_name
from zoo.formats.limits import guarded, printable
from zoo.formats.memory import DictArchive

__all__ = ["Archive", "Entry", "TensorInfo", "open_archive"]

Neighbor = Callable[[str], memoryview | None]  # the bytes of a file beside the one being read


def open_archive(path: Path | str, *, group: str | None = None) -> Archive:
    """Open a checkpoint file or folder; only names and shapes are read, except that gzipped and
    deflated data is unpacked into memory.

    The format is recognised from the bytes. A folder, tar or zip may hold one checkpoint; a
    TensorFlow checkpoint is named by its ``.index`` file or by its prefix. ``group`` chooses a
    top-level entry of a torch file (``"optimizer"``): ``None`` is the model's, ``""`` everything
    under dotted names.
    """
    path = Path(path)
    with guarded(str(path)):
        if path.is_dir():
            return _open_folder(path, group)
        index = path.with_name(path.name + ".index")
        if not path.exists() and index.exists():
            path = index
        if shards.is_index(path):
            return shards.read(path, lambda shard: _open_file(shard, group))
        return _open_file(path, group)


def _open_file(path: Path, group: str | None) -> Archive:
    def beside(name: str) -> memoryview | None:
        file = path.with_name(plain_name(name, path))
        return map_file(file) if file.is_file() else None

    return _open_data(path, path.name, map_file(path), group, beside, nested=False)


def _open_data(
    path: Path, name: str, data: memoryview, group: str | None, beside: Neighbor, *, nested: bool
) -> Archive:
    """Recognise ``data`` by its first bytes; a file inside an archive is no archive itself, but for
    torch's and numpy's zips.
    """
    head = bytes(data[:8])
    if head[:4] == b"PK\x03\x04":
        members = zip_members(data, str(path))
        if torch_files.is_torch_zip(members):
            return torch_files.read_zip(path, members, group)
        if numpy_files.is_npz(members):
            return numpy_files.read_npz(path, members)
        if not nested:
            return _open_bundle(path, bundles.zip_files(members), group)
    if torch_files.is_legacy(data):
        return torch_files.read_legacy(path, data, group)
    if numpy_files.is_npy(data):
        return numpy_files.read_npy(path, data)
    if tensorflow_files.is_index(data):
        return tensorflow_files.read(path, name, data, beside, path.with_name)
    if not nested and (bundles.is_tar(data) or bundles.is_gzip(data)):
        return _open_bundle(path, bundles.tar_files(data, str(path)), group)
    if safetensors_files.is_safetensors(data):
        return safetensors_files.read(path, data)
    if paddle_files.is_pickle(data):
        return paddle_files.read_pickle(path, data, group)
    if onnx_files.is_onnx(data):
        return onnx_files.read(path, data, beside)
    if keras_files.is_hdf5(data):
        if nested:
            raise CheckpointError(f"{path} holds the HDF5 file {printable(name)!r}; unpack it and open that file")
        return keras_files.read(path)
    if flax_files.is_flax(data):
        return flax_files.read(path, data)
    if paddle_files.is_parameter(data):
        return Archive(path, "paddle", {name: paddle_files.parameter(path, name, data)})
    raise CheckpointError(
        f"{path} is in no known checkpoint format, or truncated; it has {len(data)} bytes and starts with {head!r}"
    )


def _open_bundle(path: Path, files: dict[str, tuple[int, bundles.Bytes]], group: str | None) -> Archive:
    chosen = bundles.choose(files, str(path))
    folder = chosen.rpartition("/")[0]

    def beside(name: str) -> memoryview | None:
        found = files.get(f"{folder}/{name}" if folder else name)
        return found[1]() if found else None

    if chosen.endswith(bundles.INDEXES):
        raise CheckpointError(
            f"{path} holds a checkpoint in shards, {printable(chosen)!r}; unpack it and open the folder"
        )
    inner = _open_data(path, chosen.rpartition("/")[2], files[chosen][1](), group, beside, nested=True)
    metadata = {**inner.metadata, **bundles.configs(files, chosen)}
    return Archive(
        path,
        inner.format,
        inner.entries,
        metadata=metadata,
        refused=inner.refused,
        groups=inner.groups,
        group=inner.group,
        files=(path,),
    )


def _open_folder(path: Path, group: str | None) -> Archive:
    names = sorted(file.name for file in path.iterdir() if file.is_file())
    if dcp_files.METADATA in names and any(name.endswith(".distcp") for name in names):
        return dcp_files.read(path)
    if step := bundles.latest_of(names, path):
        return _open_folder(path / step, group)
    nested = sorted(file.relative_to(path).as_posix() for file in path.glob("mp_rank_*/*.pt"))
    bundles.refuse_shares(names, path)
    if ranks := bundles.ranks([*names, *nested]):
        return bundles.read_ranks(path, ranks, lambda name: _open_file(path / name, group))
    for folder in (path, path / "params"):
        if folder.is_dir() and paddle_files.is_folder(folder):
            return paddle_files.read_folder(folder)
    return open_archive(path / bundles.choose(names, str(path)), group=group)


def opened(source: Any) -> Any:
    """An archive over a path, or over tensors in memory; a context manager."""
    return DictArchive(source) if isinstance(source, Mapping) else open_archive(source)
