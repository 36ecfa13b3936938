"""Adapters alone in a folder: in the layouts of the libraries ``peft`` and ``adapters``, and in a
file of ours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints.adapters.adapter_hub import from_adapters, fusion_to_adapters, to_adapters
from zoo.checkpoints.adapters.bases import check_base, described_base
from zoo.checkpoints.adapters.peft import check_saved_heads, from_peft, to_peft
from zoo.checkpoints.adapters.places import bare_name, copy_into, path_of_class
from zoo.checkpoints.adapters.putting import put_on
from zoo.checkpoints.adapters.stored import FUSION, LIBRARY, OWN, StoredAdapter, read_adapter, write_adapter
from zoo.checkpoints.description import FORMAT_VERSION
from zoo.checkpoints.files import read_json
from zoo.errors import CheckpointError, TechniqueError
from zoo.formats.limits import guarded
from zoo.models.base.model import bare_model, unwrapped
from zoo.registry.renames import CLASSES
from zoo.techniques.base import apply, recorded


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
    ``.safetensors`` and, since it reads nothing else unless told to, as a pickle of plain tensors. A
    folder holds one adapter: the files of an older one, of whatever library, go.
    """
    config: dict[str, Any]
    model = unwrapped(model)
    if library == "peft":
        tensors, config = to_peft(model, name, layout)
        kind, weights = LIBRARY, "adapter_model.safetensors"
    elif library == "adapters" and name is not None and "," in name:
        tensors, config = fusion_to_adapters(model, name, layout)
        kind, weights = FUSION, "model_adapter_fusion.safetensors"
    elif library == "adapters":
        tensors, config = to_adapters(model, name, layout)
        kind, weights = LIBRARY, "adapter.safetensors"
    elif library == "zoo":
        added = {name for change in getattr(bare_model(model), "changes", ()) for name in change.added}
        state = {bare_name(model, key): tensor.detach() for key, tensor in model.state_dict().items()}
        tensors = {key: tensor for key, tensor in state.items() if key in added or key.startswith("heads.")}
        techniques = [technique.record() for technique in bare_model(model).techniques]
        config = {"class": path_of_class(model), "techniques": techniques}
        kind, weights = OWN, "adapter.safetensors"
    else:
        raise TechniqueError(f"library must be 'zoo', 'peft' or 'adapters', got {library!r}")
    folder = Path(folder)
    write_adapter(folder, kind, weights, tensors, config, described_base(model), pickled=library == "adapters")
    return folder


def load_adapter(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    layout: str | None = None,
    name: str | None = None,
) -> nn.Module:
    """Put an adapter onto a model: a folder that `save_adapter`, ``peft`` or ``adapters`` wrote, or
    its tensors with its config.

    config: a dict or a JSON file that counts whatever lies there; one that was edited since it was
    saved is refused otherwise. layout: how the library that wrote it names the base model's parts;
    None = the family's Hugging Face layout. name: the adapter's, where the config has none. -> the
    same model.
    """
    config = config if config is None or isinstance(config, Mapping) else read_json(Path(config))
    if not isinstance(source, Mapping):
        found = read_adapter(Path(source), config)
        check_base(model, found.metadata, str(source))
        if found.kind == OWN:
            return _put_own(model, found, str(source))
        if found.kind == FUSION:
            return _put_fusion(model, found, layout, str(source))
        source, config = found.tensors, found.config
    if not isinstance(config, Mapping) and config is not None:
        raise CheckpointError(f"an adapter's config is a mapping, got {type(config).__name__}")
    if config is None:
        raise CheckpointError("tensors alone don't tell an adapter's scale; pass its config")
    if "peft_type" in config:
        with guarded("the adapter's config"):
            check_saved_heads(model, source, config, layout)
        return from_peft(model, source, config, layout=layout, name=name or "default")
    configs = {str(config.get("name", name or "default")): config.get("config", config)}
    return from_adapters(model, source, configs, layout=layout)


def _put_fusion(model: nn.Module, found: StoredAdapter, layout: str | None, shown: str) -> nn.Module:
    """A fusion that ``adapters`` saved, onto adapters that are there."""
    names, config = found.config.get("adapter_names") or found.config.get("name"), found.config.get("config")
    names = names.split(",") if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or not isinstance(config, dict):
        raise CheckpointError(f"{shown}: {FUSION} must name the adapters that it fuses, and have a config")
    return from_adapters(model, found.tensors, {}, layout=layout, fusion=(tuple(names), config))


def _put_own(model: nn.Module, found: StoredAdapter, shown: str) -> nn.Module:
    version, records = found.config.get("zoo_format", 1), found.config.get("techniques")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise CheckpointError(
            f"{shown} was written by a newer zoo (format {version!r}; this one knows {FORMAT_VERSION})"
        )
    if not isinstance(records, list):
        raise CheckpointError(f"{shown}: {OWN} must list the adapter's techniques, got {records!r}")
    saved = str(found.config.get("class"))
    saved = CLASSES.get(saved, saved)
    if saved != path_of_class(model):
        raise CheckpointError(f"{shown} is an adapter of {saved}, not of {path_of_class(model)}")
    techniques = recorded(records)

    def fill(one: nn.Module) -> None:
        apply(one, *techniques)
        targets = {bare_name(one, key): tensor for key, tensor in one.state_dict(keep_vars=True).items()}
        copy_into(targets, found.tensors, shown)

    return put_on(model, fill, shown)
