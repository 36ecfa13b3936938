"""Long-short range attention (Wu et al., 2020, Lite Transformer): one part of the channels attends, the other convolves.

    [attention(x_1) ; convolution(x_2)],   x = [x_1 ; x_2]          no matrix mixes them behind
    dynamic       u = GLU(W_1 x),  kernel_t = softmax(W_k u_t) per head,  out = W_2 (kernel_t over u around t)
    lightweight   the kernel is learned, the same at every t

A kernel serves all channels of its head. Trap: padding is zeroed before W_1, whose bias makes it something again, so the neighbors of
padding read it; ``clean=True`` zeroes it after, too, and then padding changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers.masks import Mask
from zoo.layers.trace import Trace


class LocalConvolution(nn.Module):
    """Depthwise convolution over ``width`` tokens, with a kernel of each position's own ("dynamic") or a learned one.

    glu: the input goes through W_1 to twice the width and a gate. linear: W_1 and W_2 exist at all. softmax: kernels sum to one. causal:
    the window ends at its token instead of being centred (an even one reaches further back).
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        width: int,
        *,
        dynamic: bool,
        glu: bool = True,
        linear: bool = True,
        softmax: bool = True,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = False,
        clean: bool = False,
    ) -> None:
        super().__init__()
        if size % num_heads:
            raise ConfigError(f"num_heads={num_heads} does not divide the convolution's size={size}")
        self.num_heads, self.width, self.softmax, self.dropout, self.clean, self.glu = num_heads, width, softmax, dropout, clean, glu
        self.left = width - 1 if causal else width // 2
        self.up = nn.Linear(size, 2 * size if glu else size) if linear else None
        self.down = nn.Linear(size, size) if linear else None
        self.kernel = nn.Linear(size, num_heads * width, bias=False) if dynamic else None
        self.weight = None if dynamic else nn.Parameter(torch.empty(num_heads, width))
        self.bias = nn.Parameter(torch.empty(size)) if bias else None

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        if self.weight is not None:
            bound = (6 / (self.num_heads + self.width)) ** 0.5
            self.weight.uniform_(-bound, bound, generator=generator)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """x (batch, length, size); real (batch, length) bool or None -> (batch, length, size)."""
        if real is not None:
            x = x.masked_fill(~real.unsqueeze(2), 0)
        if self.up is not None:
            x = F.glu(self.up(x), -1) if self.glu else self.up(x)
        if self.clean and real is not None:
            x = x.masked_fill(~real.unsqueeze(2), 0)
        windows = F.pad(x, (0, 0, self.left, self.width - 1 - self.left)).unfold(1, self.width, 1)  # (batch, length, size, width)
        windows = windows.unflatten(2, (self.num_heads, -1))  # (batch, length, heads, channels, width)
        raw = self.weight if self.kernel is None else self.kernel(x).unflatten(2, (self.num_heads, self.width))
        assert raw is not None
        kernel = raw.softmax(-1) if self.softmax else raw  # (batch, length, heads, width) or (heads, width)
        kernel = F.dropout(kernel, self.dropout, self.training)
        form = "hk,blhck->blhc" if self.kernel is None else "blhk,blhck->blhc"
        out = torch.einsum(form, kernel, windows).flatten(2)
        out = out if self.bias is None else out + self.bias
        return out if self.down is None else self.down(out)


class LongShortAttention(nn.Module):
    """``[attention(x_1) ; convolution(x_2)]``; called like attention, on unpacked rows: a convolution needs neighbors where they stand."""

    roles = {"attention": "self-attention"}  # noqa: RUF012

    def __init__(self, attention: nn.Module, convolution: LocalConvolution, attention_size: int) -> None:
        super().__init__()
        self.attention, self.convolution, self.attention_size = attention, convolution, attention_size

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Mask, bias: Tensor | None = None, trace: Trace | None = None
    ) -> Tensor:
        """(batch, length, size), or packed rows, three times the same -> the same shape."""
        if query is not key or key is not value:
            raise InputError("long-short range attention reads one sequence: query, key and value must be the same")
        long, short = query[..., : self.attention_size], query[..., self.attention_size :]
        attended = self.attention(long, long, long, mask, bias, trace)
        if mask.query_rows is None:
            return torch.cat([attended, self.convolution(short, mask.keys)], -1)
        rows = mask.query_rows
        return torch.cat([attended, rows.pack(self.convolution(rows.unpack(short), rows.real()))], -1)
