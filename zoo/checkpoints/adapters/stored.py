"""An adapter's two files in a folder, its tensors and its config, written and read as one."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.binding import ADAPTER, FOREIGN, UNBOUND, Binding, Header, edited, generation_of
from zoo.checkpoints.description import FORMAT_VERSION, by_now
from zoo.checkpoints.files import read_json
from zoo.errors import CheckpointError, warn
from zoo.formats.disk import alone, settled, workspace, write_atomically, writing
from zoo.formats.opening import open_archive
from zoo.formats.writer import write_tensors

OWN, FUSION, LIBRARY = "adapter.json", "adapter_fusion_config.json", "adapter_config.json"
FILES: dict[str, tuple[str, ...]] = {  # the config of a kind of adapter -> where its tensors may be, the first wins
    OWN: ("adapter.safetensors",),
    FUSION: ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"),
    LIBRARY: ("adapter_model.safetensors", "adapter.safetensors", "adapter_model.bin", "pytorch_adapter.bin"),
}
PICKLED = {  # what ``adapters`` reads unless it is told ``use_safetensors=True``
    "adapter.safetensors": "pytorch_adapter.bin",
    "model_adapter_fusion.safetensors": "pytorch_model_adapter_fusion.bin",
}
BASE = "model.safetensors"  # some folders of adapters call theirs so; others hold the model below
HARMLESS = ("auto_mapping", "base_model_name_or_path", "inference_mode", "model_name", "peft_version", "revision")
"""What a config of another library says that no number depends on."""


@dataclass(frozen=True)
class StoredAdapter:
    """What a folder holds: ``kind`` is the name of its config, ``metadata`` that of its tensors."""

    kind: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, object]


def write_adapter(
    folder: Path,
    kind: str,
    weights: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    pickled: bool = False,
) -> None:
    """An adapter as the only one of a folder: its tensors, then its config, each of which tells which
    save it is of; then the files of older ones go. ``pickled``: the tensors as a pickle too.
    """
    own = kind == OWN
    binding = Binding({"zoo_format": FORMAT_VERSION, **config} if own else config, ADAPTER if own else FOREIGN)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with workspace(folder) as stage:
            written = write_tensors(stage / weights, tensors, {"format": "pt", **(metadata or {})}, seal=binding.header)
            files = [weights, kind]
            if pickled:
                plain = io.BytesIO()
                torch.save({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, plain)
                write_atomically(stage / PICKLED[weights], plain.getvalue())
                files.insert(0, PICKLED[weights])
            said = binding.described(written.content_sha256) if own else config
            write_atomically(stage / kind, json.dumps(said, indent=2, sort_keys=True) + "\n")
            folder.mkdir(exist_ok=True)
            with alone(folder):
                for name in files:
                    os.replace(stage / name, folder / name)
                for name in {*FILES, *(file for each in FILES.values() for file in each)} - {*files}:
                    (folder / name).unlink(missing_ok=True)


def read_adapter(folder: Path, config: Mapping[str, Any] | None = None) -> StoredAdapter:
    """The adapter in a folder that somebody may be replacing. ``config`` counts whatever lies there."""
    return settled(lambda: _read(folder, config), folder)


def _read(folder: Path, given: Mapping[str, Any] | None) -> StoredAdapter:
    kind = next((config for config in FILES if (folder / config).is_file()), LIBRARY)
    names = (*FILES[kind], BASE) if kind == LIBRARY else FILES[kind]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds none of {', '.join(names)}")
    with open_archive(path) as archive:
        header = Header.of(archive)
        if path.name in FILES[OWN] and header.said:  # of which kind they are, the tensors know best
            kind = OWN if ADAPTER in header.said else kind if FOREIGN not in header.said else LIBRARY
        found = _config(folder / kind, header) if given is None else given
        return StoredAdapter(kind, found, {key: archive.read(key) for key in archive.tensors}, archive.metadata)


def _config(file: Path, header: Header) -> Mapping[str, Any]:
    """The config of tensors: the one beside them, or the header's where that one is of another save.
    Refused where it was edited in anything that a number depends on.
    """
    own = file.name == OWN
    stated = header.json(ADAPTER if own else FOREIGN)
    if stated is None and not file.is_file():
        raise CheckpointError(f"{file.parent} has no {file.name}; tensors alone don't tell an adapter's scale")
    found = read_json(file) if file.is_file() else {}
    if stated is not None and (not found or (own and generation_of(found) != header.generation)):
        warn(f"{file} is of another save, or missing: the header of {header.path.name} says what it holds")
        return stated
    if own and header.generation is None:
        warn(f"{file.parent}: {UNBOUND}")
    if stated is not None and found != stated:
        one, other = (by_now(stated), by_now(found)) if own else (stated, found)
        edited(one, other, file, lambda path: not own and path[0] in HARMLESS)
    return found
