"""Where a tensor of an adapter library belongs in a model of ours, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from zoo.errors import CheckpointError, TechniqueError
from zoo.formats.archive import DTYPE_NAMES, Info
from zoo.layers.extend import own_class
from zoo.maps import layouts
from zoo.maps.plans import Plan
from zoo.models.base.model import bare_model
from zoo.registry import variants as registry
from zoo.techniques.lora.layers import LowRank


def _canonical(model: nn.Module, name: str) -> str:
    return name if bare_model(model) is model else name.removeprefix("model.")


@torch.no_grad()
def _copy(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor], shown: str) -> None:
    for key, tensor in stored.items():
        if key not in targets:
            raise CheckpointError(f"{shown}: nothing in this model takes the stored tensor {key}")
        if targets[key].shape != tensor.shape:
            raise CheckpointError(
                f"{shown}: {key} is {tuple(tensor.shape)}; this model needs {tuple(targets[key].shape)}"
            )
        targets[key].copy_(tensor)


def layout_of(model: nn.Module) -> str:
    """The Hugging Face layout of a model's family."""
    bare = bare_model(model)
    mine = f"{own_class(bare).__module__}:{own_class(bare).__qualname__}"
    for variants in registry.families().values():
        for variant in variants:
            if variant.class_path == mine:
                for layout in layouts.available():
                    if layout.startswith("hf-") and layouts.load(layout).family == variant.maps:
                        return layout
    raise TechniqueError(
        f"no layout of the Hugging Face library is known for {type(bare).__name__}; name one with layout="
    )


def way_back(model: nn.Module, layout: str | None = None) -> Plan:
    """How the model's own tensors, without what techniques added, go into a foreign layout."""
    bare = bare_model(model)
    keymap = layouts.load(layout or layout_of(model))
    added = {key for change in getattr(bare, "changes", ()) for key in change.added}
    state = {_canonical(model, key): tensor for key, tensor in model.state_dict().items()}
    infos = {
        k: Info(tuple(t.shape), DTYPE_NAMES[t.dtype])
        for k, t in state.items()
        if k not in added and not k.endswith(".magnitude")
    }
    return keymap.back(infos, bare.config.to_dict())


def foreign_paths(model: nn.Module, layout: str | None = None) -> dict[str, str]:
    """The path of each part in a foreign layout, as the bare model has it, to its path in ours
    (heads under ``heads.``).
    """
    plan = way_back(model, layout)
    paths: dict[str, str] = {}
    for step in plan.steps:
        if len(step.sources) == 1 and len(step.targets) == 1:
            theirs, ours = step.targets[0].removeprefix(plan.prefix), step.sources[0]
            paths[theirs.rpartition(".")[0]] = ours.rpartition(".")[0]
    return paths


def _part_of(path: str, paths: Mapping[str, str], prefixes: Iterable[str]) -> str:
    """Our path of a foreign module, with or without the base model's prefix."""
    for prefix in ("", *prefixes):
        if path.startswith(prefix) and (found := paths.get(path[len(prefix) :])):
            return found
    raise CheckpointError(f"the adapter sits at {path!r}, and no part of this model is called so in that layout")


@torch.no_grad()
def _fill(
    update: nn.Module, down: Tensor, up: Tensor, magnitude: Tensor | None = None, bias: Tensor | None = None
) -> None:
    assert isinstance(update, LowRank)
    update.down.copy_(down)
    update.up.copy_(up)
    if magnitude is not None and update.magnitude is not None:
        update.magnitude.copy_(magnitude.flatten())
    if bias is not None and update.up_bias is not None:
        update.up_bias.copy_(bias)


def _fill_prefix(model: nn.Module, name: str, taken: Mapping[str, Tensor]) -> None:
    wanted = bare_model(model).get_submodule(f"prefixes.{name}").state_dict(keep_vars=True)
    if missing := sorted(set(wanted) - set(taken)):
        raise CheckpointError(f"the prefix: nothing in the file makes its {', '.join(missing)}")
    _copy(taken, wanted, "the prefix")
