"""mit-han-lab/lite-transformer: encoder layers of an attention branch and a convolution branch,
time-major in the reference.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from tests.references.case import Adapter, Case, Output
from zoo.layers import Attention, EncoderBlock, FeedForward, Padding, cross_mask, post_norm, pre_norm
from zoo.techniques.long_short.layers import DynamicKernel, Gated, LearnedKernel, LocalConvolution, LongShortAttention

NAMES = {
    r"self_attn\.branches\.0\.q_proj\.": "attention.attention.query.",
    r"self_attn\.branches\.0\.k_proj\.": "attention.attention.key.",
    r"self_attn\.branches\.0\.v_proj\.": "attention.attention.value.",
    r"self_attn\.branches\.0\.out_proj\.": "attention.attention.output.",
    r"self_attn\.branches\.1\.linear1\.": "attention.convolution.up.",
    r"self_attn\.branches\.1\.linear2\.": "attention.convolution.down.",
    r"self_attn\.branches\.1\.weight_linear\.": "attention.convolution.kernel.",
    r"self_attn\.branches\.1\.weight": "attention.convolution.kernel.weight",
    r"self_attn\.branches\.1\.": "attention.convolution.",
    r"self_attn_layer_norm\.": "attention_norm.",
    r"fc1\.": "feed_forward.up.",
    r"fc2\.": "feed_forward.down.",
    r"final_layer_norm\.": "feed_forward_norm.",
}


def renamed(name: str) -> str:
    for pattern, ours in NAMES.items():
        if re.match(pattern, name):
            return re.sub(rf"^{pattern}", ours, name)
    raise LookupError(name)


def block(c: dict[str, Any], layer: int, weights: dict[str, Any]) -> EncoderBlock:
    size = c["encoder_embed_dim"]
    (_, _, attention_size, attention_heads), (kind, kernel, width, heads) = (
        b.split(":") for b in c["encoder_branch_type"]
    )
    kernel_size = c["encoder_kernel_size_list"][layer] if kernel == "default" else int(kernel)
    softmax, size_of = bool(c["weight_softmax"]), int(width)
    if kind == "dynamic":
        weighing = DynamicKernel(size_of, int(heads), kernel_size, softmax=softmax)
    else:
        weighing = LearnedKernel(int(heads), kernel_size, softmax=softmax)
    up, down = None, None
    if c.get("conv_linear", True):
        up, down = (
            Gated(size_of) if c["encoder_glu"] and kind == "dynamic" else nn.Linear(size_of, size_of),
            nn.Linear(size_of, size_of),
        )
    convolution = LocalConvolution(size_of, weighing, up, down, bias="attention.convolution.bias" in weights)
    attention = LongShortAttention(
        Attention(int(attention_size), int(attention_heads)), convolution, int(attention_size)
    )
    made = EncoderBlock(
        attention,
        FeedForward(size, c["encoder_ffn_embed_dim"], c["activation_fn"]),
        nn.LayerNorm(size, 1e-5),
        nn.LayerNorm(size, 1e-5),
        residual=pre_norm if c["encoder_normalize_before"] else post_norm,
    )
    own = made.state_dict()
    made.load_state_dict({name: tensor.reshape(own[name].shape) for name, tensor in weights.items()}, strict=True)
    return made.eval()


def encoder_layers(case: Case) -> dict[str, Any]:
    x = case.inputs["x"].transpose(0, 1)
    padded = case.inputs.get("encoder_padding_mask")
    real = None if padded is None else ~padded.bool()
    padding = Padding.of(real, (x.shape[0], x.shape[1]), pack=False)
    outputs: dict[str, Any] = {}
    layers = sorted({int(name.split(".")[0]) for name in case.weights})
    time_major = None if real is None else real.T
    with torch.no_grad():
        for layer in layers:
            weights = {renamed(n.partition(".")[2]): t for n, t in case.weights.items() if n.startswith(f"{layer}.")}
            made, kept = block(case.config, layer, weights), []
            handle = made.attention.register_forward_hook(lambda _m, _i, out, kept=kept: kept.append(out))
            x = made(x, cross_mask(padding, padding))
            handle.remove()
            outputs[f"lsra.{layer}"] = Output(kept[0].transpose(0, 1), where=time_major)
            outputs[f"layer.{layer}"] = Output(x.transpose(0, 1), where=time_major)
    return outputs


ADAPTERS: dict[str, Adapter] = {"TransformerEncoderLayer": encoder_layers, "lsra": encoder_layers}
