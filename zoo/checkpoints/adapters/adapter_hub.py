"""The layout of the library ``adapters``: one bottleneck adapter, with its invertible one, one LoRA,
IA3 or prefix, by name, or a fusion of several.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.adapters.places import (
    Places,
    Written,
    chosen,
    copy_into,
    fill_prefix,
    fill_update,
    prefixed_sites,
    renamed,
)
from zoo.checkpoints.adapters.putting import check_every_layer, put_on
from zoo.errors import CheckpointError, TechniqueError
from zoo.layers.feed_forward import ACTIVATIONS as KNOWN_ACTIVATIONS
from zoo.models.base.model import bare_model
from zoo.models.base.sites import Site
from zoo.techniques.adapters.layers import AdaptedNorm, Coupled
from zoo.techniques.adapters.technique import ROLES, AdapterFusion, BottleneckAdapter, InvertibleAdapter
from zoo.techniques.base import Technique, apply
from zoo.techniques.lora.layers import GatedLowRank, InputRescaled, LowRank, LowRankUpdated, Rescaled
from zoo.techniques.lora.technique import IA3, LoRA
from zoo.techniques.prefix.technique import PrefixTuning

# the library's word for a field of ours that is on or off, and what it is where neither says so
BOTTLENECK_SWITCHES = {
    "norm_before": ("original_ln_before", False),
    "norm_after": ("original_ln_after", True),
    "own_residual_first": ("adapter_residual_before_ln", False),
    "input_norm": ("ln_before", False),
    "output_norm": ("ln_after", False),
    "parallel": ("is_parallel", False),
    "gate": ("use_gating", False),
}
FUSION_SWITCHES = {
    "query": ("query", True),
    "key": ("key", True),
    "value": ("value", True),
    "value_first": ("value_before_softmax", True),
    "query_before_norm": ("query_before_ln", False),
    "residual_first": ("residual_before", False),
}
PLACES = {"attention": "mh_adapter", "feed-forward": "output_adapter", "cross-attention": "cross_adapter"}
RESIDUALS: Mapping[str, Any] = {"result": True, "sum": "post_add", "input": False}
INITIALIZATIONS = {"mam": "mam_adapter"}
TEMPERATURES = {1.0: False, 50.0: True}
ACTIVATIONS = {"swish": "silu", "linear": "identity", "gelu_new": "gelu_tanh", "gelu_orig": "gelu"}
LORA_PLACES = {"q": "attention-query", "k": "attention-key", "v": "attention-value"}
ADAPTER_PARTS = {
    "up": "adapter_up",
    "input_norm": "adapter_norm_before",
    "output_norm": "adapter_norm_after",
    "gate": "gate",
}
PREFIX_PARTS = {"table": "wte", "down": "control_trans.0", "up": "control_trans.2"}
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
ADAPTER_TENSOR = re.compile(r"(.+)\.(adapters|loras|adapter_fusion_layer)\.([^.]+)\.(.+)")


# --- names


def norm_of(path: str, places: Places) -> str:
    """Our path of the norm at which a bottleneck adapter of ``adapters`` sits."""
    within, _, place = path.rpartition(".")
    if place not in ADAPTED_NORMS:
        return places.part(f"{path}.LayerNorm")
    if within.endswith(".attention"):
        raise CheckpointError(f"the adapter sits at {path!r}: {ALBERT_SWAPS}")
    found = next((found for name in ADAPTED_NORMS[place] if (found := places.find(f"{within}.{name}"))), None)
    if found is None:
        raise CheckpointError(f"the adapter sits at {path!r}, and no norm of this model is known to stand there")
    return found


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


def activation_of(name: str) -> str:
    """Our name of an activation."""
    own = ACTIVATIONS.get(name.lower(), name.lower())
    if own not in KNOWN_ACTIVATIONS:
        raise TechniqueError(f"the activation {name!r} is not known here; these are: {', '.join(KNOWN_ACTIVATIONS)}")
    return own


def _activation_to(name: str) -> str:
    return next((foreign for foreign, own in ACTIVATIONS.items() if own == name), name)


def _key_to(key: str, technique: BottleneckAdapter) -> str:
    """The library's name of a tensor of an adapter. Its down is a Sequential of the norm, where
    there is one, the projection and the activation.
    """
    if key == "learned_scaling":
        return "scaling"
    place, _, last = key.rpartition(".")
    if place == "down":
        return f"adapter_down.{1 if technique.input_norm else 0}.{last}"
    return f"{'adapter_down.0' if place == 'input_norm' else ADAPTER_PARTS[place]}.{last}"


def _key_from(key: str, config: Mapping[str, Any]) -> str:
    if key == "scaling":
        return "learned_scaling"
    place, _, last = key.rpartition(".")
    if place.startswith("adapter_down."):
        own = "down" if place.endswith(".1" if config.get("ln_before") else ".0") else "input_norm"
    else:
        own = next((own for own, foreign in ADAPTER_PARTS.items() if foreign == place), "")
    if not own:
        raise TechniqueError(f"adapters' tensor {key!r} is of a kind that is not known here")
    return f"{own}.{last}"


# --- writing


def to_adapters(model: nn.Module, name: str | None = None, layout: str | None = None) -> Written:
    """An adapter as ``adapters`` saves it: tensors and adapter_config. name: which, where the model
    has several.
    """
    bare = bare_model(model)
    own = [t for t in bare.techniques if isinstance(t, BottleneckAdapter | LoRA | IA3 | PrefixTuning)]
    kinds, one_kind = "adapters, LoRAs, IA3s and prefixes", "adapters' union is not written here"
    found = chosen(own, name, kinds, one_kind)
    places = Places(model, layout)
    if isinstance(found[0], PrefixTuning):
        tensors, config = _prefix(bare, found[0], places.keymap.layout)
    else:
        writers: dict[type, Callable[..., Written]] = {LoRA: _lora, IA3: _ia3, BottleneckAdapter: _bottleneck}
        write = writers[type(found[0])]
        tensors, config = write(bare, found, places.foreign)
    named = {places.within + key: tensor for key, tensor in tensors.items()}
    return named, {"name": found[0].name, "config": config}


def _bottleneck(bare: Any, found: list[BottleneckAdapter], paths: Mapping[str, str]) -> Written:
    first = found[0]
    if any(t.replace(reduction=first.reduction, depths=first.depths, streams=first.streams) != first for t in found):
        raise TechniqueError(
            f"the adapters named {first.name!r} differ in more than their reduction; adapters has one config for all"
        )
    tensors: dict[str, Tensor] = {}
    for path, part in bare.named_modules():
        if isinstance(part, AdaptedNorm) and first.name in part.adapters:
            at = f"{place_of(paths[path])}.adapters.{first.name}"
            for key, tensor in part.adapters[first.name].state_dict().items():
                tensors[f"{at}.{_key_to(key, first)}"] = tensor
                if key.startswith("input_norm."):  # which stands there twice, under another name too
                    tensors[f"{at}.adapter_norm_before.{key.rpartition('.')[2]}"] = tensor.clone()
    norms = [site for site in bare.sites() if site.role in ROLES.values()]
    kept = {depth for site in norms if first.name in getattr(site.module, "adapters", ()) for depth in site.depths}
    coupled = next((t for t in bare.techniques if isinstance(t, InvertibleAdapter) and t.name == first.name), None)
    for part in bare.modules():
        if coupled is not None and isinstance(part, Coupled):
            for key, tensor in part.couplings[first.name].state_dict().items():
                net, place, last = key.split(".")
                at = f"invertible_adapters.{first.name}.{net.upper()}.{'0' if place == 'down' else '2'}"
                tensors[f"{at}.{last}"] = tensor
    factors = {str(depth): t.reduction for t in found for depth in t.depths}
    after, initialization = first.value("after", ()), first.value("initialization", "bert")
    switches = {key: first.value(field, default) for field, (key, default) in BOTTLENECK_SWITCHES.items()}
    return tensors, {
        **{key: place in after for place, key in PLACES.items()},
        **switches,
        "reduction_factor": factors | {"default": first.reduction} if factors else first.reduction,
        "non_linearity": _activation_to(first.value("activation", "relu")),
        "residual_before_ln": RESIDUALS[first.residual],
        "scaling": first.value("scaling", 1.0),
        "dropout": first.dropout,
        "init_weights": INITIALIZATIONS.get(initialization, initialization),
        "inv_adapter": None if coupled is None else "nice",
        "inv_adapter_reduction_factor": None if coupled is None else coupled.reduction,
        "leave_out": sorted({depth for site in norms for depth in site.depths} - kept),
        "phm_layer": False,
    }


def _lora(bare: Any, found: list[LoRA], paths: Mapping[str, str]) -> Written:
    first = found[0]
    if first.rank_stabilized or first.bias or first.gate or (first.dora and not first.dora_whole):
        raise TechniqueError(
            f"{first} can't be written for adapters: it knows no rank-stabilized scale, no bias of B, and its own DoRA "
            "alone; gates are not written"
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


def _ia3(bare: Any, found: list[IA3], paths: Mapping[str, str]) -> Written:
    """A LoRA of rank 1 without A, that scales."""
    name = found[0].name
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


def _prefix(bare: Any, technique: PrefixTuning, layout: str) -> Written:
    sites = prefixed_sites(bare, "adapters")
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
        tensors = {f"{start}.{key}": tensor for key, tensor in renamed(state, PREFIX_PARTS).items()}
    kept = {depth for site in technique.places(bare, "self-attention") for depth in site.depths}
    return tensors, {
        "architecture": "prefix_tuning",
        "flat": flat,
        "prefix_length": technique.length,
        "bottleneck_size": technique.bottleneck or bare.hidden_size,
        "non_linearity": _activation_to(technique.activation),
        "dropout": technique.dropout,
        "leave_out": sorted({depth for site in sites for depth in site.depths} - kept),
        "encoder_prefix": True,
        "cross_prefix": True,
        "use_gating": False,
    }


def fusion_to_adapters(model: nn.Module, name: str, layout: str | None = None) -> Written:
    """A fusion as ``adapters`` saves one, without the adapters that it fuses. name: the adapters'
    names, joined by commas.
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
    places = Places(model, layout)
    tensors: dict[str, Tensor] = {}
    for path, part in bare.named_modules():
        if isinstance(part, AdaptedNorm) and name in part.fusions:
            at = f"{places.within}{place_of(places.foreign[path])}.adapter_fusion_layer.{name}"
            tensors |= {f"{at}.{key}": tensor for key, tensor in part.fusions[name].state_dict().items()}
    return tensors, {
        "name": name,
        "adapter_names": list(technique.names),
        "config": {
            **{key: getattr(technique, field) for field, (key, _) in FUSION_SWITCHES.items()},
            "temperature": TEMPERATURES[technique.temperature],
            "dropout_prob": technique.dropout or None,
            "value_initialized": True,
            "regularization": True,
        },
    }


# --- reading


def split_adapters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's whole state under ``adapters``, as the base model's own tensors and the
    adapters'.
    """
    base: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if re.match(r"(\w+\.)?prompt_tuning\.", key) or ".prefix_tuning.pool." in key:
            continue  # views of other tensors
        added = ADAPTER_TENSOR.fullmatch(key) or re.search(
            r"(invertible_adapters|prefix_tuning|prefix_gates|shared_parameters)\.", key
        )
        (adapter if added else base)[key] = tensor
    return base, adapter


def from_adapters(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    configs: Mapping[str, Mapping[str, Any]],
    *,
    layout: str | None = None,
    fusion: tuple[tuple[str, ...], Mapping[str, Any]] | None = None,
) -> nn.Module:
    """Apply what the library ``adapters`` saved, or leave the model as it was: ``configs`` by adapter
    name. fusion: the names that are fused, and the fusion's config.
    """
    shown = f"the adapter {', '.join(configs) or ','.join(fusion[0] if fusion else ())!r}"
    return put_on(model, lambda one: _fill(one, tensors, configs, layout, fusion), shown, tensors)


def _fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    configs: Mapping[str, Mapping[str, Any]],
    layout: str | None,
    fusion: tuple[tuple[str, ...], Mapping[str, Any]] | None = None,
) -> None:
    places = Places(model, layout)
    stored = [(match, tensor) for key, tensor in tensors.items() if (match := ADAPTER_TENSOR.fullmatch(key))]
    taken: dict[str, Tensor] = {}
    for name, config in configs.items():
        parts: dict[str, dict[str, Tensor]] = {}
        for match, tensor in stored:
            if match[3] == name and match[2] != "adapter_fusion_layer":
                parts.setdefault(match[1], {})[match[4]] = tensor
        if config.get("phm_layer"):
            parts = {path: written_out(own, _shared(tensors, name)) for path, own in parts.items()}
        kind = config.get("architecture")
        if kind == "lora":
            _apply_lora(model, name, config, {places.part(path): own for path, own in parts.items()})
        elif kind == "prefix_tuning":
            _apply_prefix(model, name, config, tensors)
        elif kind == "union":
            for each in config["configs"]:
                _fill(model, tensors, {name: each}, layout)
        elif kind in (None, "bottleneck"):
            taken |= _apply_bottleneck(model, name, config, {norm_of(path, places): own for path, own in parts.items()})
            taken |= _couplings(bare_model(model), name, tensors)
        else:
            raise TechniqueError(
                f"adapters' architecture {kind!r} is not read here; bottleneck, lora and prefix_tuning are"
            )
    if fusion is not None:
        names, options = fusion
        apply(model, fusion_of(names, options))
        for match, tensor in stored:
            if match[2] == "adapter_fusion_layer" and match[3] == ",".join(names):
                taken[f"{norm_of(match[1], places)}.fusions.{match[3]}.{match[4]}"] = tensor
    copy_into(bare_model(model).state_dict(keep_vars=True), taken, "the adapter")


def _apply_bottleneck(
    model: nn.Module, name: str, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """Put the adapters of a name at their norms -> the tensors that they want, under our names."""
    check_every_layer(model, parts, config.get("leave_out") or (), f"the adapter {name!r}")
    for technique in bottlenecks(name, config, parts, bare_model(model)):
        apply(model, technique)
    return {
        f"{norm}.adapters.{name}.{_key_from(key, config)}": tensor
        for norm, own in parts.items()
        for key, tensor in own.items()
    }


def _couplings(bare: nn.Module, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an invertible adapter, under our names."""
    coupled = next((path for path, part in bare.named_modules() if isinstance(part, Coupled)), "embeddings")
    form = re.compile(rf"(?:.+\.)?invertible_adapters\.{re.escape(name)}\.([FG])\.([02])\.(weight|bias)")
    found = [(match, tensor) for key, tensor in tensors.items() if (match := form.fullmatch(key))]
    return {
        f"{coupled}.couplings.{name}.{m[1].lower()}.{'down' if m[2] == '0' else 'up'}.{m[3]}": tensor
        for m, tensor in found
    }


def _apply_lora(
    model: nn.Module, name: str, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """A LoRA, or an IA3, which is one without A, that scales. parts: its tensors by our path."""
    check_every_layer(model, parts, config.get("leave_out") or (), f"the adapter {name!r}")
    if config.get("vera_d") is not None or config.get("vera_b") is not None:
        raise TechniqueError("adapters' VeRA is not known here")
    scales = config.get("composition_mode", "add") == "scale"
    gate, dora = bool(config.get("use_gating")), any("m.weight" in own for own in parts.values())
    if gate and (scales or dora):
        raise TechniqueError("adapters' gated IA3 and gated DoRA are not known here")
    if scales:
        apply(model, IA3(paths=tuple(parts), name=name))
        factor = float(config.get("alpha", 1))
        taken = {f"{path}.rescalings.{name}.scale": own["lora_B"].flatten() * factor for path, own in parts.items()}
        copy_into(bare_model(model).state_dict(keep_vars=True), taken, "the adapter")
        return
    rank, dropout = int(config["r"]), float(config.get("dropout", 0.0))
    alpha = rank if gate else float(config.get("alpha", 8))  # a gate stands in place of the scale
    where: dict[str, Any] = {"paths": tuple(parts), "name": name}
    apply(model, LoRA(rank=rank, alpha=alpha, dropout=dropout, dora=dora, dora_whole=dora, gate=gate, **where))
    for path, own in parts.items():
        update = bare_model(model).get_submodule(f"{path}.loras.{name}")
        fill_update(update, path, own.get("lora_A"), own.get("lora_B"), own.get("m.weight"))
        if isinstance(update, GatedLowRank):
            gates = {part: own[f"gate.{part}"] for part in ("weight", "bias")}
            copy_into(update.gate.state_dict(keep_vars=True), gates, "the gate")


def _apply_prefix(model: nn.Module, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
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
        taken = renamed(found, {foreign: own for own, foreign in PREFIX_PARTS.items()})
    fill_prefix(model, technique, taken)


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
    for place in ("adapter_down.0", "adapter_down.1", "adapter_up"):
        stored = {key.removeprefix(f"{place}."): made.pop(key) for key in own if key.startswith(f"{place}.")}
        short = place.removeprefix("adapter_").partition(".")[0]
        rules, factors = product("phm_rule", stored), product("W", stored)
        rules = product("phm_rule", shared) if rules is None else rules
        factors = product(f"W_{short}", shared) if factors is None else factors
        if not stored:
            continue
        if rules is None and factors is not None:
            raise CheckpointError(
                "the Compacter's phm_rule, which all layers share, is not in the file: the library saves it with whole "
                "models only"
            )
        if rules is None or factors is None:  # the norm in front
            made |= {f"{place}.{key}": tensor for key, tensor in stored.items()}
            continue
        terms = [torch.kron(rule, factor) for rule, factor in zip(rules, factors, strict=True)]
        whole = torch.stack(terms).sum(0)  # (in, out)
        made[f"{place}.weight"] = whole.T
        made[f"{place}.bias"] = stored["b"] if "b" in stored else whole.new_zeros(whole.shape[1])
    return made


def bottlenecks(name: str, config: Mapping[str, Any], norms: Iterable[str], model: nn.Module) -> list[Technique]:
    """A bottleneck config of ``adapters`` as techniques of ours. norms: where the adapters sit."""
    if config.get("stochastic_depth"):
        raise TechniqueError("adapters' stochastic_depth is not known here")
    scaling, weights = config.get("scaling", 1.0), config.get("init_weights", "bert")
    residual = config.get("residual_before_ln", True)
    base = BottleneckAdapter(
        name=name,
        after=tuple(place for place, key in PLACES.items() if config.get(key)),
        activation=activation_of(config["non_linearity"]),
        residual="sum" if residual == "post_add" else "result" if residual else "input",
        scaling=scaling if isinstance(scaling, str) else float(scaling),
        dropout=float(config.get("dropout", 0.0)),
        initialization=next((own for own, foreign in INITIALIZATIONS.items() if foreign == weights), weights),
        **_switches(BOTTLENECK_SWITCHES, config),
    )
    factor = config["reduction_factor"]
    sites = {site.path: site for site in bare_model(model).sites()}
    depths = sorted({depth for norm in norms for depth in sites[norm].depths})
    by_factor: dict[float, list[int]] = {}
    for depth in depths:
        own = factor
        if isinstance(factor, Mapping):
            own = factor.get(str(depth), factor.get(depth, factor.get("default")))
        by_factor.setdefault(float(own), []).append(depth)
    all_depths = {d for site in sites.values() if site.role == "feed-forward-norm" for d in site.depths}
    everywhere = len(by_factor) == 1 and set(depths) == all_depths
    made: list[Technique] = [
        replace(base, reduction=own, depths=() if everywhere else tuple(at)) for own, at in by_factor.items()
    ]
    if config.get("inv_adapter"):
        if config["inv_adapter"] != "nice":
            raise TechniqueError(f"adapters' inv_adapter {config['inv_adapter']!r} is not known here; 'nice' is")
        reduction = float(config.get("inv_adapter_reduction_factor") or 2)
        activation = activation_of(config["non_linearity"])
        made.append(InvertibleAdapter(name=name, reduction=reduction, activation=activation))
    return made


def fusion_of(names: tuple[str, ...], config: Mapping[str, Any]) -> AdapterFusion:
    """A fusion config of ``adapters`` as ours; its temperature is the first step's, 50, where it
    has one.
    """
    return AdapterFusion(
        names=names,
        temperature=50.0 if config.get("temperature") else 1.0,
        dropout=float(config.get("dropout_prob") or 0.0),
        **_switches(FUSION_SWITCHES, config),
    )


def _switches(switches: Mapping[str, tuple[str, bool]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields that are on or off, as a config of the library says."""
    return {field: bool(config.get(key, default)) for field, (key, default) in switches.items()}
