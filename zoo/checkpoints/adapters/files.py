"""Adapters alone in a folder: in the layouts of the libraries ``peft`` and ``adapters``, and in a
file of ours.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.adapters.adapter_hub import from_adapters, fusion_to_adapters, to_adapters
from zoo.checkpoints.adapters.peft import from_peft, to_peft
from zoo.checkpoints.adapters.places import bare_name, copy_into, path_of_class
from zoo.checkpoints.files import read_json
from zoo.errors import CheckpointError, TechniqueError
from zoo.formats.disk import write_atomically
from zoo.formats.opening import open_archive
from zoo.formats.writer import write_tensors
from zoo.models.base.model import bare_model, unwrapped
from zoo.registry.renames import CLASSES
from zoo.techniques.base import apply, new_tensors, recorded

FUSION_CONFIG = "adapter_fusion_config.json"
FUSION_FILES = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
PICKLED = {"adapter.safetensors": "pytorch_adapter.bin", FUSION_FILES[0]: FUSION_FILES[1]}
"""What ``adapters`` reads unless it is told ``use_safetensors=True``."""
ADAPTER_FILES: tuple[str, ...] = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin")
ADAPTER_FILES += ("model.safetensors", "adapter.safetensors")


def save_adapter(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    library: str = "zoo",
    layout: str | None = None,
    name: str | None = None,
) -> Path:
    """Write what techniques added, and a task's heads, without the model below. -> the folder.

    library: "zoo" (``adapter.safetensors``, ``adapter.json``) for every technique, "peft" for the
    LoRA, IA3 or prefix of this ``name``, "adapters" for its bottleneck adapter, LoRA, IA3 or prefix
    (and no heads), or for the fusion of adapters named like "a,b"; that library gets the tensors as
    ``.safetensors`` and, since it reads nothing else unless told to, as a pickle of plain tensors.
    """
    config: dict[str, Any]
    model = unwrapped(model)
    if library == "peft":
        tensors, config = to_peft(model, name, layout)
        weights, config_file = "adapter_model.safetensors", "adapter_config.json"
    elif library == "adapters" and name is not None and "," in name:
        tensors, config = fusion_to_adapters(model, name, layout)
        weights, config_file = FUSION_FILES[0], FUSION_CONFIG
    elif library == "adapters":
        tensors, config = to_adapters(model, name, layout)
        weights, config_file = "adapter.safetensors", "adapter_config.json"
    elif library == "zoo":
        tensors = {bare_name(model, key): tensor.detach() for key, tensor in new_tensors(model)}
        tensors |= {key: tensor.detach() for key, tensor in model.state_dict().items() if key.startswith("heads.")}
        techniques = [technique.record() for technique in bare_model(model).techniques]
        config = {"class": path_of_class(model), "techniques": techniques}
        weights, config_file = "adapter.safetensors", "adapter.json"
    else:
        raise TechniqueError(f"library must be 'zoo', 'peft' or 'adapters', got {library!r}")
    header = {"zoo.adapter": json.dumps(config, sort_keys=True)} if library == "zoo" else {"format": "pt"}
    folder = Path(folder)
    write_tensors(folder / weights, tensors, header)
    if library == "adapters":
        pickled = io.BytesIO()
        torch.save({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, pickled)
        write_atomically(folder / PICKLED[weights], pickled.getvalue())
    write_atomically(folder / config_file, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def load_adapter(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    layout: str | None = None,
    name: str | None = None,
) -> nn.Module:
    """Put an adapter onto a model: a folder that `save_adapter`, ``peft`` or ``adapters`` wrote, or
    its tensors with its config.

    layout: how the library that wrote it names the base model's parts; None = the family's Hugging
    Face layout. name: the adapter's, where the config has none. -> the same model.
    """
    if not isinstance(source, Mapping):
        folder = Path(source)
        if (folder / "adapter.json").is_file():
            return _load_own(model, folder)
        if (folder / FUSION_CONFIG).is_file():
            return _load_fusion(model, folder, layout)
        config = read_json(folder / "adapter_config.json") if config is None else config
        source = _tensors(folder, ADAPTER_FILES)
    if config is None:
        raise CheckpointError("tensors alone don't tell an adapter's scale; pass its config")
    if "peft_type" in config:
        return from_peft(model, source, config, layout=layout, name=name or "default")
    configs = {str(config.get("name", name or "default")): config.get("config", config)}
    return from_adapters(model, source, configs, layout=layout)


def _tensors(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors in the first of these files that is there."""
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds none of {', '.join(names)}")
    with open_archive(path) as archive:
        return {key: archive.read(key) for key in archive.tensors}


def _load_fusion(model: nn.Module, folder: Path, layout: str | None) -> nn.Module:
    """A fusion that ``adapters`` saved, onto adapters that are there."""
    described = read_json(folder / FUSION_CONFIG)
    names = described.get("adapter_names") or described["name"]
    names = tuple(names.split(",")) if isinstance(names, str) else tuple(names)
    tensors = _tensors(folder, FUSION_FILES)
    return from_adapters(model, tensors, {}, layout=layout, fusion=(names, described["config"]))


def _load_own(model: nn.Module, folder: Path) -> nn.Module:
    described = read_json(folder / "adapter.json")
    saved = CLASSES.get(described["class"], described["class"])
    if saved != path_of_class(model):
        raise CheckpointError(f"{folder} is an adapter of {saved}, not of {path_of_class(model)}")
    apply(model, *recorded(described["techniques"]))
    targets = {bare_name(model, key): tensor for key, tensor in model.state_dict(keep_vars=True).items()}
    copy_into(targets, _tensors(folder, ("adapter.safetensors",)), str(folder))
    return model
