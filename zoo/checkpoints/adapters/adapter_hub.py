"""Writing the layout of the library ``adapters``: one bottleneck adapter, with its invertible one,
one LoRA, IA3 or prefix, by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.adapters.places import _copy, _fill, _fill_prefix, _part_of, foreign_paths, layout_of
from zoo.errors import CheckpointError, TechniqueError
from zoo.layers.feed_forward import ACTIVATIONS as KNOWN_ACTIVATIONS
from zoo.maps import layouts
from zoo.models.base.model import bare_model
from zoo.models.base.sites import Site
from zoo.techniques.adapters.layers import AdaptedNorm, Coupled
from zoo.techniques.adapters.technique import ROLES, AdapterFusion, BottleneckAdapter, InvertibleAdapter
from zoo.techniques.base import Technique, apply
from zoo.techniques.lora.layers import GatedLowRank, InputRescaled, LowRank, LowRankUpdated, Rescaled
from zoo.techniques.lora.technique import IA3, LoRA
from zoo.techniques.prefix.technique import PrefixTuning

RESIDUALS: Mapping[str, Any] = {"result": True, "sum": "post_add", "input": False}
TEMPERATURES = {1.0: False, 50.0: True}
THEIRS = {"up": "adapter_up", "input_norm": "adapter_down.0", "output_norm": "adapter_norm_after", "gate": "gate"}


def to_adapters(
    model: nn.Module, name: str | None = None, layout: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter as ``adapters`` saves it: tensors and adapter_config. name: which, where the model
    has several.
    """
    bare = bare_model(model)
    own = [t for t in bare.techniques if isinstance(t, BottleneckAdapter | LoRA | IA3 | PrefixTuning)]
    names = sorted({t.name for t in own})
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        shown = ", ".join(names) or "none"
        raise TechniqueError(
            f"name one of the model's adapters, LoRAs, IA3s and prefixes, which are {shown}; got {name!r}"
        )
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


def _bottleneck(
    bare: Any, found: list[BottleneckAdapter], paths: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    first = found[0]
    if any(t.replace(reduction=first.reduction, depths=first.depths, streams=first.streams) != first for t in found):
        raise TechniqueError(
            f"the adapters named {first.name!r} differ in more than their reduction; adapters has one config for all"
        )
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
                tensors[f"invertible_adapters.{first.name}.{net.upper()}.{'0' if place == 'down' else '2'}.{last}"] = (
                    tensor
                )
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
            f"{first} can't be written for adapters: it knows no rank-stabilized scale, no bias of B, and its own DoRA "
            "alone; "
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
            f"{type(bare).__name__} has several kinds of attention; adapters' names for their prefixes are not written "
            "here"
        )
    if any(len(site.depths) > 1 for site in sites):
        raise TechniqueError(
            "one attention runs at several depths here; adapters has a prefix for each depth: save it with "
            "library='zoo'"
        )
    if technique.shift_positions:
        raise TechniqueError(
            "adapters leaves the positions of real tokens alone, and this prefix moves them: save it as peft's, or as "
            "ours"
        )
    start = f"prefix_tuning.prefix_tunings.{technique.name}.{'self' if layout == 'hf-distilbert' else 'self_prefix'}"
    state = {key: tensor.detach() for key, tensor in bare.prefixes[technique.name].state_dict().items()}
    flat = technique.bottleneck is None
    if flat:
        tensors = {f"{start}.control_trans": state["values"].flatten()}
    else:
        parts = {"table": "wte", "down": "control_trans.0", "up": "control_trans.2"}
        tensors = {
            f"{start}.{parts[key.partition('.')[0]]}.{key.partition('.')[2]}": tensor for key, tensor in state.items()
        }
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


def fusion_to_adapters(
    model: nn.Module, name: str, layout: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A fusion as ``adapters`` saves one, without the adapters that it fuses. name: theirs, joined
    by commas.
    """
    bare = bare_model(model)
    known = {",".join(t.names): t for t in bare.techniques if isinstance(t, AdapterFusion)}
    if name not in known:
        raise TechniqueError(
            f"name one of the model's fusions, which are {', '.join(map(repr, known)) or 'none'}; got {name!r}"
        )
    technique = known[name]
    if technique.temperature not in TEMPERATURES:
        raise TechniqueError(
            f"adapters knows the temperatures 1 and 50 of a fusion; this one has {technique.temperature}"
        )
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


ACTIVATIONS = {
    "swish": "silu",
    "linear": "identity",
    "gelu_new": "gelu_tanh",
    "gelu_orig": "gelu",
    "quick_gelu": "quick_gelu",
}


LORA_PLACES = {"q": "attention-query", "k": "attention-key", "v": "attention-value"}


ADAPTED_NORMS: Mapping[str, tuple[str, ...]] = {
    "attention_adapters": ("sa_layer_norm", "self_attn_layer_norm"),
    "cross_attention_adapters": ("encoder_attn_layer_norm",),
    "output_adapters": ("full_layer_layer_norm", "output_layer_norm", "final_layer_norm"),
}
"""Places of ``adapters`` beside BERT's, and the norms that stand there in one family or another."""


ALBERT_SWAPS = (
    "behind ALBERT's attention the library adapters takes the block's input for the attention's result, and that for "
    "the input"
)


def norm_of(path: str, paths: Mapping[str, str], prefixes: Sequence[str]) -> str:
    """Our path of the norm at which a bottleneck adapter of ``adapters`` sits."""
    within, _, place = path.rpartition(".")
    if place not in ADAPTED_NORMS:
        return _part_of(f"{path}.LayerNorm", paths, prefixes)
    if within.endswith(".attention"):
        raise CheckpointError(f"the adapter sits at {path!r}: {ALBERT_SWAPS}")
    for name in ADAPTED_NORMS[place]:
        for prefix in ("", *prefixes):
            norm = f"{within}.{name}"
            if norm.startswith(prefix) and (found := paths.get(norm[len(prefix) :])):
                return found
    raise CheckpointError(f"the adapter sits at {path!r}, and no norm of this model is known to stand there")


def place_of(norm: str) -> str:
    """The way back: the place of an adapter whose norm is called so in the foreign layout."""
    within, _, name = norm.rpartition(".")
    if within.endswith("output"):
        return within
    if within.endswith(".attention"):
        raise TechniqueError(f"an adapter at {norm!r} can't be written: {ALBERT_SWAPS}")
    place = next((place for place, norms in ADAPTED_NORMS.items() if name in norms), None)
    if place is None:
        raise TechniqueError(f"adapters has no place for an adapter at {norm!r}; save it with library='zoo'")
    return f"{within}.{place}"


ADAPTER_TENSOR = re.compile(r"(.+)\.(adapters|loras|adapter_fusion_layer)\.([^.]+)\.(.+)")


REPLACED = {
    "adapter_up": "up",
    "adapter_norm_before": "input_norm",
    "adapter_norm_after": "output_norm",
    "gate": "gate",
}


def split_adapters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's whole state under ``adapters``, as the base model's own tensors and the
    adapters'.
    """
    base: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if re.match(r"(\w+\.)?prompt_tuning\.", key) or ".prefix_tuning.pool." in key:
            continue  # views of other tensors
        mine = ADAPTER_TENSOR.fullmatch(key) or re.search(
            r"(invertible_adapters|prefix_tuning|prefix_gates|shared_parameters)\.", key
        )
        (adapter if mine else base)[key] = tensor
    return base, adapter


def from_adapters(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    layout: str | None = None,
    fusion: tuple[tuple[str, ...], Mapping[str, Any]] | None = None,
) -> nn.Module:
    """Apply what the library ``adapters`` saved: ``configs`` by adapter name. fusion: the names
    that are fused, and the fusion's config.
    """
    keymap = layouts.load(layout or layout_of(model))
    paths = foreign_paths(model, layout)
    bare = bare_model(model)
    taken: dict[str, Tensor] = {}
    for name, config in configs.items():
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            match = ADAPTER_TENSOR.fullmatch(key)
            if match and match[3] == name and match[2] != "adapter_fusion_layer":
                parts.setdefault(match[1], {})[match[4]] = tensor
        if config.get("phm_layer"):
            parts = {path: written_out(own, _shared(tensors, name)) for path, own in parts.items()}
        kind = config.get("architecture")
        if kind == "lora":
            apply(model, *_loras(name, config, parts, paths, keymap.prefixes))
            for path, own in parts.items():
                ours = _part_of(path, paths, keymap.prefixes)
                if config.get("composition_mode", "add") == "scale":
                    with torch.no_grad():
                        scale = own["lora_B"].flatten() * float(config.get("alpha", 1))
                        bare.get_parameter(f"{ours}.rescalings.{name}.scale").copy_(scale)
                else:
                    update = bare.get_submodule(f"{ours}.loras.{name}")
                    _fill(update, own["lora_A"], own["lora_B"], own.get("m.weight"))
                    if isinstance(update, GatedLowRank):
                        _copy(
                            {n: own[f"gate.{n}"] for n in ("weight", "bias")},
                            update.gate.state_dict(keep_vars=True),
                            "the gate",
                        )
            continue
        if kind == "prefix_tuning":
            _prefix_of_adapters(model, name, config, tensors)
            continue
        if kind == "union":
            for each in config["configs"]:
                from_adapters(model, tensors, {name: each}, layout=layout)
            continue
        if kind not in (None, "bottleneck"):
            raise TechniqueError(
                f"adapters' architecture {kind!r} is not read here; bottleneck, lora and prefix_tuning are"
            )
        norms = {path: norm_of(path, paths, keymap.prefixes) for path in parts}
        for technique in bottlenecks(name, config, norms.values(), bare):
            apply(model, technique)
        for path, own in parts.items():
            for key, tensor in own.items():
                taken[f"{norms[path]}.adapters.{name}.{_adapter_key(key, config)}"] = tensor
        coupled = next((path for path, part in bare.named_modules() if isinstance(part, Coupled)), "embeddings")
        for key, tensor in tensors.items():
            if match := re.fullmatch(
                rf"(?:.+\.)?invertible_adapters\.{re.escape(name)}\.([FG])\.([02])\.(weight|bias)", key
            ):
                taken[
                    f"{coupled}.couplings.{name}.{match[1].lower()}.{'down' if match[2] == '0' else 'up'}.{match[3]}"
                ] = tensor
    if fusion is not None:
        names, options = fusion
        apply(model, fusion_of(names, options))
        for key, tensor in tensors.items():
            if (
                (match := ADAPTER_TENSOR.fullmatch(key))
                and match[2] == "adapter_fusion_layer"
                and match[3] == ",".join(names)
            ):
                taken[f"{norm_of(match[1], paths, keymap.prefixes)}.fusions.{match[3]}.{match[4]}"] = tensor
    _copy(taken, bare.state_dict(keep_vars=True), "the adapter")
    return model


def _prefix_of_adapters(model: nn.Module, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    if config.get("use_gating"):
        raise TechniqueError("adapters' gated prefixes are not known here")
    start = re.compile(rf"(?:.+\.)?prefix_tuning\.prefix_tunings\.{re.escape(name)}\.self(?:_prefix)?\.(.+)")
    found = {m[1]: t for key, t in tensors.items() if (m := start.fullmatch(key))}
    flat, length = bool(config.get("flat")), int(config["prefix_length"])
    left_out = set(config.get("leave_out") or ())
    depths = sorted({d for site in bare_model(model).sites() if site.role == "self-attention" for d in site.depths})
    technique = PrefixTuning(
        name=name,
        length=length,
        bottleneck=None if flat else int(config["bottleneck_size"]),
        activation=activation_of(config.get("non_linearity", "tanh")),
        dropout=float(config.get("dropout", 0.0)),
        depths=tuple(d for d in depths if d not in left_out) if left_out else (),
    )
    apply(model, technique)
    if flat:
        taken = {"values": found["control_trans"].reshape(length, -1)}
    else:
        parts = {"wte": "table", "control_trans.0": "down", "control_trans.2": "up"}
        taken = {f"{parts[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor for key, tensor in found.items()}
    _fill_prefix(model, name, taken)


def _adapter_key(key: str, config: Mapping[str, Any]) -> str:
    if key == "scaling":
        return "learned_scaling"
    place, _, last = key.rpartition(".")
    if place.startswith(
        "adapter_down."
    ):  # a Sequential of the norm, where there is one, the projection and the activation
        index = int(place.removeprefix("adapter_down."))
        return f"{'down' if index == (1 if config.get('ln_before') else 0) else 'input_norm'}.{last}"
    if place not in REPLACED:
        raise TechniqueError(f"adapters' tensor {key!r} is of a kind that is not known here")
    return f"{REPLACED[place]}.{last}"


def _shared(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What all layers of a Compacter have together."""
    start = re.compile(rf"(?:.+\.)?shared_parameters\.{re.escape(name)}\.(.+)")
    return {m[1]: tensor for key, tensor in tensors.items() if (m := start.fullmatch(key))}


def written_out(own: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Compacter's projections (Mahabadi et al., 2021), ``Σ_i A_i ⊗ (S_i T_i)`` with Kronecker
    products, as plain matrices.
    """

    def product(key: str, found: Mapping[str, Tensor]) -> Tensor | None:
        left, right = found.get(f"{key}_left"), found.get(f"{key}_right")
        return found.get(key) if left is None or right is None else left @ right

    made = dict(own)
    for place in [
        p for p in ("adapter_down.0", "adapter_down.1", "adapter_up") if any(key.startswith(f"{p}.") for key in own)
    ]:
        mine = {key.removeprefix(f"{place}."): made.pop(key) for key in own if key.startswith(f"{place}.")}
        rules, factors = product("phm_rule", mine), product("W", mine)
        rules = product("phm_rule", shared) if rules is None else rules
        factors = (
            product(f"W_{place.removeprefix('adapter_').partition('.')[0]}", shared) if factors is None else factors
        )
        if rules is None and factors is not None:
            raise CheckpointError(
                "the Compacter's phm_rule, which all layers share, is not in the file: the library saves it with whole "
                "models only"
            )
        if rules is None or factors is None:  # the norm in front
            made |= {f"{place}.{key}": tensor for key, tensor in mine.items()}
            continue
        whole = torch.stack([torch.kron(rule, factor) for rule, factor in zip(rules, factors, strict=True)]).sum(
            0
        )  # (in, out)
        made[f"{place}.weight"] = whole.T
        made[f"{place}.bias"] = mine["b"] if "b" in mine else whole.new_zeros(whole.shape[1])
    return made


def bottlenecks(name: str, config: Mapping[str, Any], norms: Iterable[str], model: nn.Module) -> list[Technique]:
    """A bottleneck config of ``adapters`` as techniques of ours. norms: where the adapters sit."""
    if config.get("stochastic_depth"):
        raise TechniqueError("adapters' stochastic_depth is not known here")
    after = [
        place for key, place in (("mh_adapter", "attention"), ("output_adapter", "feed-forward")) if config.get(key)
    ]
    after += ["cross-attention"] if config.get("cross_adapter") else []
    whole = config.get("residual_before_ln", True)
    scaling = config.get("scaling", 1.0)
    base = BottleneckAdapter(
        name=name,
        after=tuple(after),
        activation=activation_of(config["non_linearity"]),
        norm_before=bool(config.get("original_ln_before", False)),
        norm_after=bool(config.get("original_ln_after", True)),
        residual="sum" if whole == "post_add" else "result" if whole else "input",
        parallel=bool(config.get("is_parallel", False)),
        scaling=scaling if isinstance(scaling, str) else float(scaling),
        input_norm=bool(config.get("ln_before", False)),
        output_norm=bool(config.get("ln_after", False)),
        own_residual_first=bool(config.get("adapter_residual_before_ln", False)),
        gate=bool(config.get("use_gating", False)),
        dropout=float(config.get("dropout", 0.0)),
        initialization={"mam_adapter": "mam"}.get(
            config.get("init_weights", "bert"), config.get("init_weights", "bert")
        ),
    )
    factor = config["reduction_factor"]
    sites = {site.path: site for site in bare_model(model).sites()}
    depths = sorted({depth for norm in norms for depth in sites[norm].depths})
    by_factor: dict[float, list[int]] = {}
    for depth in depths:
        own = (
            factor.get(str(depth), factor.get(depth, factor.get("default"))) if isinstance(factor, Mapping) else factor
        )
        by_factor.setdefault(float(own), []).append(depth)
    everywhere = depths == sorted(
        {d for site in sites.values() if site.role == "feed-forward-norm" for d in site.depths}
    )
    made: list[Technique] = [
        replace(base, reduction=f, depths=() if everywhere and len(by_factor) == 1 else tuple(at))
        for f, at in by_factor.items()
    ]
    if config.get("inv_adapter"):
        if config["inv_adapter"] != "nice":
            raise TechniqueError(f"adapters' inv_adapter {config['inv_adapter']!r} is not known here; 'nice' is")
        reduction = float(config.get("inv_adapter_reduction_factor") or 2)
        made.append(
            InvertibleAdapter(name=name, reduction=reduction, activation=activation_of(config["non_linearity"]))
        )
    return made


def activation_of(name: str) -> str:
    """Our name of an activation."""
    ours = ACTIVATIONS.get(name.lower(), name.lower())
    if ours not in KNOWN_ACTIVATIONS:
        raise TechniqueError(f"the activation {name!r} is not known here; these are: {', '.join(KNOWN_ACTIVATIONS)}")
    return ours


def _loras(
    name: str,
    config: Mapping[str, Any],
    parts: Mapping[str, Mapping[str, Tensor]],
    paths: Mapping[str, str],
    prefixes: Iterable[str],
) -> list[Technique]:
    if config.get("vera_d") is not None or config.get("vera_b") is not None:
        raise TechniqueError("adapters' VeRA is not known here")
    gate = bool(config.get("use_gating"))
    if gate and (config.get("composition_mode", "add") == "scale" or any("m.weight" in own for own in parts.values())):
        raise TechniqueError("adapters' gated IA3 and gated DoRA are not known here")
    where = tuple(_part_of(path, paths, prefixes) for path in parts)
    if config.get("composition_mode", "add") == "scale":
        return [IA3(paths=where, name=name)]
    dora = any("m.weight" in own for own in parts.values())
    rank, dropout = int(config["r"]), float(config.get("dropout", 0.0))
    alpha = rank if gate else float(config.get("alpha", 8))  # a gate stands in place of the scale
    return [
        LoRA(paths=where, rank=rank, alpha=alpha, dropout=dropout, dora=dora, dora_whole=dora, gate=gate, name=name)
    ]


def fusion_of(names: tuple[str, ...], config: Mapping[str, Any]) -> AdapterFusion:
    """A fusion config of ``adapters`` as ours; its temperature is the first step's, 50, where it
    has one.
    """
    return AdapterFusion(
        names=names,
        query=bool(config.get("query", True)),
        key=bool(config.get("key", True)),
        value=bool(config.get("value", True)),
        value_first=bool(config.get("value_before_softmax", True)),
        query_before_norm=bool(config.get("query_before_ln", False)),
        residual_first=bool(config.get("residual_before", False)),
        temperature=50.0 if config.get("temperature") else 1.0,
        dropout=float(config.get("dropout_prob") or 0.0),
    )
