"""Writing the layout of the library ``adapters``: one bottleneck adapter, with its invertible one, one LoRA, IA3 or prefix, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.convert import layouts
from zoo.errors import TechniqueError
from zoo.layers.adapters import AdaptedNorm, Coupled
from zoo.layers.low_rank import InputRescaled, LowRank, LowRankUpdated, Rescaled
from zoo.model import Site
from zoo.techniques.adapters import ROLES, AdapterFusion, BottleneckAdapter, InvertibleAdapter
from zoo.techniques.base import bare_model
from zoo.techniques.foreign import ACTIVATIONS, LORA_PLACES, foreign_paths, layout_of, place_of
from zoo.techniques.lora import IA3, LoRA
from zoo.techniques.prefix import PrefixTuning

RESIDUALS: Mapping[str, Any] = {"result": True, "sum": "post_add", "input": False}
TEMPERATURES = {1.0: False, 50.0: True}
THEIRS = {"up": "adapter_up", "input_norm": "adapter_down.0", "output_norm": "adapter_norm_after", "gate": "gate"}


def to_adapters(model: nn.Module, name: str | None = None, layout: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter as ``adapters`` saves it: tensors and adapter_config. name: which, where the model has several."""
    bare = bare_model(model)
    own = [t for t in bare.techniques if isinstance(t, BottleneckAdapter | LoRA | IA3 | PrefixTuning)]
    names = sorted({t.name for t in own})
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        shown = ", ".join(names) or "none"
        raise TechniqueError(f"name one of the model's adapters, LoRAs, IA3s and prefixes, which are {shown}; got {name!r}")
    mine = [t for t in own if t.name == name]
    if len({type(t) for t in mine}) > 1:
        kinds = sorted({type(t).__name__ for t in mine})
        raise TechniqueError(f"{name!r} names a {' and a '.join(kinds)}; adapters' union is not written here")
    paths = {ours: theirs for theirs, ours in foreign_paths(model, layout).items()}
    within = layouts.load(layout or layout_of(model)).prefixes[0] if bare is not model else ""
    if isinstance(mine[0], LoRA):
        tensors, config = _lora(bare, [t for t in mine if isinstance(t, LoRA)], paths)
    elif isinstance(mine[0], IA3):
        tensors, config = _ia3(bare, name, paths)
    elif isinstance(mine[0], PrefixTuning):
        tensors, config = _prefix(bare, mine[0], layout or layout_of(model))
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
            at = place_of(paths[path])
            for key, tensor in part.adapters[first.name].state_dict().items():
                tensors[f"{at}.adapters.{first.name}.{_their_key(key, first)}"] = tensor
                if key.startswith("input_norm."):  # which stands there twice, under another name too
                    tensors[f"{at}.adapters.{first.name}.adapter_norm_before.{key.rpartition('.')[2]}"] = tensor.clone()
    norms = [site for site in bare.sites() if site.role in ROLES.values()]
    kept = {depth for site in norms if first.name in getattr(site.module, "adapters", ()) for depth in site.depths}
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
        "leave_out": sorted({depth for site in norms for depth in site.depths} - kept),
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
    if first.rank_stabilized or first.bias or first.gate or (first.dora and not first.dora_whole):
        raise TechniqueError(
            f"{first} can't be written for adapters: it knows no rank-stabilized scale, no bias of B, and its own DoRA alone; "
            "gates are not written"
        )
    sites = {site.path: site for site in bare.sites()}
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
                tensors[f"{at}.m.weight"] = update.magnitude.detach()[:, None]
            met.add(path)
    return tensors, {
        "architecture": "lora",
        **_places(sites, met),
        "r": first.rank,
        "alpha": first.rank if first.alpha is None else first.alpha,
        "dropout": first.dropout,
        "composition_mode": "add",
        "use_dora": first.dora,
        "init_weights": "lora",
        "use_gating": False,
    }


def _places(sites: Mapping[str, Site], met: set[str]) -> dict[str, Any]:
    """How a config says at which roles, and at which depths not, an update sits."""
    roles = {sites[path].role for path in met if path in sites}
    depths = {depth for site in sites.values() if site.role == "feed-forward" for depth in site.depths}
    return {
        "selfattn_lora": any(role in roles for role in LORA_PLACES.values()),
        "intermediate_lora": "feed-forward-up" in roles,
        "output_lora": "feed-forward-down" in roles,
        "attn_matrices": [short for short, role in LORA_PLACES.items() if role in roles],
        "leave_out": sorted(depths - {depth for path in met if path in sites for depth in sites[path].depths}),
    }


def _ia3(bare: Any, name: str, paths: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A LoRA of rank 1 without A, that scales."""
    sites = {site.path: site for site in bare.sites()}
    tensors: dict[str, Tensor] = {}
    met: set[str] = set()
    for path, part in bare.named_modules():
        if isinstance(part, InputRescaled) and name in part.input_rescalings:
            raise TechniqueError(f"the inputs of {path} are scaled; adapters' IA3 scales outputs alone")
        if isinstance(part, Rescaled) and name in part.rescalings:
            scale = part.rescalings.get_parameter(f"{name}.scale").detach()
            tensors[f"{paths[path]}.loras.{name}.lora_B"] = scale[:, None]
            met.add(path)
    return tensors, {
        "architecture": "lora",
        **_places(sites, met),
        "r": 1,
        "alpha": 1,
        "dropout": 0.0,
        "composition_mode": "scale",
        "init_weights": "ia3",
        "use_gating": False,
    }


def _prefix(bare: Any, technique: PrefixTuning, layout: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    sites = [site for site in bare.sites() if site.role == "self-attention"]
    if len({site.stream for site in sites}) > 1 or any(site.role == "cross-attention" for site in bare.sites()):
        raise TechniqueError(
            f"{type(bare).__name__} has several kinds of attention; adapters' names for their prefixes are not written here"
        )
    if any(len(site.depths) > 1 for site in sites):
        raise TechniqueError("one attention runs at several depths here; adapters has a prefix for each depth: save it with library='zoo'")
    if technique.shift_positions:
        raise TechniqueError(
            "adapters leaves the positions of real tokens alone, and this prefix moves them: save it as peft's, or as ours"
        )
    start = f"prefix_tuning.prefix_tunings.{technique.name}.{'self' if layout == 'hf-distilbert' else 'self_prefix'}"
    state = {key: tensor.detach() for key, tensor in bare.prefixes[technique.name].state_dict().items()}
    flat = technique.bottleneck is None
    if flat:
        tensors = {f"{start}.control_trans": state["values"].flatten()}
    else:
        parts = {"table": "wte", "down": "control_trans.0", "up": "control_trans.2"}
        tensors = {f"{start}.{parts[key.partition('.')[0]]}.{key.partition('.')[2]}": tensor for key, tensor in state.items()}
    kept = {depth for site in technique.places(bare, "self-attention") for depth in site.depths}
    return tensors, {
        "architecture": "prefix_tuning",
        "flat": flat,
        "prefix_length": technique.length,
        "bottleneck_size": technique.bottleneck or bare.hidden_size,
        "non_linearity": _their_activation(technique.activation),
        "dropout": technique.dropout,
        "leave_out": sorted({depth for site in sites for depth in site.depths} - kept),
        "encoder_prefix": True,
        "cross_prefix": True,
        "use_gating": False,
    }


def fusion_to_adapters(model: nn.Module, name: str, layout: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A fusion as ``adapters`` saves one, without the adapters that it fuses. name: theirs, joined by commas."""
    bare = bare_model(model)
    known = {",".join(t.names): t for t in bare.techniques if isinstance(t, AdapterFusion)}
    if name not in known:
        raise TechniqueError(f"name one of the model's fusions, which are {', '.join(map(repr, known)) or 'none'}; got {name!r}")
    technique = known[name]
    if technique.temperature not in TEMPERATURES:
        raise TechniqueError(f"adapters knows the temperatures 1 and 50 of a fusion; this one has {technique.temperature}")
    paths = {ours: theirs for theirs, ours in foreign_paths(model, layout).items()}
    within = layouts.load(layout or layout_of(model)).prefixes[0] if bare is not model else ""
    tensors: dict[str, Tensor] = {}
    for path, part in bare.named_modules():
        if isinstance(part, AdaptedNorm) and name in part.fusions:
            at = f"{within}{place_of(paths[path])}.adapter_fusion_layer.{name}"
            tensors |= {f"{at}.{key}": tensor for key, tensor in part.fusions[name].state_dict().items()}
    return tensors, {
        "name": name,
        "adapter_names": list(technique.names),
        "config": {
            "query": technique.query,
            "key": technique.key,
            "value": technique.value,
            "value_before_softmax": technique.value_first,
            "query_before_ln": technique.query_before_norm,
            "residual_before": technique.residual_first,
            "temperature": TEMPERATURES[technique.temperature],
            "dropout_prob": technique.dropout or None,
            "value_initialized": True,
            "regularization": True,
        },
    }
