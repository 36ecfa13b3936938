"""Sparse attention on a GPU, through torch.nn.attention.flex_attention: the kernel skips whole
blocks of pairs that a pattern leaves out.

    mask_mod(b, h, i, j) = the pattern of head h allows (i, j), and key j of row b is real

Keys in front of the row are seen by everyone.

The result is that of `sparse_attention`. On CUDA both the kernel and the making of the block mask
are compiled, so no n x n tensor is made; anywhere else they run as they are written, in n², which
is for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from zoo.layers.masks import Mask, Pattern
from zoo.techniques.sparse.patterns import Sparsity

LEAST_SIZE = 16  # of a head, for the compiled kernel


def serves(q: Tensor, v: Tensor, dropout: float) -> bool:
    """Whether the compiled kernel takes these: on CUDA with Triton there, in at most 32 bits,
    without dropout, heads not too narrow.
    """
    return (
        q.is_cuda
        and not dropout
        and q.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and min(q.shape[3], v.shape[3]) >= LEAST_SIZE
        and importlib.util.find_spec("triton") is not None
    )


def flex_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    patterns: tuple[Sparsity, ...],
    mask: Mask | None = None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(batch, heads, length, head size) each -> (batch, heads, length, value size). The heads take
    the patterns in turn.

    mask: its keys and its pattern are joined to the patterns. before: keys and values that every
    query sees, in front.
    """
    mask = Mask() if mask is None else mask
    extra = 0
    if before is not None:
        extra = before[0].shape[2]
        k, v = (
            torch.cat([b.to(x.dtype).expand(x.shape[0], -1, -1, -1), x], 2) for b, x in zip(before, (k, v), strict=True)
        )
    blocks = block_mask(patterns, q.shape[2], q.shape[1], mask, extra, q.device)
    kernel: Any = flex_attention
    run = _compiled(kernel) if q.is_cuda else kernel
    out: Tensor = run(q, k, v, block_mask=blocks, scale=1 / math.sqrt(q.shape[3]))
    return out


def block_mask(
    patterns: tuple[Sparsity, ...], length: int, heads: int, mask: Mask, extra: int, device: torch.device
) -> BlockMask:
    """Who may look at whom, with ``extra`` keys in front; kept for the next layer where the
    patterns are all there is to it.
    """
    if mask.keys is None and mask.pattern is None:
        return _of_patterns(patterns, length, heads, extra, device)
    rules = tuple(s.pattern if mask.pattern is None else s.pattern & mask.pattern for s in patterns)
    return _built(rules, length, heads, mask.keys, extra, device)


@functools.lru_cache(maxsize=32)
def _of_patterns(
    patterns: tuple[Sparsity, ...], length: int, heads: int, extra: int, device: torch.device
) -> BlockMask:
    with torch.inference_mode(False):  # whoever finds it next may want gradients
        return _built(tuple(sparsity.pattern for sparsity in patterns), length, heads, None, extra, device)


def _built(
    rules: tuple[Pattern, ...], length: int, heads: int, keys: Tensor | None, extra: int, device: torch.device
) -> BlockMask:
    def allows(b: Tensor, h: Tensor, query: Tensor, column: Tensor) -> Tensor:
        key = column - extra
        may = rules[0].rule(query, key)
        for turn, pattern in enumerate(rules[1:], 1):
            may = torch.where(h % len(rules) == turn, pattern.rule(query, key), may)
        if keys is not None:
            may = may & keys[b, key.clamp(min=0)]
        return may | (column < extra) if extra else may

    make = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
    batch = None if keys is None else keys.shape[0]
    found: BlockMask = make(
        allows, batch, heads if len(rules) > 1 else None, length, length + extra, device=str(device)
    )
    return found


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)
