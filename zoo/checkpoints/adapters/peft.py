"""The layout of the library ``peft``: one LoRA, IA3 or prefix, with the heads of a task.

It stores LoRA's A and B as they are and their scale in the config: here it goes into the technique.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints.adapters.places import (
    Places,
    Written,
    bare_name,
    check_update,
    chosen,
    copy_into,
    fill_prefix,
    fill_update,
    prefixed_sites,
    renamed,
)
from zoo.checkpoints.adapters.putting import put_on, write
from zoo.errors import CheckpointError, TechniqueError
from zoo.layers.extend import own_class
from zoo.models.base.model import bare_model
from zoo.tasks.base import TaskModel
from zoo.techniques.base import apply
from zoo.techniques.lora.layers import InputRescaled, LowRank, Rescaled
from zoo.techniques.lora.technique import IA3, LoRA
from zoo.techniques.prefix.technique import PrefixTuning

TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "conditional-generation": "SEQ_2_SEQ_LM",
}
PEFT_PREFIX = "base_model.model."
MOVED_BASES = {
    "pissa": "lost its principal part (PiSSA)",
    "olora": "lost the part that an orthonormal start stands for (OLoRA)",
    "corda": "lost the part that a context-oriented start stands for (CorDA)",
    "lora_ga": "lost the part that a gradient-aligned start stands for (LoRA-GA)",
    "loftq": "was quantized together with the adapter (LoftQ)",
}
"""Starts of a LoRA for which peft changes the weights below it, and what it does to them."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Starts whose update is zero, so that the base stays as it is."""


def to_peft(model: nn.Module, name: str | None = None, layout: str | None = None) -> Written:
    """A LoRA, IA3 or prefix as ``peft`` saves it: tensors and adapter_config. name: which, where
    the model has several.

    Heads that a task put on go along; those that the family was trained with belong to the model
    below.
    """
    bare = bare_model(model)
    own = [t for t in bare.techniques if isinstance(t, LoRA | IA3 | PrefixTuning)]
    found = chosen(own, name, "LoRAs, IA3s and prefixes", "peft's file holds one kind: give them names of their own")
    places = Places(model, layout)
    heads = _heads(model, places)
    if isinstance(found[0], PrefixTuning):
        tensors, config = _prefix(bare, found[0])
        within = PEFT_PREFIX.removesuffix("model.")
    else:
        write = _lora if isinstance(found[0], LoRA) else _ia3
        tensors, config = write(bare, found, places.foreign)
        within = PEFT_PREFIX
        tensors = {f"{within}{places.within}{key}": tensor for key, tensor in tensors.items()}
    tensors |= {within + key: tensor for key, tensor in heads.items()}
    none = "FEATURE_EXTRACTION" if isinstance(found[0], PrefixTuning) else None
    return tensors, {
        **config,
        "task_type": TASK_TYPES.get(model.task, none) if isinstance(model, TaskModel) else none,
        "modules_to_save": sorted({key.partition(".")[0] for key in heads}) or None,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }


def _heads(model: nn.Module, places: Places) -> dict[str, Tensor]:
    """The tensors of a task's own heads under their foreign names, and what else stands outside of
    the base model there: DistilBERT's pooler, which it calls pre_classifier.
    """
    state = {name.removeprefix("model."): tensor.detach() for name, tensor in model.state_dict().items()}
    trained = tuple(f"heads.{head}." for head in own_class(bare_model(model)).heads)  # type: ignore[attr-defined]
    own = {name for name in state if name.startswith("heads.") and not name.startswith(trained)}
    if not own:
        return {}
    tensors: dict[str, Tensor] = {}
    plan = places.plan
    for step in plan.steps:
        outside = bool(plan.prefix) and not any(target.startswith(plan.prefix) for target in step.targets)
        if own.issuperset(step.sources) or (outside and not any(source.startswith(trained) for source in step.sources)):
            tensors |= step.run(state.__getitem__)
    return tensors


def _lora(bare: Any, found: list[LoRA], paths: Mapping[str, str]) -> Written:
    """Ranks and scales that are not the first's go into ``rank_pattern`` and ``alpha_pattern``."""
    first = found[0]
    if any(t.dora_whole or t.gate for t in found):
        raise TechniqueError("peft has no place for the DoRA of adapters, nor for a gate; save it with library='zoo'")
    if len({t.bias for t in found}) > 1:
        raise TechniqueError(
            f"some updates named {first.name!r} have a bias of B and some have none; peft has one word for all"
        )
    tensors: dict[str, Tensor] = {}
    targets: dict[str, None] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, part in bare.named_modules():
        if not isinstance(part, LowRank) or not path.endswith(f".loras.{first.name}"):
            continue
        place = paths[path.rpartition(".loras.")[0]]
        rank = part.down.shape[0]
        alpha = part.scale * (rank**0.5 if first.rank_stabilized else rank)
        tensors[f"{place}.lora_A.weight"] = part.down.detach()
        tensors[f"{place}.lora_B.weight"] = part.up.detach()
        if part.up_bias is not None:
            tensors[f"{place}.lora_B.bias"] = part.up_bias.detach()
        if part.magnitude is not None:
            tensors[f"{place}.lora_magnitude_vector"] = part.magnitude.detach()
        targets[place] = None
        if rank != first.rank:
            ranks[place] = rank
        if abs(alpha - (first.rank if first.alpha is None else first.alpha)) > 1e-9:
            alphas[place] = alpha
    return tensors, {
        "peft_type": "LORA",
        "r": first.rank,
        "lora_alpha": first.rank if first.alpha is None else first.alpha,
        "lora_dropout": first.dropout,
        "target_modules": list(targets),
        "use_rslora": first.rank_stabilized,
        "use_dora": first.dora,
        "lora_bias": first.bias,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def _ia3(bare: Any, found: list[IA3], paths: Mapping[str, str]) -> Written:
    """Scales of outputs are columns, those of inputs rows, at what is called feed-forward modules
    there.
    """
    outputs, inputs, name = {}, {}, found[0].name
    for path, part in bare.named_modules():
        if isinstance(part, Rescaled) and name in part.rescalings:
            outputs[paths[path]] = part.rescalings.get_parameter(f"{name}.scale").detach()[:, None]
        if isinstance(part, InputRescaled) and name in part.input_rescalings:
            inputs[paths[path]] = part.input_rescalings.get_parameter(f"{name}.scale").detach()[None]
    if both := sorted(set(outputs) & set(inputs)):
        raise TechniqueError(
            f"{both[0]} has both its inputs and its outputs scaled by {name!r}; peft scales one of them"
        )
    return {f"{path}.ia3_l": tensor for path, tensor in (outputs | inputs).items()}, {
        "peft_type": "IA3",
        "target_modules": [*outputs, *inputs],
        "feedforward_modules": list(inputs),
        "fan_in_fan_out": False,
    }


def _prefix(bare: Any, technique: PrefixTuning) -> Written:
    """P itself: a network behind it is run, as peft runs it when it saves."""
    sites = prefixed_sites(bare, "peft")
    if [site.path for site in technique.places(bare, "self-attention")] != [site.path for site in sites]:
        raise TechniqueError(
            "peft's prefixes stand before every attention; this one leaves some out: save it with library='zoo'"
        )
    if not technique.shift_positions:
        raise TechniqueError(
            "peft moves the real tokens behind the prefix, and this prefix leaves their positions alone: there it "
            "would be another; "
            "train it with shift_positions=True, or save it with library='zoo'"
        )
    values = bare.prefixes[technique.name].eject().detach()
    width = values.shape[1] // (2 * len(sites))  # MobileBERT attends in less than its hidden width
    return {"prompt_embeddings": values}, {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": technique.length,
        "prefix_projection": False,
        "encoder_hidden_size": width,
        "token_dim": width,
        "num_layers": len(sites),
        "num_attention_heads": bare.config.num_heads,
        "num_transformer_submodules": 1,
    }


def split_peft(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A ``peft`` model's whole state in memory, as the base model's own tensors and the
    adapter's.
    """
    base: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = key.removeprefix(PEFT_PREFIX).removeprefix("base_model.")
        if ".original_module." in key or key.startswith("word_embeddings."):
            continue  # unused, and another name of the token table
        if any(
            word in key for word in (".lora_", ".ia3_l", ".modules_to_save.", "prompt_encoder.", "prompt_embeddings")
        ):
            adapter[key] = tensor
            if ".modules_to_save." in key:
                base[re.sub(r"\.modules_to_save\.[^.]+\.", ".", plain)] = tensor
        else:
            base[plain.replace(".base_layer.", ".")] = tensor
    return base, adapter


def from_peft(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    layout: str | None = None,
    name: str = "default",
) -> nn.Module:
    """Apply a LoRA, an IA3 or a prefix as ``peft`` saves it, or leave the model as it was. Heads that
    were saved whole are copied into the heads of a task model.
    """
    return put_on(model, lambda one: _fill(one, tensors, config, layout, name), f"the adapter {name!r}", tensors)


def _fill(
    model: nn.Module, tensors: Mapping[str, Tensor], config: Mapping[str, Any], layout: str | None, name: str
) -> None:
    kind = str(config["peft_type"]).rpartition(".")[2].upper()
    if kind not in ("LORA", "IA3", "PREFIX_TUNING"):
        raise TechniqueError(f"peft_type {config['peft_type']!r} is not read here; LORA, IA3 and PREFIX_TUNING are")
    _check_options(config)
    if kind == "PREFIX_TUNING":
        _apply_prefix(model, name, config, {key: tensor for key, tensor in tensors.items() if "prompt_e" in key})
        tensors = {key: tensor for key, tensor in tensors.items() if "prompt_e" not in key}
    places = Places(model, layout)
    state = {bare_name(model, key): tensor for key, tensor in model.state_dict(keep_vars=True).items()}
    updates: dict[str, dict[str, Tensor]] = {}
    scales: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = key.removeprefix(PEFT_PREFIX).removeprefix("base_model.").replace(".base_layer.", ".")
        if scaled := re.fullmatch(r"(.+)\.ia3_l(?:\.[^.]+)?", plain):
            scales[places.part(scaled[1])] = tensor
            continue
        match = re.fullmatch(
            r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.(?!(?:weight|bias)$)[^.]+)?(?:\.(weight|bias))?", plain
        )
        if match and (match[3] != "bias" or match[2] == "lora_B"):
            updates.setdefault(match[1], {})[match[2] + ("_bias" if match[3] == "bias" else "")] = tensor
        elif match or ".lora_" in plain:
            raise TechniqueError(f"peft's tensor {key!r} is of a kind that is not known here")
        else:
            path, _, last = re.sub(r"\.modules_to_save\.[^.]+\.", ".", plain).rpartition(".")
            target = state.get(f"{places.part(path)}.{last}")
            if target is None or target.shape != tensor.shape:
                raise CheckpointError(f"nothing in this model takes the stored tensor {key}")
            write(target, tensor, key, "the adapter")
    found = {path: (places.part(path), parts) for path, parts in updates.items()}
    if kind != "PREFIX_TUNING":
        _check_targets(places, config, {*scales, *(place for place, _ in found.values())})
    if scales:
        _apply_scales(model, name, scales)
    _apply_loras(model, name, config, found)


def check_saved_heads(
    model: nn.Module, tensors: Mapping[str, Tensor], config: Mapping[str, Any], layout: str | None = None
) -> None:
    """Refuse a file that lacks a module of this model which it says was saved whole."""
    named = config.get("modules_to_save") or ()
    parts = Places(model, layout).parts if named else {}
    for module in named:
        there = any(f".{module}." in f".{part}." for part in parts)
        if there and not any(f".{module}." in f".{key}" for key in tensors):
            raise CheckpointError(
                f"the adapter's config says that {module!r} was saved whole, and the file has no tensor of it"
            )


def _check_targets(places: Places, config: Mapping[str, Any], met: set[str]) -> None:
    """Refuse a file that has nothing for a part of this model which its config names."""
    bare, wanted, out = bare_model(places.model), config.get("target_modules"), config.get("exclude_modules")
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    for path, ours in places.parts.items():
        layer = re.search(r"\.(\d+)\.", path)
        if ours in met or ours.startswith("heads.") or (layers and (layer is None or int(layer[1]) not in layers)):
            continue
        names = [prefix + path for prefix in ("", *places.keymap.prefixes)]
        if not _targeted(names, wanted) or _targeted(names, out):
            continue
        if isinstance(bare.get_submodule(ours), nn.Linear | nn.Embedding):
            raise CheckpointError(
                f"the adapter's config targets {path!r}, for which the file has no tensors; is the file whole, and was "
                "the adapter trained on a model of as many layers?"
            )


def _targeted(names: list[str], modules: Any) -> bool:
    """Whether one of a module's names is meant by peft's target_modules: an expression, or ends of
    paths.
    """
    if isinstance(modules, str):
        return any(re.fullmatch(modules, name) for name in names)
    return any(f".{name}".endswith(f".{module}") for name in names for module in modules or ())


def _check_options(config: Mapping[str, Any]) -> None:
    """Refuse what makes an adapter mean something else than ``W x + s B A x`` on the plain base."""
    start = config.get("init_lora_weights", True)
    name = str(start).lower()
    if moved := next((what for word, what in MOVED_BASES.items() if name.startswith(word)), None):
        raise TechniqueError(
            f"init_lora_weights={start!r}: this adapter belongs to a base that {moved}, and on the plain base it "
            "would be wrong. In peft, save it with save_pretrained(folder, path_initial_model_for_weight_conversion="
            "...), which makes a LoRA of the plain base of it; where the model here has the changed weights already, "
            "pass the config with init_lora_weights=True"
        )
    if not isinstance(start, bool) and start is not None and name not in PLAIN_STARTS:
        raise TechniqueError(
            f"peft's init_lora_weights={start!r} is not known here: it may have changed the base that the adapter "
            f"belongs to; true, false, {', '.join(PLAIN_STARTS)} are known not to"
        )
    if config.get("alora_invocation_tokens"):
        raise TechniqueError(
            f"alora_invocation_tokens={config['alora_invocation_tokens']!r}: an activated LoRA (aLoRA) acts only "
            "behind these tokens of a text; here a LoRA acts on every token, which would be another model"
        )
    for option in (
        "layer_replication",
        "use_qalora",
        "use_bdlora",
        "arrow_config",
        "monteclora_config",
        "velora_config",
    ):
        if config.get(option):
            raise TechniqueError(f"peft's {option}={config[option]!r} is not known here")


def _apply_loras(
    model: nn.Module, name: str, config: Mapping[str, Any], updates: Mapping[str, tuple[str, Mapping[str, Tensor]]]
) -> None:
    """Updates by their path there: our path, and A, B and what goes with them. Places of one rank
    and scale share a technique.
    """
    groups: dict[tuple[int, float], dict[str, Mapping[str, Tensor]]] = {}
    patterns = config.get("alpha_pattern") or {}
    for path, (place, parts) in updates.items():
        layer = bare_model(model).get_submodule(place)
        if isinstance(layer, nn.Linear):  # others are refused by the technique
            check_update(parts.get("lora_A"), parts.get("lora_B"), layer.in_features, layer.out_features, path)
        own = (alpha for pattern, alpha in patterns.items() if _named(path, pattern))
        if "lora_A" not in parts:
            raise CheckpointError(f"{path} has no A; a LoRA is B A, both matrices of a layer")
        key = parts["lora_A"].shape[0], float(next(own, config.get("lora_alpha", 8)))
        groups.setdefault(key, {})[place] = parts
    for (rank, alpha), found in groups.items():
        technique = LoRA(
            rank=rank,
            alpha=alpha,
            dropout=float(config.get("lora_dropout") or 0),
            rank_stabilized=bool(config.get("use_rslora")),
            bias=any("lora_B_bias" in parts for parts in found.values()),
            dora=any("lora_magnitude_vector" in parts for parts in found.values()),
            paths=tuple(found),
            name=name,
        )
        apply(model, technique)
        for place, parts in found.items():
            update = bare_model(model).get_submodule(f"{place}.loras.{name}")
            down, up = parts["lora_A"], parts.get("lora_B")
            fill_update(update, place, down, up, parts.get("lora_magnitude_vector"), parts.get("lora_B_bias"))


def _named(path: str, pattern: str) -> bool:
    """Whether a pattern of peft's names a module: the end of its path, or an expression from its
    start.
    """
    return path == pattern or path.endswith(f".{pattern}") or re.fullmatch(pattern.removeprefix("^"), path) is not None


def _apply_scales(model: nn.Module, name: str, scales: Mapping[str, Tensor]) -> None:
    """A column scales outputs; a row, at what peft calls feed-forward modules, inputs."""
    outputs = tuple(path for path, tensor in scales.items() if tensor.shape[1] == 1)
    apply(model, IA3(paths=outputs, input_paths=tuple(path for path in scales if path not in outputs), name=name))
    found = {path: f"{path}.{'rescalings' if path in outputs else 'input_rescalings'}.{name}.scale" for path in scales}
    state = bare_model(model).state_dict(keep_vars=True)
    copy_into(state, {found[path]: tensor.flatten() for path, tensor in scales.items()}, "the adapter")


def _apply_prefix(model: nn.Module, name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """In memory a table, behind which a network may stand; in a file P itself."""
    found = {
        key.rpartition("prompt_encoder.")[2].partition(".")[2] if "prompt_encoder." in key else key: tensor
        for key, tensor in tensors.items()
    }
    network = found.get("transform.0.weight")
    bottleneck = None if network is None else int(network.shape[0])
    length = int(config["num_virtual_tokens"])
    technique = PrefixTuning(name=name, length=length, bottleneck=bottleneck, shift_positions=True)
    apply(model, technique)
    if network is not None:
        taken = renamed(found, {"embedding": "table", "transform.0": "down", "transform.2": "up"})
    else:
        taken = {"values": found["prompt_embeddings"] if "prompt_embeddings" in found else found["embedding.weight"]}
    fill_prefix(model, technique, taken)
