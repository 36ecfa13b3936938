"""The libraries ``adapters`` and ``peft`` around a BERT: their whole state, as our model with
techniques.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import zoo
from tests.references.case import Case
from tests.references.text_models import LABELS, at_real, real_of, task_of
from zoo.checkpoints.adapters import adapter_hub, peft
from zoo.models.base.model import bare_model
from zoo.techniques.adapters.technique import repeated
from zoo.techniques.lora.technique import LoRA, switch
from zoo.techniques.prefix.technique import PrefixTuning


def base_config(case: Case) -> dict[str, Any]:
    """The BERT below; what the case leaves out is Hugging Face's default."""
    defaults = {"model_type": "bert", "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return {**defaults, **case.config["bert"]}


def fused_names(case: Case) -> tuple[str, ...]:
    """``Fuse[a, b]`` -> ("a", "b")."""
    inside = str(case.config["active"]).partition("[")[2].rstrip("]")
    return tuple(name.strip() for name in inside.split(","))


def answers(case: Case, model: Any, times: int = 1, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """States, pooled vector, logits and loss under the names of the cases. A gate of the reference
    averages over padding too: it runs unpacked. times: how often the reference repeats the batch
    behind the embeddings. without: inputs that the reference drops.
    """
    task = task_of(case)
    names = ("input_ids", "attention_mask", "token_type_ids", *(LABELS if task else ()))
    inputs = {name: case.inputs[name] for name in names if name in case.inputs and name not in without}
    if (
        task == "question-answering" and "attention_mask" in inputs
    ):  # padding competes for the answer there, so it needs states
        mask = inputs["attention_mask"]
        inputs["attention_mask"] = mask[:, None, :].expand(-1, mask.shape[1], -1)
    with torch.no_grad(), zoo.packing(False):
        result = model.eval()(**repeated(inputs, times), output_hidden_states=True)
    real = real_of(case)
    behind = None if real is None else real.repeat(times, 1)
    encoded = getattr(result, "encoded", None) or result
    outputs = {f"hidden.{i}": at_real(state, behind) for i, state in enumerate(encoded.hidden_states)}
    outputs["hidden.0"] = at_real(encoded.hidden_states[0][: len(case.inputs["input_ids"])], real)
    outputs["last_hidden_state"] = at_real(encoded.last_hidden_state, behind)
    if encoded.pooler_output is not None:
        outputs["pooled"] = encoded.pooler_output
    for name in ("logits", "loss", "start_logits", "end_logits"):
        if (value := getattr(result, name, None)) is not None:
            by_token = name in ("start_logits", "end_logits") or (
                name == "logits" and task in ("token-classification", "masked-lm")
            )
            outputs[name] = at_real(value, real) if by_token else value
    return outputs


def below(case: Case, base: Mapping[str, Any]) -> Any:
    """The BERT below, with the head of the reference's class."""
    task = task_of(case)
    options = {"num_labels": int(base["classifier.weight"].shape[0])} if task and "classifier.weight" in base else {}
    return zoo.load(base, config=base_config(case), task=task, **options)


def with_adapters(case: Case) -> tuple[Any, int]:
    """``adapters.init(BertModel)`` with its adapters, and what is active; how often the batch is
    repeated for them.
    """
    base, own = adapter_hub.split_adapters(case.weights)
    model = below(case, base)
    configs: Mapping[str, Any] = case.config["adapters"]
    fusion = None
    if case.config.get("fusion"):
        fusion = (fused_names(case), case.config["fusion"])
    active = str(case.config["active"])
    kind, _, inside = active.partition("[")
    names = tuple(n.strip() for n in inside.rstrip("]").split(",")) if inside else (kind,)
    if any(
        config.get("architecture") == "prefix_tuning" for config in configs.values()
    ):  # which have no switch: others stay away
        configs = {name: configs[name] for name in names}
    model = adapter_hub.from_adapters(model, own, configs, layout="hf-bert", fusion=fusion)
    if fusion or len(configs) == 1 or all(isinstance(t, PrefixTuning) for t in bare_model(model).techniques):
        return model, 1
    if any(isinstance(technique, LoRA) for technique in bare_model(model).techniques):
        switch(model, names)
    else:
        how = {"BatchSplit": "parallel"}.get(kind, kind.lower() if inside else "stack")
        halved = (
            (len(names) ** -2,) * len(names) if how == "average" else ()
        )  # the library takes the mean of what it weighs by 1/n already
        zoo.apply(model, zoo.ActiveAdapters(names=names, how=how, weights=halved))
    return model, len(names) if kind == "Parallel" else 1


def adapters_case(case: Case) -> dict[str, Any]:
    return answers(case, *with_adapters(case))


def peft_linear(case: Case) -> dict[str, Any]:
    base, own = peft.split_peft(case.weights)
    added = {k: v for k, v in own.items() if ".lora_" in k or ".ia3_l" in k}
    model = peft.from_peft(below(case, base), added, case.config["peft"], layout="hf-bert")
    return answers(case, model, without=dropped(case, prefix=False))


def peft_prefix(case: Case) -> dict[str, Any]:
    base, own = peft.split_peft(case.weights)
    config = {"peft_type": "PREFIX_TUNING", **case.config, **case.config.get("peft", {})}
    model = peft.from_peft(
        below(case, base), {k: v for k, v in own.items() if "prompt_e" in k}, config, layout="hf-bert"
    )
    bare = bare_model(model)
    return {**answers(case, model, without=dropped(case, prefix=True)), "prefix": bare.prefixes["default"].eject()}


def dropped(case: Case, *, prefix: bool) -> tuple[str, ...]:
    """``peft`` hands no segments on to a question answering model, nor to a bare one behind a
    prefix.
    """
    task = task_of(case)
    return ("token_type_ids",) if task == "question-answering" or (prefix and task is None) else ()
