"""Sparse attention (Child et al., 2019; Beltagy et al., 2020): who sees whom is a rule on
positions, and nobody else is looked at.

    local(l)       |i - j| < l                              causal: i - l < j <= i
    strided(l)     (i - j) mod l = 0                        causal: and j <= i
    fixed(l, c)    same stretch of l tokens, or j one of a stretch's c summary tokens      causal: and j <= i
    window(w) with g global tokens      |i - j| <= w, or i < g, or j < g
    probabilities = softmax(q kᵀ / sqrt(d) where the rule allows),   as dense attention under the same mask, exactly

Queries run in blocks, each over its *near* keys (a stretch around it), a few *far* columns that
everyone sees, and the keys of its *residue class*. Time and memory grow like n · (near + far + n /
stride), so like n · sqrt(n) for stride = sqrt(n); no n x n tensor is made. Where a rule on
positions is not all there is (holes in a packed row, a matrix mask, an additive bias) or the
probabilities are asked for, the dense form runs under the same rule; so it does under torch.compile
and torch.export.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.layers.attention import AttentionArgs, DenseAttention
from zoo.layers.masks import Mask, Pattern
from zoo.techniques.sparse.patterns import Sparsity

ROOM = 4 << 20  # scores that are held at once
PIECE = 1 << 18  # pairs of positions that a rule is asked about at once


class SparseAttention(DenseAttention):
    """The core of `Attention` under a `Sparsity`, or under several that its heads take in turn."""

    def __init__(self, *patterns: Sparsity) -> None:
        super().__init__()
        if not patterns:
            raise ConfigError("sparse attention needs at least one pattern")
        self.patterns = patterns

    def extra_repr(self) -> str:
        return ", ".join(sparsity.pattern.name for sparsity in self.patterns)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        mask, before, dropout = args.mask, args.before, args.dropout
        heads, length = q.shape[1], q.shape[2]
        irregular = mask.dense is not None or mask.query_positions is not None or mask.key_positions is not None
        if (
            irregular
            or args.bias is not None
            or args.wants_probabilities
            or k.shape[2] != length
            or q.device.type == "meta"
            or torch.compiler.is_compiling()
        ):
            return super().forward(q, k, v, replace(args, mask=self.under_rule(mask, heads, q)))
        if q.is_cuda:
            from zoo.techniques.sparse import flex

            if flex.serves(q, v, dropout):
                return flex.flex_sparse_attention(q, k, v, self.patterns, mask, before)
        count = len(self.patterns)
        if count == 1:
            return sparse_attention(q, k, v, self.patterns[0], mask, dropout, before)
        out = q.new_empty(q.shape[0], heads, length, v.shape[3])
        for turn, sparsity in enumerate(self.patterns[: min(count, heads)]):
            mine = slice(turn, None, count)
            own = None if before is None else (before[0][:, mine], before[1][:, mine])
            sparse_attention(q[:, mine], k[:, mine], v[:, mine], sparsity, mask, dropout, own, into=out[:, mine])
        return out

    def under_rule(self, mask: Mask, heads: int, like: Tensor) -> Mask:
        """The mask joined with the rules of all heads, for the dense form."""
        if len(self.patterns) == 1:
            return mask & self.patterns[0].pattern

        def rule(query: Tensor, key: Tensor) -> Tensor:
            by_turn = [
                sparsity.pattern.rule(query, key) for sparsity in self.patterns
            ]  # each (batch or 1, 1, query, key)
            return torch.cat([by_turn[head % len(by_turn)] for head in range(heads)], 1)

        return mask & Pattern(rule, self.extra_repr())


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sparsity: Sparsity,
    mask: Mask | None = None,
    dropout: float = 0.0,
    before: tuple[Tensor, Tensor] | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """(batch, heads, length, head size) each -> (batch, heads, length, value size), block by block.

    mask: its keys and its pattern are joined to the rule. before: keys and values that every query
    sees, in front. into: where the result is written, a part of a larger tensor perhaps.
    """
    mask = Mask() if mask is None else mask
    length = q.shape[2]
    out = q.new_empty(*q.shape[:3], v.shape[3]) if into is None else into
    if sparsity.rows >= length:
        return out.copy_(
            DenseAttention()(q, k, v, AttentionArgs(mask & sparsity.pattern, dropout=dropout, before=before))
        )
    tracked = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *(before or ())))
    fused = q.device.type == "cpu" and not dropout and not tracked and q.is_floating_point() and FLASH is not None
    (_fused if fused else _by_blocks)(q, k, v, sparsity, mask, dropout, before, out)
    if sparsity.rows:
        top = replace(mask, pattern=None) & _allowed(sparsity, mask)
        first = slice(0, sparsity.rows)
        out[:, :, first] = DenseAttention()(q[:, :, first], k, v, AttentionArgs(top, dropout=dropout, before=before))
    return out


FLASH: Callable[..., tuple[Tensor, Tensor]] | None = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None
)
"""The kernel under scaled_dot_product_attention on a CPU, which also gives the logarithm of each
query's sum; None where torch has none.
"""


def _by_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sparsity: Sparsity,
    mask: Mask,
    dropout: float,
    before: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> None:
    """The formula written out for a few blocks at a time, with dropout and gradients, on any
    device.
    """
    out.copy_(_Zones(q, k, v, sparsity, mask, dropout, before).run())


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sparsity: Sparsity,
    mask: Mask,
    dropout: float,
    before: tuple[Tensor, Tensor] | None,
    out: Tensor,
) -> None:
    """Each zone through the fused kernel, then joined by the logarithms of their sums; a few heads
    at a time. For inference on a CPU.
    """
    batch, heads, length, size = q.shape
    group = max(1, min(heads, ROOM // 4 // (length * size) or 1))
    masks: list[tuple[Tensor, Tensor]] = []
    for row in range(batch):
        keys = None if mask.keys is None else mask.keys[row : row + 1]
        if keys is not None:
            masks = []
        for first in range(0, heads, group):
            mine = (slice(row, row + 1), slice(first, first + group))
            own = None if before is None else (before[0][:, mine[1]], before[1][:, mine[1]])
            zones = _Zones(q[mine], k[mine], v[mine], sparsity, replace(mask, keys=keys), dropout, own)
            masks = masks or zones.masks()
            out[mine] = zones.fused(masks)


def _allowed(sparsity: Sparsity, mask: Mask) -> Pattern:
    return sparsity.pattern if mask.pattern is None else sparsity.pattern & mask.pattern


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, before, after)) if before or after else x


class _Zones:
    """One run of `sparse_attention`: the keys of each zone, laid out so that blocks of queries meet
    them as views.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sparsity: Sparsity,
        mask: Mask,
        dropout: float,
        before: tuple[Tensor, Tensor] | None,
    ) -> None:
        self.rule = _allowed(sparsity, mask).rule
        self.keys, self.dropout = mask.keys, dropout
        self.length, self.block = q.shape[2], sparsity.block
        self.stretch, self.stride = sparsity.stretch, sparsity.stride
        self.left, self.right = (
            (0, 0) if self.stretch else (min(sparsity.left, self.length), min(sparsity.right, self.length))
        )
        self.near = bool(self.stretch) or sparsity.left + sparsity.right >= 0
        self.device = q.device
        self.blocks = math.ceil(self.length / self.block)
        whole = self.blocks * self.block
        self.scale = 1 / math.sqrt(q.shape[3])
        self.shape = (q.shape[0], q.shape[1], self.length, v.shape[3])
        short = whole - self.length  # what the last block lacks
        self.q = _padded(q, 0, short).unflatten(2, (self.blocks, self.block))  # (batch, heads, blocks, block, size)
        self.width = self.left + self.block + self.right if self.near else 0
        if self.near:
            wide = [_padded(x, self.left, self.right + short) for x in (k, v)]
            self.near_k, self.near_v = (
                x.unfold(2, self.width, self.block) for x in wide
            )  # (.., blocks, size, width), views
        columns = list(sparsity.columns(self.length)) if sparsity.columns is not None else []
        self.columns = torch.tensor(columns, device=self.device, dtype=torch.int64)
        self.extra = 0 if before is None else before[0].shape[2]
        self.far = len(columns) + self.extra
        if self.far:
            far = [x.index_select(2, self.columns) for x in (k, v)]
            if before is not None:
                far = [
                    torch.cat([b.to(x.dtype).expand(x.shape[0], -1, -1, -1), x], 2)
                    for b, x in zip(before, far, strict=True)
                ]
            self.far_k, self.far_v = far
        self.classes = 0
        if self.stride:
            steps = self.blocks * self.block // self.stride
            self.classes = steps
            wide = (
                [x[:, :, self.left : self.left + whole] for x in wide]
                if self.near
                else [_padded(x, 0, short) for x in (k, v)]
            )
            # (batch, heads, residue, step, size), views
            self.class_k, self.class_v = (x.unflatten(2, (steps, self.stride)).transpose(2, 3) for x in wide)

    def run(self) -> Tensor:
        batch, heads = self.shape[:2]
        per_block = batch * heads * self.block * (self.width + self.far + self.classes)
        group = max(1, ROOM // max(1, per_block))
        out = [self.some(first, min(first + group, self.blocks)) for first in range(0, self.blocks, group)]
        return (out[0] if len(out) == 1 else torch.cat(out, 2)).flatten(2, 3)[:, :, : self.length]

    def some(self, first: int, last: int) -> Tensor:
        """Blocks first .. last - 1 of queries: (batch, heads, blocks, block, value size)."""
        q = self.q[:, :, first:last]
        scores = []
        if self.near:
            scores.append(q @ self.near_k[:, :, first:last])
        if self.far:
            scores.append(torch.einsum("bhgqd,bhkd->bhgqk", q, self.far_k))
        if self.stride:
            by_class = (
                q.unflatten(3, (-1, self.stride)).flatten(2, 3) if self.block > self.stride else q
            )  # (.., rounds, residue, size)
            found = torch.einsum("bhgrd,bhrkd->bhgrk", by_class, self.class_k)
            scores.append(found.unflatten(2, (last - first, -1)).flatten(3, 4) if self.block > self.stride else found)
        probabilities = self.softmax(scores, self.allowed(first, last))
        parts = probabilities.split([s.shape[-1] for s in scores], -1)
        out, at = None, 0
        if self.near:
            out, at = parts[0] @ self.near_v[:, :, first:last].transpose(-1, -2), 1
        if self.far:
            more = torch.einsum("bhgqk,bhkd->bhgqd", parts[at], self.far_v)
            out, at = more if out is None else out + more, at + 1
        if self.stride:
            share = parts[at].unflatten(3, (-1, self.stride)).flatten(2, 3) if self.block > self.stride else parts[at]
            found = torch.einsum("bhgrk,bhrkd->bhgrd", share, self.class_v)
            more = found.unflatten(2, (last - first, -1)).flatten(3, 4) if self.block > self.stride else found
            out = more if out is None else out + more
        assert out is not None
        return out

    def masks(self) -> list[tuple[Tensor, Tensor]]:
        """Zone by zone, for all blocks: what the fused kernel adds, 0 or -inf (batch and heads are
        one there), and the queries that see nothing. The rule is asked piece by piece, so that what
        it makes on the way stays small.
        """
        tokens = self.blocks * self.block
        zones, views = (
            [],
            [],
        )  # views: the same memory as (blocks, block, keys), but for the residue classes (rounds, residue, keys)
        if self.near:
            zones.append(self.q.new_zeros(1, self.blocks, self.block, self.width))
            views.append(zones[-1][0])
        if self.far:
            zones.append(self.q.new_zeros(1, 1, tokens, self.far))
            views.append(zones[-1][0, 0].unflatten(0, (self.blocks, self.block)))
        if self.stride:
            zones.append(self.q.new_zeros(1, self.stride, tokens // self.stride, self.classes))
            views.append(zones[-1][0].transpose(0, 1))
        count = max(1, PIECE // (self.block * max(self.width, self.far, self.classes)))
        for first in range(0, self.blocks, count):
            last = min(first + count, self.blocks)
            for view, may in zip(views, self.allowed(first, last), strict=True):
                each = view.shape[0] // self.blocks
                view[first * each : last * each].masked_fill_(~may[0, 0].reshape(-1, *view.shape[1:]), -torch.inf)
        return [(zone, (zone == -torch.inf).all(-1)) for zone in zones]

    def allowed(self, first: int, last: int) -> list[Tensor]:
        """Blocks first .. last - 1: who may look at whom, zone by zone, (batch or 1, 1, blocks,
        block, keys).
        """
        rows = torch.arange(first * self.block, last * self.block, device=self.device).unflatten(
            0, (-1, self.block)
        )  # (blocks, block)
        start = torch.arange(first, last, device=self.device) * self.block - self.left  # of the near keys, (blocks,)
        found = []
        if self.near:
            places = start[:, None] + torch.arange(self.width, device=self.device)  # (blocks, width)
            found.append(self.seen(rows, places[:, None, :], (places >= 0) & (places < self.length)))
        if self.far:
            found.append(self.seen_far(rows, start))
        if self.stride:
            found.append(self.seen_class(rows, start))
        return found

    def fused(self, masks: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """All blocks at once, one zone after the other: (1, heads, length, value size)."""
        q = self.q.flatten(0, 1)  # (heads, blocks, block, size)
        zones, turn = [], iter(masks)
        if self.near:
            k, v = (x.flatten(0, 1).transpose(-1, -2) for x in (self.near_k, self.near_v))
            zones.append(tuple(x.flatten(1, 2) for x in self.kernel(q, k, v, *next(turn))))
        if self.far:
            k, v = (x.flatten(0, 1).unsqueeze(1) for x in (self.far_k, self.far_v))
            zones.append(tuple(x.squeeze(1) for x in self.kernel(q.flatten(1, 2).unsqueeze(1), k, v, *next(turn))))
        if self.stride:
            by_class = q.flatten(1, 2).unflatten(1, (-1, self.stride)).transpose(1, 2)  # (heads, residue, rounds, size)
            found = self.kernel(by_class, self.class_k.flatten(0, 1), self.class_v.flatten(0, 1), *next(turn))
            zones.append(tuple(x.transpose(1, 2).flatten(1, 2) for x in found))
        out, total = zones[0]
        for more, log_sum in zones[1:]:
            joined = torch.logaddexp(total, log_sum)
            safe = joined.masked_fill(joined == -torch.inf, 0)
            mine, theirs = ((x - safe).exp().to(out.dtype).unsqueeze(-1) for x in (total, log_sum))
            out, total = out.mul_(mine).addcmul_(more, theirs), joined
        return out[None, :, : self.length]

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, add: Tensor, blind: Tensor) -> tuple[Tensor, Tensor]:
        """(heads, groups, queries, size) each -> the result and the logarithm of each query's sum,
        -inf where it may see nothing.
        """
        assert FLASH is not None
        out, log_sum = FLASH(q, k, v, 0.0, False, attn_mask=add.expand(q.shape[0], *add.shape[1:]), scale=self.scale)
        return out, log_sum.masked_fill(blind, -torch.inf)

    def softmax(self, scores: Sequence[Tensor], allowed: Sequence[Tensor]) -> Tensor:
        """Over all zones together; a query that may see nothing yields zeros."""
        joined = (scores[0] if len(scores) == 1 else torch.cat(list(scores), -1)) * self.scale
        batch = max(mask.shape[0] for mask in allowed)
        may = torch.cat(
            [mask.expand(batch, *mask.shape[1:]) for mask in allowed], -1
        )  # (batch or 1, 1, blocks, block, keys)
        probabilities = joined.masked_fill(~may, torch.finfo(joined.dtype).min).softmax(-1)
        if not bool(may.any(-1).all()):
            probabilities = probabilities.masked_fill(~may, 0)
        return F.dropout(probabilities, self.dropout)

    def seen(self, rows: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        """The rule at rows (blocks, block) and near keys (blocks, 1, width) -> (batch or 1, 1,
        blocks, block, width).
        """
        may = self.rule(rows[:, :, None], places) & valid[:, None, :]
        if self.keys is None:
            return may[None, None]
        real = self.keys[:, places.clamp(0, self.length - 1)]  # (batch, blocks, 1, width)
        return (may & real).unsqueeze(1)

    def outside(self, start: Tensor, places: Tensor) -> Tensor:
        """Whether keys are none of a block's near ones: start (blocks,), places (..., keys) ->
        (blocks, ..., keys).
        """
        if not self.near:
            return torch.ones((), dtype=torch.bool, device=self.device)
        start = start.reshape(-1, *[1] * places.dim())
        return (places < start) | (places >= start + self.width)

    def seen_far(self, rows: Tensor, start: Tensor) -> Tensor:
        columns = self.columns[None, :]
        may = self.rule(rows[:, :, None], self.columns[None, None, :]) & self.outside(start, columns)
        may = may if self.keys is None else may & self.keys[:, None, None, self.columns]
        may = may if self.keys is not None else may[None]
        return F.pad(may, (self.extra, 0), value=True).unsqueeze(1)

    def seen_class(self, rows: Tensor, start: Tensor) -> Tensor:
        assert self.stride is not None
        step = torch.arange(self.classes, device=self.device) * self.stride
        places = (rows % self.stride)[:, :, None] + step  # (blocks, block, steps)
        may = self.rule(rows[:, :, None], places) & (places < self.length)
        if self.near:
            first = start[:, None, None]
            may = may & ((places < first) | (places >= first + self.width))
        if self.far:
            may = may & ~torch.isin(places, self.columns)
        if self.keys is None:
            return may[None, None]
        return (may & self.keys[:, places.clamp(max=self.length - 1)]).unsqueeze(1)
