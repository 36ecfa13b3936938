"""Long-short range attention (Wu et al., 2020, Lite Transformer): one part of the channels attends,
the other convolves.

    [attention(x_1) ; convolution(x_2)],   x = [x_1 ; x_2]          no matrix mixes them behind
    dynamic       u = GLU(W_1 x),  kernel_t = softmax(W_k u_t) per head,  out = W_2 (kernel_t over u around t)
    lightweight   the kernel is learned, the same at every t

A kernel serves all channels of its head. Trap: padding is zeroed before W_1, whose bias makes it
something again, so the neighbors of padding read it; ``clean=True`` zeroes it after, too, and then
padding changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers.masks import Mask
from zoo.layers.trace import Trace


class LearnedKernel(nn.Module):
    """A kernel of ``width`` weights for each head, the same at every position; with ``softmax``
    they sum to one.
    """

    def __init__(self, num_heads: int, width: int, *, softmax: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, width))
        self.num_heads, self.width, self.softmax, self.dropout = num_heads, width, softmax, dropout

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        bound = (6 / (self.num_heads + self.width)) ** 0.5
        self.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, size) -> (1, 1, heads, width)."""
        kernel = self.weight.softmax(-1) if self.softmax else self.weight  # eq: learned
        return F.dropout(kernel, self.dropout, self.training)[None, None]


class DynamicKernel(nn.Linear):
    """A kernel of each position's own, ``softmax(W_k u_t)`` for each head."""

    def __init__(self, size: int, num_heads: int, width: int, *, softmax: bool = True, dropout: float = 0.0) -> None:
        super().__init__(size, num_heads * width, bias=False)
        self.num_heads, self.width, self.softmax, self.dropout = num_heads, width, softmax, dropout

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, size) -> (batch, length, heads, width)."""
        kernel = super().forward(x).unflatten(2, (self.num_heads, self.width))  # eq: dynamic
        return F.dropout(kernel.softmax(-1) if self.softmax else kernel, self.dropout, self.training)  # eq: dynamic


class Gated(nn.Linear):
    """``GLU(W x + b)``: one half of the outputs gated by the other."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 2 * size)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(super().forward(x), -1)  # eq: window


class LocalConvolution(nn.Module):
    """``down(kernel over up(x) around t)``, depthwise. ``up`` and ``down`` may be left out.

    causal: the window ends at its token instead of being centred (an even one reaches further
    back). clean: see above.
    """

    def __init__(
        self,
        size: int,
        kernel: LearnedKernel | DynamicKernel,
        up: nn.Module | None = None,
        down: nn.Module | None = None,
        *,
        causal: bool = False,
        bias: bool = False,
        clean: bool = False,
    ) -> None:
        super().__init__()
        if size % kernel.num_heads:
            raise ConfigError(f"num_heads={kernel.num_heads} does not divide the convolution's size={size}")
        self.kernel, self.up, self.down, self.clean = kernel, up, down, clean
        self.width = kernel.width
        self.left = self.width - 1 if causal else self.width // 2
        self.bias = nn.Parameter(torch.empty(size)) if bias else None

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """x (batch, length, size); real (batch, length) bool or None -> (batch, length, size)."""
        if real is not None:
            x = x.masked_fill(~real.unsqueeze(2), 0)
        x = x if self.up is None else self.up(x)  # eq: window
        if self.clean and real is not None:
            x = x.masked_fill(~real.unsqueeze(2), 0)
        windows = F.pad(x, (0, 0, self.left, self.width - 1 - self.left)).unfold(
            1, self.width, 1
        )  # (batch, length, size, width)
        windows = windows.unflatten(2, (self.kernel.num_heads, -1))  # (batch, length, heads, channels, width)
        kernel = self.kernel(x)  # eq: window
        out = torch.einsum("blhk,blhck->blhc", kernel.expand(*windows.shape[:3], -1), windows).flatten(2)  # eq: window
        out = out if self.bias is None else out + self.bias
        return out if self.down is None else self.down(out)  # eq: window


class LongShortAttention(nn.Module):
    """``[attention(x_1) ; convolution(x_2)]``; called like attention, on unpacked rows: a
    convolution needs neighbors where they stand.
    """

    roles = {"attention": "self-attention"}

    def __init__(self, attention: nn.Module, convolution: LocalConvolution, attention_size: int) -> None:
        super().__init__()
        self.attention, self.convolution, self.attention_size = attention, convolution, attention_size

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask,
        bias: Tensor | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """(batch, length, size), or packed rows, three times the same -> the same shape."""
        if query is not key or key is not value:
            raise InputError("long-short range attention reads one sequence: query, key and value must be the same")
        long, short = query[..., : self.attention_size], query[..., self.attention_size :]  # eq: halves
        attended = self.attention(long, long, long, mask, bias, trace)  # eq: halves
        if mask.query_rows is None:  # eq: halves
            return torch.cat([attended, self.convolution(short, mask.keys)], -1)
        rows = mask.query_rows
        return torch.cat([attended, rows.pack(self.convolution(rows.unpack(short), rows.real()))], -1)
