"""`zoo.optimize`: a copy of a model prepared for inference, and what was changed in it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.errors import InputError, unknown
from zoo.inference.int8 import Int8Linear, compiled, int8_product
from zoo.inference.prepared import FUSED, JoinedAttention, PreparedLinear, ShortAttention
from zoo.layers.attention import Attention, DenseAttention
from zoo.layers.blocks import DecoderBlock, EncoderBlock
from zoo.layers.feed_forward import ACTIVATIONS, FeedForward, identity

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
PRODUCTS = frozenset(
    f"{part}-{name}"
    for part, names in {"attention": "query key value output", "feed-forward": "up down"}.items()
    for name in names.split()
) | {"embedding-projection", "bottleneck"}


@dataclass(frozen=True)
class Prepared:
    """What `optimize` did: ``dtype`` of the states, and one line for each kind of change."""

    dtype: torch.dtype
    changes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"states in {str(self.dtype).removeprefix('torch.')}", *self.changes])


def optimize(model: Any, dtype: str | torch.dtype = "float32", *, compile: bool = False) -> Any:
    """A copy of ``model`` for inference on this CPU; ``prepared`` on it says what was changed.
    ``model`` stays as it is.

    dtype: "float32", "bfloat16" or "int8" (or torch's). Every linear layer in the model's blocks
    gets its weights in oneDNN's layout once and is fused with the activation after it. "bfloat16":
    weights and states in bfloat16. "int8": those layers multiply in int8, with a scale for each row
    of activations and each output of weights; the rest is in bfloat16 where the processor has it,
    else in float32. compile: torch.compile fuses what stands around the multiplications; with "int8"
    only there, so that packing still works, otherwise the whole model, which then runs padded. The
    copy has no gradients and can't be saved.

    Raises InputError where the model is not on the CPU, for a dtype that it doesn't know, or where
    torch lacks oneDNN.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown("dtype to optimize for", name, DTYPES)
    if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
        raise InputError(f"optimize prepares models on the CPU, this one is on {model.device}; call model.cpu() first")
    if not torch.backends.mkldnn.is_available():
        raise InputError("optimize needs oneDNN, which this build of torch has not; use the model as it is")
    native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    carrier = torch.float32 if name == "float32" or (name == "int8" and not native) else torch.bfloat16
    _keep_pages()
    made = _copied(model, carrier)
    changes = [_linears(made, name == "int8", compile), _attention(made)]
    if compile and name != "int8":
        made.compile(dynamic=True)
        changes.append("the whole model compiled: it runs padded")
    made.prepared = Prepared(carrier, tuple(changes))
    return made.eval()


def _keep_pages() -> None:
    """Let the C library keep freed memory for the next product instead of giving it back and
    faulting it in again page by page.

    glibc raises the size from which it maps and unmaps anew to that of the largest block freed so
    far, up to 32 MiB; elsewhere this does nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # freed at once


def _copied(model: nn.Module, dtype: torch.dtype) -> Any:
    """The same modules over the same tensors, or over converted ones; for inference."""
    seen: dict[int, Any] = {}
    for parameter in model.parameters():
        kept = parameter.detach().to(dtype) if parameter.is_floating_point() else parameter.detach()
        seen[id(parameter)] = nn.Parameter(kept, requires_grad=False)
    for buffer in model.buffers():
        seen[id(buffer)] = buffer.to(dtype) if buffer.is_floating_point() else buffer
    return copy.deepcopy(model, seen).eval()


def _linears(model: Any, int8: bool, compile_them: bool) -> str:
    """Replace the linear layers of the model's blocks, and give each the activation that
    follows.
    """
    follows: dict[int, tuple[FeedForward, str]] = {}
    names = {function: name for name, function in ACTIVATIONS.items()}
    for part in model.modules():
        if type(part) is FeedForward and names.get(part.activation) in FUSED:
            follows[id(part.up)] = (part, names[part.activation])
    count = fused = 0
    for site in list(model.sites()):
        linear = site.module
        if site.role not in PRODUCTS or type(linear) is not nn.Linear:
            continue
        feed_forward, activation_name = follows.get(id(linear), (None, "identity"))
        if int8:
            new: nn.Module = Int8Linear.from_linear(linear, activation_name)
            if compile_them:
                new.product = compiled(int8_product)
        else:
            new = PreparedLinear(linear.weight, linear.bias, activation_name)
        if feed_forward is not None:
            feed_forward.activation = identity
            fused += 1
        site.replace(new)
        count += 1
    for site in list(model.sites()):
        part = site.module
        joins = (
            site.role == "self-attention"
            and type(site.parent) in (EncoderBlock, DecoderBlock)
            and type(part) is Attention
        )
        if joins and all(isinstance(linear, Int8Linear) for linear in (part.query, part.key, part.value)):
            site.replace(JoinedAttention(part))
    kind = "int8" if int8 else "oneDNN"
    around = ", torch.compile around them" if int8 and compile_them else ""
    return f"{count} linear layers in {kind}, {fused} fused with their activation{around}"


def _attention(model: Any) -> str:
    """Give plain attention the core that suits short rectangles."""
    count = 0
    for site in list(model.sites()):
        if site.role == "attention-core" and type(site.module) is DenseAttention:
            site.replace(ShortAttention())
            count += 1
    return f"{count} attentions by two batched matrix multiplications where they are short"
