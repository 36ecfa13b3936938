"""Adapters in the layouts of the libraries ``peft`` and ``adapters``, and alone in a file of ours.

Both libraries name an adapter's tensors after the module of the base model at which it sits
(``encoder.layer.0.attention.self.query``); the family's own map says which part of ours that is, so
every family with a map can read them. Both store LoRA's A and B as they are and its scale in the
config: here it goes into the technique.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints.adapters.adapter_hub import from_adapters
from zoo.checkpoints.adapters.peft import from_peft
from zoo.checkpoints.adapters.places import _canonical, _copy
from zoo.errors import CheckpointError, TechniqueError
from zoo.formats.opening import open_archive
from zoo.formats.writer import write_tensors
from zoo.layers.extend import own_class
from zoo.models.base.model import bare_model
from zoo.techniques.base import apply, new_tensors, recorded

FUSION_CONFIG, FUSION_FILES = (
    "adapter_fusion_config.json",
    ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin"),
)


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
    (and no heads), or for the fusion of adapters named like "a,b".
    """
    folder = Path(folder)
    bare = bare_model(model)
    if library == "peft":
        from zoo.checkpoints.adapters.peft import to_peft

        tensors, config = to_peft(model, name, layout)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        (folder / "adapter_config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
        return folder
    if library == "adapters":
        from zoo.checkpoints.adapters.adapter_hub import fusion_to_adapters, to_adapters

        if name is not None and "," in name:
            (tensors, config), weights, config_file = (
                fusion_to_adapters(model, name, layout),
                FUSION_FILES[0],
                FUSION_CONFIG,
            )
        else:
            (tensors, config), weights, config_file = (
                to_adapters(model, name, layout),
                "adapter.safetensors",
                "adapter_config.json",
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / weights, tensors, {"format": "pt"})
        (folder / config_file).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return folder
    if library != "zoo":
        raise TechniqueError(f"library must be 'zoo', 'peft' or 'adapters', got {library!r}")
    own = {_canonical(model, name): tensor.detach() for name, tensor in new_tensors(model)}
    own |= {name: tensor.detach() for name, tensor in model.state_dict().items() if name.startswith("heads.")}
    description = {
        "class": f"{own_class(bare).__module__}:{own_class(bare).__qualname__}",
        "techniques": [t.record() for t in bare.techniques],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / "adapter.safetensors", own, {"zoo.adapter": json.dumps(description, sort_keys=True)})
    (folder / "adapter.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")
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
    tensors: Mapping[str, Tensor]
    if isinstance(source, Mapping):
        tensors = source
    else:
        folder = Path(source)
        if (folder / "adapter.json").is_file():
            return _load_ours(model, folder)
        if (folder / FUSION_CONFIG).is_file():
            return _load_fusion(model, folder, layout)
        if config is None:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        found = (
            "adapter_model.safetensors",
            "adapter_model.bin",
            "pytorch_adapter.bin",
            "model.safetensors",
            "adapter.safetensors",
        )
        path = next((folder / f for f in found if (folder / f).is_file()), None)
        if path is None:
            raise CheckpointError(f"{folder} holds none of {', '.join(found)}")
        with open_archive(path) as archive:
            tensors = {key: archive.read(key) for key in archive.tensors}
    if config is None:
        raise CheckpointError("tensors alone don't tell an adapter's scale; pass its config")
    if "peft_type" in config:
        return from_peft(model, tensors, config, layout=layout, name=name or "default")
    return from_adapters(
        model, tensors, {str(config.get("name", name or "default")): config.get("config", config)}, layout=layout
    )


def _load_fusion(model: nn.Module, folder: Path, layout: str | None) -> nn.Module:
    """A fusion that ``adapters`` saved, onto adapters that are there."""
    described = json.loads((folder / FUSION_CONFIG).read_text(encoding="utf-8"))
    path = next((folder / name for name in FUSION_FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds none of {', '.join(FUSION_FILES)}")
    with open_archive(path) as archive:
        tensors = {key: archive.read(key) for key in archive.tensors}
    names = described.get("adapter_names") or described["name"]
    names = tuple(names.split(",")) if isinstance(names, str) else tuple(names)
    return from_adapters(model, tensors, {}, layout=layout, fusion=(names, described["config"]))


def _load_ours(model: nn.Module, folder: Path) -> nn.Module:
    description = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    bare = bare_model(model)
    if description["class"] != (mine := f"{own_class(bare).__module__}:{own_class(bare).__qualname__}"):
        raise CheckpointError(f"{folder} is an adapter of {description['class']}, not of {mine}")
    apply(model, *recorded(description["techniques"]))
    with open_archive(folder / "adapter.safetensors") as archive:
        wanted = {_canonical(model, key): tensor for key, tensor in model.state_dict(keep_vars=True).items()}
        _copy({key: archive.read(key) for key in archive.tensors}, wanted, str(folder))
    return model


# --- which part of ours a foreign path means


# --- peft


# --- adapters
