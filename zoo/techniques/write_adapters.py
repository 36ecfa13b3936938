"""Writing the layout of the library ``adapters``: one bottleneck adapter, with its invertible one, or one LoRA, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.convert import layouts
from zoo.errors import TechniqueError
from zoo.layers.adapters import AdaptedNorm, Coupled
from zoo.layers.low_rank import LowRank, LowRankUpdated
from zoo.techniques.adapters import BottleneckAdapter, InvertibleAdapter
from zoo.techniques.base import bare_model
from zoo.techniques.foreign import ACTIVATIONS, LORA_PLACES, foreign_paths, layout_of
from zoo.techniques.lora import LoRA

RESIDUALS: Mapping[str, Any] = {"result": True, "sum": "post_add", "input": False}
THEIRS = {"up": "adapter_up", "input_norm": "adapter_down.0", "output_norm": "adapter_norm_after", "gate": "gate"}


def to_adapters(model: nn.Module, name: str | None = None, layout: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter as ``adapters`` saves it: tensors and adapter_config. name: which, where the model has several."""
    bare = bare_model(model)
    own = [t for t in bare.techniques if isinstance(t, BottleneckAdapter | LoRA)]
    names = sorted({t.name for t in own})
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise TechniqueError(f"name one of the model's adapters and LoRAs, which are {', '.join(names) or 'none'}; got {name!r}")
    mine = [t for t in own if t.name == name]
    if len({type(t) for t in mine}) > 1:
        raise TechniqueError(f"{name!r} is an adapter and a LoRA; adapters' union is not written here")
    paths = {ours: theirs for theirs, ours in foreign_paths(model, layout).items()}
    within = layouts.load(layout or layout_of(model)).prefixes[0] if bare is not model else ""
    if isinstance(mine[0], LoRA):
        tensors, config = _lora(bare, [t for t in mine if isinstance(t, LoRA)], paths)
    else:
        tensors, config = _bottleneck(bare, [t for t in mine if isinstance(t, BottleneckAdapter)], paths)
    return {within + key: tensor for key, tensor in tensors.items()}, {"name": name, "config": config}


def _bottleneck(bare: Any, found: list[BottleneckAdapter], paths: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    first = found[0]
    if any(t.replace(reduction=first.reduction, depths=first.depths, streams=first.streams) != first for t in found):
        raise TechniqueError(f"the adapters named {first.name!r} differ in more than their reduction; adapters has one config for all")
    tensors: dict[str, Tensor] = {}
    for path, part in bare.named_modules():
        if isinstance(part, AdaptedNorm) and first.name in part.adapters:
            at = paths[path].rpartition(".")[0]
            for key, tensor in part.adapters[first.name].state_dict().items():
                tensors[f"{at}.adapters.{first.name}.{_their_key(key, first)}"] = tensor
    coupled = next((t for t in bare.techniques if isinstance(t, InvertibleAdapter) and t.name == first.name), None)
    for part in bare.modules():
        if coupled is not None and isinstance(part, Coupled):
            for key, tensor in part.couplings[first.name].state_dict().items():
                net, place, last = key.split(".")
                tensors[f"invertible_adapters.{first.name}.{net.upper()}.{'0' if place == 'down' else '2'}.{last}"] = tensor
    factors = {str(depth): t.reduction for t in found for depth in t.depths}
    after = first.value("after", ())
    initialization = first.value("initialization", "bert")
    return tensors, {
        "mh_adapter": "attention" in after,
        "output_adapter": "feed-forward" in after,
        "cross_adapter": "cross-attention" in after,
        "reduction_factor": factors | {"default": first.reduction} if factors else first.reduction,
        "non_linearity": _their_activation(first.value("activation", "relu")),
        "original_ln_before": first.value("norm_before", False),
        "original_ln_after": first.norm_after,
        "residual_before_ln": RESIDUALS[first.residual],
        "adapter_residual_before_ln": first.own_residual_first,
        "ln_before": first.input_norm,
        "ln_after": first.output_norm,
        "is_parallel": first.value("parallel", False),
        "scaling": first.value("scaling", 1.0),
        "use_gating": first.gate,
        "dropout": first.dropout,
        "init_weights": "mam_adapter" if initialization == "mam" else initialization,
        "inv_adapter": None if coupled is None else "nice",
        "inv_adapter_reduction_factor": None if coupled is None else coupled.reduction,
        "leave_out": [],
        "phm_layer": False,
    }


def _their_key(key: str, technique: BottleneckAdapter) -> str:
    if key == "learned_scaling":
        return "scaling"
    place, _, last = key.rpartition(".")
    if place == "down":
        return f"adapter_down.{1 if technique.input_norm else 0}.{last}"
    return f"{THEIRS[place]}.{last}"


def _their_activation(name: str) -> str:
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == name), name)


def _lora(bare: Any, found: list[LoRA], paths: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    first = found[0]
    if first.rank_stabilized or first.bias or (first.dora and not first.dora_whole):
        raise TechniqueError(
            f"{first} can't be written for adapters: it knows no rank-stabilized scale, no bias of B, and its own DoRA alone"
        )
    roles = {site.path: site.role for site in bare.sites()}
    tensors: dict[str, Tensor] = {}
    met: set[str] = set()
    for path, part in bare.named_modules():
        if isinstance(part, LowRankUpdated) and first.name in part.loras:
            update = part.loras[first.name]
            assert isinstance(update, LowRank)
            if update.down.shape[0] != first.rank or update.scale != first.scale:
                raise TechniqueError(f"the LoRA at {path} has a rank or scale of its own; adapters has one for all")
            at = f"{paths[path]}.loras.{first.name}"
            tensors |= {f"{at}.lora_A": update.down.detach(), f"{at}.lora_B": update.up.detach()}
            if update.magnitude is not None:
                tensors[f"{at}.m.weight"] = update.magnitude.detach()[None]
            met.add(roles.get(path, ""))
    places = [short for short, role in LORA_PLACES.items() if role in met]
    return tensors, {
        "architecture": "lora",
        "selfattn_lora": bool(places),
        "intermediate_lora": "feed-forward-up" in met,
        "output_lora": "feed-forward-down" in met,
        "attn_matrices": places,
        "r": first.rank,
        "alpha": first.rank if first.alpha is None else first.alpha,
        "dropout": first.dropout,
        "composition_mode": "add",
        "init_weights": "lora",
        "use_gating": False,
        "leave_out": [],
    }
