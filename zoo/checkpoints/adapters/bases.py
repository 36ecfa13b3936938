"""Which base an adapter was trained on: said in its file, and held against the model that it is put onto."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import CheckpointError, warn
from zoo.formats.limits import guarded
from zoo.formats.plain_json import parse_json
from zoo.models.base.model import bare_model, on_meta

HEADER = "zoo.base"  # in the metadata of an adapter's file; the other libraries read past it
SAMPLES = 64  # values of each tensor
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def described_base(model: nn.Module) -> dict[str, str]:
    """What an adapter's file says of the model below: its layers, and hashes of some of its values in
    each dtype in which it may be loaded.
    """
    bare, (names, values) = bare_model(model), _sampled(model)
    hashes = {name: _hash(values.to(dtype)) for name, dtype in DTYPES.items()}
    said = {"layers": _layers(bare), "tensors": names, "dtype": str(values.dtype).removeprefix("torch."), **hashes}
    return {HEADER: json.dumps(said, sort_keys=True)}


def check_base(model: nn.Module, metadata: Mapping[str, Any], shown: str) -> None:
    """Refuse an adapter of a model with other layers, and warn where the base has other weights than
    that of the adapter. Nothing is said where the file says nothing, or where one of them is stored
    otherwise, as packed integers.
    """
    if HEADER not in metadata:
        return
    bare = bare_model(model)
    with guarded(f"{shown}: {HEADER}"):
        said = dict(parse_json(str(metadata[HEADER]), HEADER))
        layers = dict(said["layers"])
    for name, number in _layers(bare).items():
        if name in layers and layers[name] != number:
            raise CheckpointError(
                f"{shown} is an adapter of a model with {name}={layers[name]!r}; this one has {number}"
            )
    if on_meta(bare):
        return
    names, values = _sampled(model)
    own = str(values.dtype).removeprefix("torch.")
    kinds = [kind for kind in DTYPES if kind in (own, said.get("dtype"))]
    if names == said.get("tensors") and not any(_hash(values.to(DTYPES[kind])) == said.get(kind) for kind in kinds):
        warn(
            f"{shown} was trained on a base with other weights than this {type(bare).__name__} has, and changes them "
            "as if they were its own; load the base that it was trained on, unless you mean this"
        )


def _layers(bare: Any) -> dict[str, int]:
    names = [name for name in bare.config.field_names() if name.endswith("num_layers")]
    return {name: getattr(bare.config, name) for name in names}


def _sampled(model: nn.Module) -> tuple[str, Tensor]:
    """A hash of the names of a base's floats, and some values of each. Left out are what techniques
    added and the token table, whose rows a trimmed vocabulary may lack.
    """
    bare = bare_model(model)
    added = {name for change in getattr(bare, "changes", ()) for name in change.added}
    base = {
        name: tensor.detach()
        for name, tensor in bare.state_dict().items()
        if tensor.is_floating_point() and name not in added and not name.startswith("embeddings.token")
    }
    found = [tensor.flatten()[:: max(1, tensor.numel() // SAMPLES)][:SAMPLES] for tensor in base.values()]
    names = hashlib.sha256(" ".join(f"{name}{tuple(tensor.shape)}" for name, tensor in base.items()).encode())
    return names.hexdigest()[:32], torch.cat(found).cpu() if found else torch.zeros(0)


def _hash(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:32]
