"""facebookresearch/adaptive-span: the soft mask, trimming and caches, and the character model."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from zoo.layers import FeedForward
from zoo.techniques.adaptive_span.layers import AttentionSpan, SpanAttention, SpanBlock, SpanLanguageModel


def soft_mask(case: Case) -> dict[str, Any]:
    c = case.config
    span = AttentionSpan(c["nb_heads"], c["attn_span"], c["adapt_span_ramp"], c["adapt_span_loss"])
    with torch.no_grad():
        span.fraction.copy_(case.weights["_mask.current_val"].flatten())
    heads = c["nb_heads"]
    given = case.inputs["attn"].clone().requires_grad_()

    def masked(x: Tensor, normalize: bool = True) -> Tensor:
        return span.apply_to(x.unflatten(0, (-1, heads)), normalize=normalize).flatten(0, 1)

    made = masked(given)
    grad_attn, grad_value = torch.autograd.grad((made * case.inputs["upstream"]).sum(), [given, span.fraction])
    loss = span.loss()
    (grad_loss,) = torch.autograd.grad(loss, [span.fraction])
    return {
        "masked_normalized": made,
        "masked": masked(given, False),
        "masked_short": masked(case.inputs["attn_short"]),
        "span_loss": loss,
        "grad_attn": grad_attn,
        "grad_current_val": grad_value.reshape(-1, 1, 1),
        "grad_span_loss": grad_loss.reshape(-1, 1, 1),
        "current_max_span": torch.tensor(span.max_span),
        "current_avg_span": torch.tensor(span.average_span),
    }


def trimming(case: Case) -> dict[str, Any]:
    items = []
    for item in case.given:
        span = AttentionSpan(item["K"], item["L"], item["R"])
        with torch.no_grad():
            span.fraction.copy_(torch.tensor(item["vals"]))
        front, first, cut = span.trimmed(keys=item["Ck"], queries=item["Q"])
        rows = [0] * front + list(range(1, item["Ck"] + 1))[first:]
        items.append(
            {
                "trim_len": span.trim,
                "cache_size": span.cache_size(item["cache"]),
                "max_span": span.max_span,
                "avg_span": span.average_span,
                "key_rows_after_trim": {"first": rows[0], "second": rows[1], "last": rows[-1], "length": len(rows)},
                "key_pe_after_trim": {"first": cut, "length": item["L"] - cut},
            }
        )
    return {"items": items}


NAMES = {
    r"in_emb\.weight": "token.weight",
    r"out_emb\.(weight|bias)": r"output.\1",
    r"layers\.(\d+)\.attn\.proj_query\.weight": r"blocks.\1.attention.query.weight",
    r"layers\.(\d+)\.attn\.proj_key\.weight": r"blocks.\1.attention.key.weight",
    r"layers\.(\d+)\.attn\.proj_val\.weight": r"blocks.\1.attention.value.weight",
    r"layers\.(\d+)\.attn\.proj_out\.weight": r"blocks.\1.attention.output.weight",
    r"layers\.(\d+)\.attn\.attn\.adaptive_span\._mask\.current_val": r"blocks.\1.attention.span.fraction",
    r"layers\.(\d+)\.attn\.attn\.persistent_memory\.key": r"blocks.\1.attention.memory_key",
    r"layers\.(\d+)\.attn\.attn\.persistent_memory\.val": r"blocks.\1.attention.memory_value",
    r"layers\.(\d+)\.ff\.fc1\.(weight|bias)": r"blocks.\1.feed_forward.up.\2",
    r"layers\.(\d+)\.ff\.fc2\.(weight|bias)": r"blocks.\1.feed_forward.down.\2",
    r"layers\.(\d+)\.norm1\.(weight|bias)": r"blocks.\1.attention_norm.\2",
    r"layers\.(\d+)\.norm2\.(weight|bias)": r"blocks.\1.feed_forward_norm.\2",
    r"key_pe": "key_positions",
}


def renamed(name: str) -> str:
    for pattern, ours in NAMES.items():
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    raise LookupError(name)


def language_model(case: Case) -> dict[str, Any]:
    c = case.config
    copies = (
        "mask_template",
        ".persistent_memory.adaptive_span.",
    )  # what follows from the config, and the span's second name
    weights = {k.removeprefix("module."): v for k, v in case.weights.items() if not any(part in k for part in copies)}
    hidden, heads, memory = c["hidden_size"], c["nb_heads"], c.get("pers_mem_size") or 0
    adaptive = any("current_val" in name for name in weights)
    blocks = []
    for _ in range(c["nb_layers"]):
        span = (
            AttentionSpan(heads, c["attn_span"], c["adapt_span_ramp"], c["adapt_span_loss"])
            if adaptive
            else c["attn_span"]
        )
        feed_forward = None if memory else FeedForward(hidden, c["inner_hidden_size"], "relu")
        blocks.append(SpanBlock(SpanAttention(hidden, heads, span, memory=memory), feed_forward, hidden))
    model = SpanLanguageModel(
        c["vocab_size"], hidden, c["attn_span"], blocks, adaptive_cache=bool(c.get("adapt_span_cache"))
    ).eval()
    state = {renamed(name): tensor for name, tensor in weights.items()}
    own = model.state_dict()
    model.load_state_dict({name: tensor.reshape(own[name].shape) for name, tensor in state.items()}, strict=True)
    if "h_cache" in case.inputs:
        caches = list(case.inputs["h_cache"].unbind(0))
    else:  # layers whose caches are not of one length
        caches = [case.inputs[f"h_cache.{i}"] for i in range(c["nb_layers"])]
    outputs: dict[str, Any] = {}
    with torch.no_grad():
        for turn in (1, 2):
            if f"x{turn}" not in case.inputs:
                continue
            made, caches = model(case.inputs[f"x{turn}"], caches)
            outputs[f"log_probs_{turn}"] = made
            outputs |= {f"cache_{turn}.{i}": cache for i, cache in enumerate(caches)}
        if adaptive:
            outputs["span_loss"] = model.span_loss()
    return outputs


ADAPTERS: dict[str, Adapter] = {
    "soft-mask": soft_mask,
    "trim-and-cache": trimming,
    "adaptive_span.AdaptiveSpan.{": trimming,
    "adaptive_span.AdaptiveSpan": soft_mask,
    "models.TransformerSeq": language_model,
}
