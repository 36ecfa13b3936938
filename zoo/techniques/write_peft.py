"""Writing the layout of the library ``peft``: one LoRA, IA3 or prefix, with the heads of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.convert import layouts
from zoo.errors import TechniqueError
from zoo.layers.extend import own_class
from zoo.layers.low_rank import InputRescaled, LowRank, Rescaled
from zoo.tasks.base import TaskModel
from zoo.techniques.base import bare_model
from zoo.techniques.foreign import PEFT_PREFIX, foreign_paths, layout_of, way_back
from zoo.techniques.lora import IA3, LoRA
from zoo.techniques.prefix import PrefixTuning

TASK_TYPES = {
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "conditional-generation": "SEQ_2_SEQ_LM",
}
Written = tuple[dict[str, Tensor], dict[str, Any]]


def to_peft(model: nn.Module, name: str | None = None, layout: str | None = None) -> Written:
    """A LoRA, IA3 or prefix as ``peft`` saves it: tensors and adapter_config. name: which, where the model has several.

    Heads that a task put on go along; those that the family was trained with belong to the model below.
    """
    bare = bare_model(model)
    own = [t for t in bare.techniques if isinstance(t, LoRA | IA3 | PrefixTuning)]
    names = sorted({t.name for t in own})
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise TechniqueError(f"name one of the model's LoRAs, IA3s and prefixes, which are {', '.join(names) or 'none'}; got {name!r}")
    mine = [t for t in own if t.name == name]
    if len({type(t) for t in mine}) > 1:
        kinds = sorted({type(t).__name__ for t in mine})
        raise TechniqueError(f"{name!r} names a {' and a '.join(kinds)}; peft's file holds one kind: give them names of their own")
    heads = _heads(model, layout)
    if isinstance(mine[0], PrefixTuning):
        tensors, config = _prefix(bare, mine[0])
        within = PEFT_PREFIX.removesuffix("model.")
    else:
        paths = {ours: theirs for theirs, ours in foreign_paths(model, layout).items()}
        loras = [t for t in mine if isinstance(t, LoRA)]
        tensors, config = _lora(bare, loras, paths) if loras else _ia3(bare, name, paths)
        within = PEFT_PREFIX
        inside = layouts.load(layout or layout_of(model)).prefixes[0] if bare is not model else ""
        tensors = {f"{within}{inside}{key}": tensor for key, tensor in tensors.items()}
    tensors |= {within + key: tensor for key, tensor in heads.items()}
    none = "FEATURE_EXTRACTION" if isinstance(mine[0], PrefixTuning) else None
    return tensors, {
        **config,
        "task_type": TASK_TYPES.get(model.task, none) if isinstance(model, TaskModel) else none,
        "modules_to_save": sorted({key.partition(".")[0] for key in heads}) or None,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }


def _heads(model: nn.Module, layout: str | None) -> dict[str, Tensor]:
    """The tensors of a task's own heads under their foreign names, and what else stands outside of the base model there: DistilBERT's
    pooler, which it calls pre_classifier.
    """
    state = {name.removeprefix("model."): tensor.detach() for name, tensor in model.state_dict().items()}
    trained = tuple(f"heads.{head}." for head in own_class(bare_model(model)).heads)  # type: ignore[attr-defined]
    own = {name for name in state if name.startswith("heads.") and not name.startswith(trained)}
    if not own:
        return {}
    tensors: dict[str, Tensor] = {}
    plan = way_back(model, layout)
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
        raise TechniqueError(f"some updates named {first.name!r} have a bias of B and some have none; peft has one word for all")
    tensors: dict[str, Tensor] = {}
    targets: dict[str, None] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, part in bare.named_modules():
        if not isinstance(part, LowRank) or not path.endswith(f".loras.{first.name}"):
            continue
        theirs = paths[path.rpartition(".loras.")[0]]
        rank = part.down.shape[0]
        alpha = part.scale * (rank**0.5 if first.rank_stabilized else rank)
        tensors[f"{theirs}.lora_A.weight"] = part.down.detach()
        tensors[f"{theirs}.lora_B.weight"] = part.up.detach()
        if part.up_bias is not None:
            tensors[f"{theirs}.lora_B.bias"] = part.up_bias.detach()
        if part.magnitude is not None:
            tensors[f"{theirs}.lora_magnitude_vector"] = part.magnitude.detach()
        targets[theirs] = None
        if rank != first.rank:
            ranks[theirs] = rank
        if abs(alpha - (first.rank if first.alpha is None else first.alpha)) > 1e-9:
            alphas[theirs] = alpha
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


def _ia3(bare: Any, name: str, paths: Mapping[str, str]) -> Written:
    """Scales of outputs are columns, those of inputs rows, at what is called feed-forward modules there."""
    outputs, inputs = {}, {}
    for path, part in bare.named_modules():
        if isinstance(part, Rescaled) and name in part.rescalings:
            outputs[paths[path]] = part.rescalings.get_parameter(f"{name}.scale").detach()[:, None]
        if isinstance(part, InputRescaled) and name in part.input_rescalings:
            inputs[paths[path]] = part.input_rescalings.get_parameter(f"{name}.scale").detach()[None]
    if both := sorted(set(outputs) & set(inputs)):
        raise TechniqueError(f"{both[0]} has both its inputs and its outputs scaled by {name!r}; peft scales one of them")
    return {f"{path}.ia3_l": tensor for path, tensor in (outputs | inputs).items()}, {
        "peft_type": "IA3",
        "target_modules": [*outputs, *inputs],
        "feedforward_modules": list(inputs),
        "fan_in_fan_out": False,
    }


def _prefix(bare: Any, technique: PrefixTuning) -> Written:
    """P itself: a network behind it is run, as peft runs it when it saves."""
    sites = [site for site in bare.sites() if site.role == "self-attention"]
    streams = {site.stream for site in bare.sites() if site.role.endswith("attention")}
    if len(streams) > 1 or any(site.role == "cross-attention" for site in bare.sites()):
        raise TechniqueError(
            f"peft's prefixes stand before one stack of attentions; {type(bare).__name__} has the streams {sorted(streams)}"
        )
    if any(len(site.depths) > 1 for site in sites):
        raise TechniqueError("one attention runs at several depths here; peft has a prefix for each depth: save it with library='zoo'")
    chosen = technique.places(bare, "self-attention")
    if [site.path for site in chosen] != [site.path for site in sites]:
        raise TechniqueError("peft's prefixes stand before every attention; this one leaves some out: save it with library='zoo'")
    if not technique.shift_positions:
        raise TechniqueError(
            "peft moves the real tokens behind the prefix, and this prefix leaves their positions alone: there it would be another; "
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
