"""Putting an adapter onto a model, all or nothing: it is tried on the model's names and shapes, and only
then done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from zoo.checkpoints.checks import check_kinds
from zoo.errors import CheckpointError
from zoo.formats.archive import DTYPE_NAMES, Info
from zoo.formats.limits import guarded
from zoo.formats.writer import check_finite
from zoo.maps.plans import Target
from zoo.models.base.model import bare_model, shadow

M = TypeVar("M", bound=nn.Module)


def put_on(
    model: M, fill: Callable[[nn.Module], object], shown: str, floats: Mapping[str, Tensor] = MappingProxyType({})
) -> M:
    """Apply an adapter's techniques and copy its tensors, which ``fill`` does to any model. -> the same
    model, as it was where an error is raised.

    Refused is also an adapter that leaves tensors of its own at random. ``floats``: tensors that must
    hold floats, since they are computed with before they are copied.
    """
    for name, tensor in floats.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{shown}: {name!r} holds {kind}, where floats belong")
    tried = shadow(model)
    with guarded(shown):
        fill(tried)
    had = model.state_dict().keys()
    state = tried.state_dict(keep_vars=True)
    lacking = [name for name, tensor in state.items() if name not in had and not tensor._version]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise CheckpointError(
            f"{shown}: nothing in the file makes {lacking[0]}{more}, which would stay random; is the file whole, and "
            "was the adapter trained on a model of as many layers?"
        )
    fill(model)
    return model


@torch.no_grad()
def write(target: Tensor, tensor: Tensor, key: str, shown: str) -> None:
    """Copy a stored tensor into one of a model, refusing another shape, another kind of number, and
    what is not finite in the model's dtype.
    """
    found = Info(tuple(tensor.shape), DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)))
    if found.shape != tuple(target.shape):
        raise CheckpointError(f"{shown}: {key} is {found.shape}; this model needs {tuple(target.shape)}")
    try:
        check_kinds({key: found}, {key: Target(found.shape, DTYPE_NAMES[target.dtype])}, cast=True)
        check_finite(tensor, key)
        check_finite(tensor.to(target.dtype), key, f" in the model's {target.dtype}")
    except CheckpointError as error:
        raise CheckpointError(f"{shown}: {error}") from error
    target.copy_(tensor)


def check_every_layer(model: nn.Module, met: Iterable[str], left_out: Iterable[Any], shown: str) -> None:
    """Refuse an adapter that sits at some layers and not at others of which nothing says that they
    are left out. met: our paths of the parts at which it sits.
    """
    sites = {site.path: site for site in bare_model(model).sites()}
    found, out = set(met) & set(sites), {int(depth) for depth in left_out}
    kinds = {(sites[path].role, sites[path].stream, _kind(path)) for path in found}
    for path, site in sites.items():
        if path in found or (site.role, site.stream, _kind(path)) not in kinds or set(site.depths) <= out:
            continue
        raise CheckpointError(
            f"{shown} has tensors at {len(found)} parts of this model and none at {path}, which its config does not "
            "leave out; is the file whole, and was the adapter trained on a model of as many layers?"
        )


def _kind(path: str) -> str:
    """A path without its numbers: the same for the same part of each layer."""
    return re.sub(r"\d+", "#", path)
