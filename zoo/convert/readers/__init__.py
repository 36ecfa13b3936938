"""Readers of foreign checkpoints: ``open_archive`` recognises the format and runs nothing from the file."""

from __future__ import annotations

from pathlib import Path

from zoo.convert.readers import safetensors_files, shards, torch_files
from zoo.convert.readers.archive import Archive, Entry, TensorInfo
from zoo.convert.readers.buffers import map_file, zip_members
from zoo.convert.readers.limits import guarded
from zoo.errors import CheckpointError

__all__ = ["Archive", "Entry", "TensorInfo", "open_archive"]


def open_archive(path: Path | str, *, group: str | None = None) -> Archive:
    """Open a checkpoint file or folder; only names and shapes are read.

    ``group`` chooses a top-level entry of a torch file (``"optimizer"``); ``None`` is the model's, ``""`` everything under dotted names.
    """
    path = Path(path)
    with guarded(str(path)):
        if path.is_dir():
            return _open_folder(path, group)
        return _open_file(path, group)


FOLDER_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model.pt",
    "model.pth",
)


def _open_folder(path: Path, group: str | None) -> Archive:
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return _open_file(path / name, group)
    raise CheckpointError(f"{path} holds no checkpoint that is known by its name; looked for {', '.join(FOLDER_FILES)}")


def _open_file(path: Path, group: str | None) -> Archive:
    if shards.is_index(path):
        return shards.read(path, lambda shard: _open_file(shard, group))
    data = map_file(path)
    head = bytes(data[:8])
    if head[:4] == b"PK\x03\x04":
        members = zip_members(data, str(path))
        if torch_files.is_torch_zip(members):
            return torch_files.read_zip(path, members, group)
        raise CheckpointError(f"{path} is a zip archive without data.pkl: no torch file")
    if torch_files.is_legacy(data):
        return torch_files.read_legacy(path, data, group)
    if safetensors_files.is_safetensors(data):
        return safetensors_files.read(path, data)
    raise CheckpointError(f"{path} is in no known checkpoint format; its first bytes are {head!r}")
