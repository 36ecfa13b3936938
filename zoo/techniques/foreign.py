"""Adapters in the layouts of the libraries ``peft`` and ``adapters``, and alone in a file of ours.

Both libraries name an adapter's tensors after the module of the base model at which it sits (``encoder.layer.0.attention.self.query``); the
family's own map says which part of ours that is, so every family with a map can read them. Both store LoRA's A and B as they are and its
scale in the config: here it goes into the technique.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo import registry
from zoo.config import ACTIVATION_NAMES
from zoo.convert import layouts
from zoo.convert.keymap import Info, Plan
from zoo.convert.ops import DTYPE_NAMES
from zoo.convert.readers import open_archive
from zoo.convert.writer import write_tensors
from zoo.errors import CheckpointError, TechniqueError
from zoo.layers.adapters import Coupled
from zoo.layers.extend import own_class
from zoo.layers.low_rank import GatedLowRank, LowRank
from zoo.techniques.adapters import AdapterFusion, BottleneckAdapter, InvertibleAdapter
from zoo.techniques.base import Technique, apply, bare_model, new_tensors, recorded
from zoo.techniques.lora import IA3, LoRA
from zoo.techniques.prefix import PrefixTuning

ACTIVATIONS = {"swish": "silu", "linear": "identity", "gelu_new": "gelu_tanh", "gelu_orig": "gelu", "quick_gelu": "quick_gelu"}
LORA_PLACES = {"q": "attention-query", "k": "attention-key", "v": "attention-value"}
PEFT_PREFIX = "base_model.model."
FUSION_CONFIG, FUSION_FILES = "adapter_fusion_config.json", ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")


def save_adapter(
    model: nn.Module, folder: str | os.PathLike[str], *, library: str = "zoo", layout: str | None = None, name: str | None = None
) -> Path:
    """Write what techniques added, and a task's heads, without the model below. -> the folder.

    library: "zoo" (``adapter.safetensors``, ``adapter.json``) for every technique, "peft" for the LoRA, IA3 or prefix of this ``name``,
    "adapters" for its bottleneck adapter, LoRA, IA3 or prefix (and no heads), or for the fusion of adapters named like "a,b".
    """
    folder = Path(folder)
    bare = bare_model(model)
    if library == "peft":
        from zoo.techniques.write_peft import to_peft

        tensors, config = to_peft(model, name, layout)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return folder
    if library == "adapters":
        from zoo.techniques.write_adapters import fusion_to_adapters, to_adapters

        if name is not None and "," in name:
            (tensors, config), weights, config_file = fusion_to_adapters(model, name, layout), FUSION_FILES[0], FUSION_CONFIG
        else:
            (tensors, config), weights, config_file = to_adapters(model, name, layout), "adapter.safetensors", "adapter_config.json"
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
    """Put an adapter onto a model: a folder that `save_adapter`, ``peft`` or ``adapters`` wrote, or its tensors with its config.

    layout: how the library that wrote it names the base model's parts; None = the family's Hugging Face layout. name: the adapter's, where
    the config has none. -> the same model.
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
        found = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin", "model.safetensors", "adapter.safetensors")
        path = next((folder / f for f in found if (folder / f).is_file()), None)
        if path is None:
            raise CheckpointError(f"{folder} holds none of {', '.join(found)}")
        with open_archive(path) as archive:
            tensors = {key: archive.read(key) for key in archive.tensors}
    if config is None:
        raise CheckpointError("tensors alone don't tell an adapter's scale; pass its config")
    if "peft_type" in config:
        return from_peft(model, tensors, config, layout=layout, name=name or "default")
    return from_adapters(model, tensors, {str(config.get("name", name or "default")): config.get("config", config)}, layout=layout)


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


def _canonical(model: nn.Module, name: str) -> str:
    return name if bare_model(model) is model else name.removeprefix("model.")


@torch.no_grad()
def _copy(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor], shown: str) -> None:
    for key, tensor in stored.items():
        if key not in targets:
            raise CheckpointError(f"{shown}: nothing in this model takes the stored tensor {key}")
        if targets[key].shape != tensor.shape:
            raise CheckpointError(f"{shown}: {key} is {tuple(tensor.shape)}; this model needs {tuple(targets[key].shape)}")
        targets[key].copy_(tensor)


# -- which part of ours a foreign path means ----------------------------------------------------------------------------------------------


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
    raise TechniqueError(f"no layout of the Hugging Face library is known for {type(bare).__name__}; name one with layout=")


def way_back(model: nn.Module, layout: str | None = None) -> Plan:
    """How the model's own tensors, without what techniques added, go into a foreign layout."""
    bare = bare_model(model)
    keymap = layouts.load(layout or layout_of(model))
    added = {key for change in getattr(bare, "changes", ()) for key in change.added}
    state = {_canonical(model, key): tensor for key, tensor in model.state_dict().items()}
    infos = {k: Info(tuple(t.shape), DTYPE_NAMES[t.dtype]) for k, t in state.items() if k not in added and not k.endswith(".magnitude")}
    return keymap.back(infos, bare.config.to_dict())


def foreign_paths(model: nn.Module, layout: str | None = None) -> dict[str, str]:
    """The path of each part in a foreign layout, as the bare model has it, to its path in ours (heads under ``heads.``)."""
    plan = way_back(model, layout)
    paths: dict[str, str] = {}
    for step in plan.steps:
        if len(step.sources) == 1 and len(step.targets) == 1:
            theirs, ours = step.targets[0].removeprefix(plan.prefix), step.sources[0]
            paths[theirs.rpartition(".")[0]] = ours.rpartition(".")[0]
    return paths


ADAPTED_NORMS: Mapping[str, tuple[str, ...]] = {
    "attention_adapters": ("sa_layer_norm", "self_attn_layer_norm"),
    "cross_attention_adapters": ("encoder_attn_layer_norm",),
    "output_adapters": ("full_layer_layer_norm", "output_layer_norm", "final_layer_norm"),
}
"""Places of ``adapters`` beside BERT's, and the norms that stand there in one family or another."""
ALBERT_SWAPS = "behind ALBERT's attention the library adapters takes the block's input for the attention's result, and that for the input"


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


def _part_of(path: str, paths: Mapping[str, str], prefixes: Iterable[str]) -> str:
    """Our path of a foreign module, with or without the base model's prefix."""
    for prefix in ("", *prefixes):
        if path.startswith(prefix) and (found := paths.get(path[len(prefix) :])):
            return found
    raise CheckpointError(f"the adapter sits at {path!r}, and no part of this model is called so in that layout")


# -- peft ---------------------------------------------------------------------------------------------------------------------------------


def split_peft(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A ``peft`` model's whole state in memory, as the base model's own tensors and the adapter's."""
    base: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = key.removeprefix(PEFT_PREFIX).removeprefix("base_model.")
        if ".original_module." in key or key.startswith("word_embeddings."):
            continue  # unused, and another name of the token table
        if any(word in key for word in (".lora_", ".ia3_l", ".modules_to_save.", "prompt_encoder.", "prompt_embeddings")):
            adapter[key] = tensor
            if ".modules_to_save." in key:
                base[re.sub(r"\.modules_to_save\.[^.]+\.", ".", plain)] = tensor
        else:
            base[plain.replace(".base_layer.", ".")] = tensor
    return base, adapter


def from_peft(
    model: nn.Module, tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, layout: str | None = None, name: str = "default"
) -> nn.Module:
    """Apply a LoRA, an IA3 or a prefix as ``peft`` saves it. Heads that were saved whole are copied into the heads of a task model."""
    kind = str(config["peft_type"]).rpartition(".")[2].upper()
    if kind not in ("LORA", "IA3", "PREFIX_TUNING"):
        raise TechniqueError(f"peft_type {config['peft_type']!r} is not read here; LORA, IA3 and PREFIX_TUNING are")
    if kind == "PREFIX_TUNING":
        _prefix_of_peft(model, name, config, {key: tensor for key, tensor in tensors.items() if "prompt_e" in key})
        tensors = {key: tensor for key, tensor in tensors.items() if "prompt_e" not in key}
    for option in ("layer_replication", "use_qalora", "use_bdlora"):
        if config.get(option):
            raise TechniqueError(f"peft's {option}={config[option]!r} is not known here")
    keymap = layouts.load(layout or layout_of(model))
    paths = foreign_paths(model, layout)
    state = {_canonical(model, key): tensor for key, tensor in model.state_dict(keep_vars=True).items()}
    found: dict[str, dict[str, Tensor]] = {}
    scales: dict[str, Tensor] = {}
    with torch.no_grad():
        for key, tensor in tensors.items():
            plain = key.removeprefix(PEFT_PREFIX).removeprefix("base_model.").replace(".base_layer.", ".")
            if scaled := re.fullmatch(r"(.+)\.ia3_l(?:\.[^.]+)?", plain):
                scales[_part_of(scaled[1], paths, keymap.prefixes)] = tensor
                continue
            match = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(weight|bias))?", plain)
            if match and (match[3] != "bias" or match[2] == "lora_B"):
                found.setdefault(match[1], {})[match[2] + ("_bias" if match[3] == "bias" else "")] = tensor
            elif match or ".lora_" in plain:
                raise TechniqueError(f"peft's tensor {key!r} is of a kind that is not known here")
            else:
                path, _, last = re.sub(r"\.modules_to_save\.[^.]+\.", ".", plain).rpartition(".")
                target = state.get(f"{_part_of(path, paths, keymap.prefixes)}.{last}")
                if target is None or target.shape != tensor.shape:
                    raise CheckpointError(f"nothing in this model takes the stored tensor {key}")
                target.copy_(tensor)
    if scales:
        _rescalings_of_peft(model, name, scales)
    groups: dict[tuple[int, float], dict[str, dict[str, Tensor]]] = {}
    for path, parts in found.items():
        rank = parts["lora_A"].shape[0]
        alpha = float(next((a for k, a in (config.get("alpha_pattern") or {}).items() if _named(path, k)), config.get("lora_alpha", 8)))
        groups.setdefault((rank, alpha), {})[_part_of(path, paths, keymap.prefixes)] = parts
    for (rank, alpha), places in groups.items():
        technique = LoRA(
            rank=rank,
            alpha=alpha,
            dropout=float(config.get("lora_dropout") or 0),
            rank_stabilized=bool(config.get("use_rslora")),
            bias=any("lora_B_bias" in parts for parts in places.values()),
            dora=any("lora_magnitude_vector" in parts for parts in places.values()),
            paths=tuple(places),
            name=name,
        )
        apply(model, technique)
        for path, parts in places.items():
            update = bare_model(model).get_submodule(f"{path}.loras.{name}")
            _fill(update, parts["lora_A"], parts["lora_B"], parts.get("lora_magnitude_vector"), parts.get("lora_B_bias"))
    return model


def _rescalings_of_peft(model: nn.Module, name: str, scales: Mapping[str, Tensor]) -> None:
    """A column scales outputs; a row, at what peft calls feed-forward modules, inputs."""
    outputs = tuple(path for path, tensor in scales.items() if tensor.shape[1] == 1)
    apply(model, IA3(paths=outputs, input_paths=tuple(path for path in scales if path not in outputs), name=name))
    places = {path: f"{path}.{'rescalings' if path in outputs else 'input_rescalings'}.{name}.scale" for path in scales}
    state = bare_model(model).state_dict(keep_vars=True)
    _copy({places[path]: tensor.flatten() for path, tensor in scales.items()}, state, "the adapter")


def _named(path: str, pattern: str) -> bool:
    """Whether a pattern of peft's names a module: the end of its path, or an expression from its start."""
    return path == pattern or path.endswith(f".{pattern}") or re.fullmatch(pattern.removeprefix("^"), path) is not None


@torch.no_grad()
def _fill(update: nn.Module, down: Tensor, up: Tensor, magnitude: Tensor | None = None, bias: Tensor | None = None) -> None:
    assert isinstance(update, LowRank)
    update.down.copy_(down)
    update.up.copy_(up)
    if magnitude is not None and update.magnitude is not None:
        update.magnitude.copy_(magnitude.flatten())
    if bias is not None and update.up_bias is not None:
        update.up_bias.copy_(bias)


# -- adapters -----------------------------------------------------------------------------------------------------------------------------

ADAPTER_TENSOR = re.compile(r"(.+)\.(adapters|loras|adapter_fusion_layer)\.([^.]+)\.(.+)")
REPLACED = {"adapter_up": "up", "adapter_norm_before": "input_norm", "adapter_norm_after": "output_norm", "gate": "gate"}


def split_adapters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's whole state under ``adapters``, as the base model's own tensors and the adapters'."""
    base: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if re.match(r"(\w+\.)?prompt_tuning\.", key) or ".prefix_tuning.pool." in key:
            continue  # views of other tensors
        mine = ADAPTER_TENSOR.fullmatch(key) or re.search(r"(invertible_adapters|prefix_tuning|prefix_gates|shared_parameters)\.", key)
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
    """Apply what the library ``adapters`` saved: ``configs`` by adapter name. fusion: the names that are fused, and the fusion's config."""
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
                        _copy({n: own[f"gate.{n}"] for n in ("weight", "bias")}, update.gate.state_dict(keep_vars=True), "the gate")
            continue
        if kind == "prefix_tuning":
            _prefix_of_adapters(model, name, config, tensors)
            continue
        if kind == "union":
            for each in config["configs"]:
                from_adapters(model, tensors, {name: each}, layout=layout)
            continue
        if kind not in (None, "bottleneck"):
            raise TechniqueError(f"adapters' architecture {kind!r} is not read here; bottleneck, lora and prefix_tuning are")
        norms = {path: norm_of(path, paths, keymap.prefixes) for path in parts}
        for technique in bottlenecks(name, config, norms.values(), bare):
            apply(model, technique)
        for path, own in parts.items():
            for key, tensor in own.items():
                taken[f"{norms[path]}.adapters.{name}.{_adapter_key(key, config)}"] = tensor
        coupled = next((path for path, part in bare.named_modules() if isinstance(part, Coupled)), "embeddings")
        for key, tensor in tensors.items():
            if match := re.fullmatch(rf"(?:.+\.)?invertible_adapters\.{re.escape(name)}\.([FG])\.([02])\.(weight|bias)", key):
                taken[f"{coupled}.couplings.{name}.{match[1].lower()}.{'down' if match[2] == '0' else 'up'}.{match[3]}"] = tensor
    if fusion is not None:
        names, options = fusion
        apply(model, fusion_of(names, options))
        for key, tensor in tensors.items():
            if (match := ADAPTER_TENSOR.fullmatch(key)) and match[2] == "adapter_fusion_layer" and match[3] == ",".join(names):
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


def _fill_prefix(model: nn.Module, name: str, taken: Mapping[str, Tensor]) -> None:
    wanted = bare_model(model).get_submodule(f"prefixes.{name}").state_dict(keep_vars=True)
    if missing := sorted(set(wanted) - set(taken)):
        raise CheckpointError(f"the prefix: nothing in the file makes its {', '.join(missing)}")
    _copy(taken, wanted, "the prefix")


def _prefix_of_peft(model: nn.Module, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """In memory a table, behind which a network may stand; in a file P itself."""
    found = {key.rpartition("prompt_encoder.")[2].partition(".")[2] if "prompt_encoder." in key else key: t for key, t in tensors.items()}
    network = "transform.0.weight" in found
    length = int(config["num_virtual_tokens"])
    bottleneck = int(found["transform.0.weight"].shape[0]) if network else None
    apply(model, PrefixTuning(name=name, length=length, bottleneck=bottleneck, shift_positions=True))
    if network:
        parts = {"embedding": "table", "transform.0": "down", "transform.2": "up"}
        taken = {f"{parts[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": tensor for key, tensor in found.items()}
    else:
        taken = {"values": found["prompt_embeddings"] if "prompt_embeddings" in found else found["embedding.weight"]}
    _fill_prefix(model, name, taken)


def _adapter_key(key: str, config: Mapping[str, Any]) -> str:
    if key == "scaling":
        return "learned_scaling"
    place, _, last = key.rpartition(".")
    if place.startswith("adapter_down."):  # a Sequential of the norm, where there is one, the projection and the activation
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
    """A Compacter's projections (Mahabadi et al., 2021), ``Σ_i A_i ⊗ (S_i T_i)`` with Kronecker products, as plain matrices."""

    def product(key: str, found: Mapping[str, Tensor]) -> Tensor | None:
        left, right = found.get(f"{key}_left"), found.get(f"{key}_right")
        return found.get(key) if left is None or right is None else left @ right

    made = dict(own)
    for place in [p for p in ("adapter_down.0", "adapter_down.1", "adapter_up") if any(key.startswith(f"{p}.") for key in own)]:
        mine = {key.removeprefix(f"{place}."): made.pop(key) for key in own if key.startswith(f"{place}.")}
        rules, factors = product("phm_rule", mine), product("W", mine)
        rules = product("phm_rule", shared) if rules is None else rules
        factors = product(f"W_{place.removeprefix('adapter_').partition('.')[0]}", shared) if factors is None else factors
        if rules is None and factors is not None:
            raise CheckpointError(
                "the Compacter's phm_rule, which all layers share, is not in the file: the library saves it with whole models only"
            )
        if rules is None or factors is None:  # the norm in front
            made |= {f"{place}.{key}": tensor for key, tensor in mine.items()}
            continue
        whole = torch.stack([torch.kron(rule, factor) for rule, factor in zip(rules, factors, strict=True)]).sum(0)  # (in, out)
        made[f"{place}.weight"] = whole.T
        made[f"{place}.bias"] = mine["b"] if "b" in mine else whole.new_zeros(whole.shape[1])
    return made


def bottlenecks(name: str, config: Mapping[str, Any], norms: Iterable[str], model: nn.Module) -> list[Technique]:
    """A bottleneck config of ``adapters`` as techniques of ours. norms: where the adapters sit."""
    if config.get("stochastic_depth"):
        raise TechniqueError("adapters' stochastic_depth is not known here")
    after = [place for key, place in (("mh_adapter", "attention"), ("output_adapter", "feed-forward")) if config.get(key)]
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
        initialization={"mam_adapter": "mam"}.get(config.get("init_weights", "bert"), config.get("init_weights", "bert")),
    )
    factor = config["reduction_factor"]
    sites = {site.path: site for site in bare_model(model).sites()}
    depths = sorted({depth for norm in norms for depth in sites[norm].depths})
    by_factor: dict[float, list[int]] = {}
    for depth in depths:
        own = factor.get(str(depth), factor.get(depth, factor.get("default"))) if isinstance(factor, Mapping) else factor
        by_factor.setdefault(float(own), []).append(depth)
    everywhere = depths == sorted({d for site in sites.values() if site.role == "feed-forward-norm" for d in site.depths})
    made: list[Technique] = [
        replace(base, reduction=f, depths=() if everywhere and len(by_factor) == 1 else tuple(at)) for f, at in by_factor.items()
    ]
    if config.get("inv_adapter"):
        if config["inv_adapter"] != "nice":
            raise TechniqueError(f"adapters' inv_adapter {config['inv_adapter']!r} is not known here; 'nice' is")
        reduction = float(config.get("inv_adapter_reduction_factor") or 2)
        made.append(InvertibleAdapter(name=name, reduction=reduction, activation=activation_of(config["non_linearity"])))
    return made


def activation_of(name: str) -> str:
    """Our name of an activation."""
    ours = ACTIVATIONS.get(name.lower(), name.lower())
    if ours not in ACTIVATION_NAMES:
        raise TechniqueError(f"the activation {name!r} is not known here; these are: {', '.join(ACTIVATION_NAMES)}")
    return ours


def _loras(
    name: str, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]], paths: Mapping[str, str], prefixes: Iterable[str]
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
    return [LoRA(paths=where, rank=rank, alpha=alpha, dropout=dropout, dora=dora, dora_whole=dora, gate=gate, name=name)]


def fusion_of(names: tuple[str, ...], config: Mapping[str, Any]) -> AdapterFusion:
    """A fusion config of ``adapters`` as ours; its temperature is the first step's, 50, where it has one."""
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
