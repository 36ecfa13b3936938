"""`zoo.save`: a model and its description into a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from zoo.checkpoints.binding import CONFIG_FILE, WEIGHTS_FILE, Binding, hashes
from zoo.checkpoints.description import describe, write_description
from zoo.checkpoints.staging import staged
from zoo.data.images.files import write_images
from zoo.data.images.images import Images
from zoo.errors import InputError, ZooError, warn
from zoo.formats.disk import writing
from zoo.formats.sparse_tensors import packed
from zoo.formats.writer import write_tensors
from zoo.inference.search.settings import FILE as SEARCH_FILE
from zoo.inference.search.settings import Search
from zoo.models.base.model import Model, bare_model, wrappers
from zoo.tasks.base import TaskModel, canonical_state
from zoo.techniques.blueprint import Blueprint, WithHeads


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    images: Images | None = None,
    shard_size: int | None = None,
    sparse: bool = False,
) -> Path:
    """Write ``config.json`` and ``model.safetensors`` (the tokenizer's files too, for a model that
    reads pictures ``preprocessor_config.json``, for one with a ``search`` of its own
    ``generation_config.json``) into a folder, all or nothing. What torch wraps
    around a model (torch.compile, DataParallel, AveragedModel) is left out, and a ZooWarning names
    it.

    The files are written beside the folder and moved in when they are whole; a folder that exists
    is replaced file by file, and a tokenizer in it stays where none is given. Each file says which
    save it is of, so that no two saves are mixed. Tensors stand under the canonical names, a task's
    heads under ``heads.``. A model in shares (`zoo.training.shard`) is saved by all processes
    together. Returns the folder.

    images: how the model wants its pictures; ``model.images`` by default.
    shard_size: bytes after which a new weights file begins. sparse: tensors with many zeros are
    stored by their other values alone where that is smaller; `load` and every converter here read
    them.
    """
    folder = Path(folder)
    *outside, model = wrappers(model)
    if not isinstance(model, Model | TaskModel | WithHeads):
        raise InputError(f"a model of the zoo is saved, got a {type(model).__name__}; pass the model inside of it")
    if getattr(model, "prepared", None) is not None:
        raise InputError(
            "this model was prepared by zoo.optimize and holds its weights in no form that can be saved; save the "
            "original"
        )
    if outside:
        around = " in ".join(type(wrapper).__name__ for wrapper in reversed(outside))
        warn(f"what is saved is the {type(model).__name__} inside of {around}, with the weights that it has there")
    description = describe(Blueprint.of(model))
    if sparse and shard_size is not None:
        raise InputError("sparse=True writes one file; leave shard_size out")
    if images is None and "pixel_values" in bare_model(model).inputs:
        images = bare_model(model).images
    search = _search_of(model) if bare_model(model).writes else None
    tensors = {name: whole(tensor.detach()) for name, tensor in canonical_state(model).items()}
    if is_shared_out(model) and dist.get_rank():
        dist.barrier()  # the first process writes
        return folder
    with writing(folder), staged(folder, keep=True) as stage:
        if tokenizer is not None:
            tokenizer.save(stage)
        if images is not None:
            write_images(images, stage)
        if search is not None and (search != Search() or (folder / SEARCH_FILE).is_file()):
            search.write(stage)
        binding = Binding(description, files=hashes(stage))
        tensors, how = packed(tensors) if sparse else (tensors, {})
        how = {"format": "pt", **how}  # without it the loaders of accelerate and transformers refuse a file
        written = write_tensors(stage / WEIGHTS_FILE, tensors, how, shard_size=shard_size, seal=binding.header)
        write_description(stage / CONFIG_FILE, binding.described(written.content_sha256))
    if is_shared_out(model):
        dist.barrier()
    return folder


def _search_of(model: Any) -> Search | None:
    """How the model writes; None, with a warning, where what lies beside its weights can't be read any more."""
    try:
        found: Search | None = getattr(model, "search", None)
    except ZooError as error:
        warn(f"the settings that the model writes with are not saved: {error}")
        return None
    return found


def is_shared_out(model: nn.Module) -> bool:
    """Whether the parameters lie in shares on several processes (FSDP2)."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor that lies in shares, gathered from all processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[no-any-return]
