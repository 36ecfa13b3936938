"""microsoft/K-Adapter: adapters over an old RoBERTa whose positions are 2, 3, ... whatever the ids,
and whose padding adapters see.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from tests.references.case import Adapter, Case
from zoo.layers import Attention, Mask, Trace, post_norm

NAMES = (
    (r"down_project\.", "down."),
    (r"up_project\.", "up."),
    (r"encoder\.layer\.(\d+)\.attention\.self\.(query|key|value)\.", r"encoder.blocks.\1.attention.\2."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"encoder.blocks.\1.attention.output."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"encoder.blocks.\1.attention_norm."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"encoder.blocks.\1.feed_forward.up."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"encoder.blocks.\1.feed_forward.down."),
    (r"encoder\.layer\.(\d+)\.output\.LayerNorm\.", r"encoder.blocks.\1.feed_forward_norm."),
)


def adapter_name(name: str) -> str:
    """``adapter.0.down_project.weight`` -> ``adapters.0.down.weight``."""
    _, number, rest = name.split(".", 2)
    for pattern, ours in NAMES:
        rest = re.sub(rf"^{pattern}", ours, rest)
    return f"adapters.{number}.{rest}"


def under(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


class Reference:
    """The RoBERTa of a case with its adapters as `zoo.KAdapter` puts them on, and the pass that all
    cases share.
    """

    def __init__(self, case: Case, base: str, adapters: dict[str, str], fusion: dict[str, str]) -> None:
        """base: the prefix of RoBERTa's tensors; adapters: our name -> prefix of ``adapter.N``;
        fusion: our name -> its matrix.
        """
        roberta, own, args = case.config["roberta"], case.config["AdapterConfig"], case.config["args"]
        config = {"model_type": "roberta", "pad_token_id": 1, **roberta}
        self.model = zoo.load(under(case.weights, base), config=config, layout="hf-roberta")
        technique = zoo.KAdapter(
            names=tuple(adapters),
            taps=tuple(args["adapter_list"]),
            size=own["hidden_size"],
            num_layers=own["num_hidden_layers"],
            num_heads=own["num_attention_heads"],
            intermediate_size=own["intermediate_size"],
            activation=own.get("hidden_act", "gelu"),
            norm_eps=own.get("layer_norm_eps", 1e-5),
            skip=args["adapter_skip_layers"],
            fusion=args.get("fusion_mode", "add"),
        )
        zoo.apply(self.model, technique).eval()
        for name, prefix in adapters.items():
            state = {adapter_name(k): v for k, v in under(case.weights, prefix).items() if k.startswith("adapter.")}
            self.model.knowledge[name].load_state_dict(state, strict=True)
        matrices = {
            f"{name}.{p}": case.weights[f"{prefix}.{p}"] for name, prefix in fusion.items() for p in ("weight", "bias")
        }
        if technique.fusion == "concat":
            self.model.knowledge_fusion.load_state_dict(matrices, strict=True)
        ids, mask = (
            case.inputs[name].flatten(0, -2) for name in ("input_ids", "attention_mask")
        )  # several choices are rows
        length = ids.shape[1]
        with torch.no_grad():
            seen = mask[:, None, :].expand(
                -1, length, -1
            )  # padding is hidden from RoBERTa's tokens, and has states itself
            self.encoded = self.model(ids, seen, position_ids=torch.arange(length)[None] + 2, output_hidden_states=True)
            results = {
                name: adapter.results(self.encoded.hidden_states, Mask())
                for name, adapter in self.model.knowledge.items()
            }
        self.taps = {name: made for name, (made, _) in results.items()}
        self.results = {name: last for name, (_, last) in results.items()}

    @property
    def last(self) -> Tensor:
        return self.encoded.hidden_states[-1]

    @property
    def features(self) -> Tensor:
        return self.encoded.last_hidden_state


def linear(case: Case, name: str, x: Tensor) -> Tensor:
    return F.linear(x, case.weights[f"{name}.weight"], case.weights[f"{name}.bias"])


def at(marker: Tensor, x: Tensor) -> Tensor:
    """The state that a one-hot row points at: (batch, length), (batch, length, hidden) -> (batch,
    hidden).
    """
    return torch.einsum("bt,bth->bh", marker.to(x.dtype), x)


def pretraining(case: Case) -> dict[str, Any]:
    """The factual and the linguistic adapter with the heads of their pre-training."""
    made = Reference(case, "roberta.", {"own": "adapter_model."}, {})
    own = "adapter_model."
    last = made.results["own"]
    x = linear(case, f"{own}com_dense", torch.cat([made.last, last], -1))
    outputs: dict[str, Any] = {"roberta_last": made.last}
    outputs |= {f"roberta_hidden.{i}": state for i, state in enumerate(made.encoded.hidden_states)}
    outputs |= {f"adapter_out.{i}": state for i, state in enumerate(made.taps["own"])}
    if "subj_special_start_id" in case.inputs:
        pair = torch.cat([at(case.inputs[f"{who}_special_start_id"], x) for who in ("subj", "obj")], -1)
        logits = linear(case, f"{own}out_proj", linear(case, f"{own}dense", pair))
        return outputs | {"logits": logits, "loss": F.cross_entropy(logits, case.inputs["labels"].flatten())}
    size = x.shape[2]
    attention, norm = Attention(size, 1), nn.LayerNorm(size, 1e-5)
    block = under(case.weights, f"{own}self_attention.")
    attention.load_state_dict(
        {f"{n}.{p}": block[f"self.{n}.{p}"] for n in ("query", "key", "value") for p in ("weight", "bias")}
        | {f"output.{p}": block[f"output.dense.{p}"] for p in ("weight", "bias")}
    )
    norm.load_state_dict({p: block[f"output.LayerNorm.{p}"] for p in ("weight", "bias")})
    trace, mask = Trace(attentions=True), case.inputs["attention_mask"].bool()
    with torch.no_grad():
        x = post_norm(x, lambda y: attention(y, y, y, Mask(keys=mask), None, trace), norm, nn.Identity())
    logits = linear(case, f"{own}out_proj", linear(case, f"{own}dense", x))
    loss = F.cross_entropy(logits[mask], case.inputs["labels"][mask])
    maps = trace.attentions
    assert maps is not None
    return outputs | {"logits": logits, "loss": loss, "attention_probs": maps[0]}


def two(case: Case, base: str, task: str) -> Reference:
    """RoBERTa with whichever of the two adapters the case has."""
    prefixes = {short: f"{task}{short}_adapter." for short in ("fac", "lin")}
    adapters = {
        short: prefix for short, prefix in prefixes.items() if any(name.startswith(prefix) for name in case.weights)
    }
    args = case.config["args"]
    wanted = {short: args.get(f"meta_{short}_adaptermodel", True) for short in adapters}
    adapters = {short: prefix for short, prefix in adapters.items() if wanted[short]}
    fusion = {}
    if args.get("fusion_mode") == "concat":
        alone = f"{task}task_dense_fac" if f"{task}task_dense_fac.weight" in case.weights else f"{task}task_dense"
        fusion = {f"each.{short}": f"{task}task_dense_{short}" for short in adapters}
        if len(adapters) == 1:
            (short,) = adapters
            fusion = {
                f"each.{short}": fusion[f"each.{short}"]
                if f"{task}task_dense_{short}.weight" in case.weights
                else alone
            }
        else:
            fusion["joint"] = f"{task}task_dense"
    return Reference(case, base, adapters, fusion)


def with_adapters(case: Case) -> dict[str, Any]:
    made = two(case, "model.", "")
    outputs: dict[str, Any] = {"task_features": made.features, "roberta_last": made.last}
    return outputs | {f"{short}_adapter_last": result for short, result in made.results.items()}


def fine_tuned(case: Case) -> dict[str, Any]:
    """Typing, relations and choices: states at markers (or the first token), then two linear layers
    without an activation, or one.
    """
    made = two(case, "roberta.", "task_model.")
    markers = [
        case.inputs[name]
        for name in ("start_id", "subj_special_start_id", "obj_special_start_id")
        if name in case.inputs
    ]
    x = torch.cat([at(marker, made.features) for marker in markers], -1) if markers else made.features[:, 0]
    if "task_model.dense.weight" in case.weights:
        x = linear(case, "task_model.dense", x)
    head = next(name for name in ("out_proj", "classifier", "dense") if f"task_model.{name}.weight" in case.weights)
    logits = x if head == "dense" else linear(case, f"task_model.{head}", x)
    if case.inputs["input_ids"].dim() == 3:
        logits = logits.reshape(case.inputs["input_ids"].shape[:2])
    labels = case.inputs["labels"]
    soft = labels.is_floating_point()
    loss = F.binary_cross_entropy_with_logits(logits, labels) if soft else F.cross_entropy(logits, labels.flatten())
    return {"roberta_last": made.last, "logits": logits, "loss": loss}


ADAPTERS: dict[str, Adapter] = {
    "fac-adapter.AdapterModel": pretraining,
    "lin-adapter.AdapterModel": pretraining,
    "RobertaModelwithAdapter": with_adapters,
    "examples.run_finetune": fine_tuned,
}
