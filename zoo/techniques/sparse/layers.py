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
from functools import partial

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
        mask, (heads, length) = args.mask, q.shape[1:3]
        irregular = mask.dense is not None or mask.query_positions is not None or mask.key_positions is not None
        irregular = irregular or args.bias is not None or args.wants_probabilities or k.shape[2] != length
        if irregular or q.device.type == "meta" or torch.compiler.is_compiling():
            return super().forward(q, k, v, replace(args, mask=self.under_rule(mask, heads)))
        if q.is_cuda:
            from zoo.techniques.sparse import flex

            if flex.serves(q, v, args.dropout):
                return flex.flex_sparse_attention(q, k, v, self.patterns, mask, args.before)
        count = len(self.patterns)
        if count == 1:
            return sparse_attention(q, k, v, self.patterns[0], args)
        out = q.new_empty(q.shape[0], heads, length, v.shape[3])
        for turn, sparsity in enumerate(self.patterns[: min(count, heads)]):
            some = slice(turn, None, count)
            sparse_attention(q[:, some], k[:, some], v[:, some], sparsity, of_heads(args, some), into=out[:, some])
        return out

    def under_rule(self, mask: Mask, heads: int) -> Mask:
        """The mask joined with the rules of all heads, for the dense form."""
        if len(self.patterns) == 1:
            return mask & self.patterns[0].pattern

        def rule(query: Tensor, key: Tensor) -> Tensor:
            by_turn = [sparsity.pattern.rule(query, key) for sparsity in self.patterns]  # (batch or 1, 1, query, key)
            return torch.cat([by_turn[head % len(by_turn)] for head in range(heads)], 1)

        return mask & Pattern(rule, self.extra_repr())


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sparsity: Sparsity,
    args: AttentionArgs | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """(batch, heads, length, head size) each -> (batch, heads, length, value size), block by block.

    args: the mask's keys and its pattern are joined to the rule; a matrix mask, a bias and a trace
    are not read. into: where the result is written, a part of a larger tensor perhaps.
    """
    args = AttentionArgs(Mask()) if args is None else args
    length, mask = q.shape[2], args.mask
    out = q.new_empty(*q.shape[:3], v.shape[3]) if into is None else into
    if sparsity.rows >= length:
        return out.copy_(DenseAttention()(q, k, v, replace(args, mask=mask & sparsity.pattern)))
    tracked = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *(args.before or ())))
    if q.device.type == "cpu" and not args.dropout and not tracked and q.is_floating_point() and FLASH is not None:
        _fused(q, k, v, sparsity, args, out)
    else:
        out.copy_(_Run(q, k, v, sparsity, args).by_blocks())
    if sparsity.rows:
        top = replace(mask, pattern=None) & _allowed(sparsity, mask)
        first = slice(0, sparsity.rows)
        out[:, :, first] = DenseAttention()(q[:, :, first], k, v, replace(args, mask=top))
    return out


FLASH: Callable[..., tuple[Tensor, Tensor]] | None = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None
)
"""The kernel under scaled_dot_product_attention on a CPU, which also gives the logarithm of each
query's sum; None where torch has none.
"""


def _fused(q: Tensor, k: Tensor, v: Tensor, sparsity: Sparsity, args: AttentionArgs, out: Tensor) -> None:
    """Each zone through the fused kernel, then joined by the logarithms of their sums; a few heads
    at a time. For inference on a CPU.
    """
    batch, heads, length, size = q.shape
    group = max(1, min(heads, ROOM // 4 // (length * size) or 1))
    masks: list[tuple[Tensor, Tensor]] = []
    for row in range(batch):
        keys = None if args.mask.keys is None else args.mask.keys[row : row + 1]
        if keys is not None:
            masks = []
        for first in range(0, heads, group):
            some = (slice(row, row + 1), slice(first, first + group))
            own = replace(of_heads(args, some[1]), mask=replace(args.mask, keys=keys))
            run = _Run(q[some], k[some], v[some], sparsity, own)
            masks = masks or run.masks()
            out[some] = run.fused(masks)


def of_heads(args: AttentionArgs, heads: slice) -> AttentionArgs:
    """What some of the heads are told."""
    before = args.before
    return args if before is None else replace(args, before=(before[0][:, heads], before[1][:, heads]))


def _allowed(sparsity: Sparsity, mask: Mask) -> Pattern:
    return sparsity.pattern if mask.pattern is None else sparsity.pattern & mask.pattern


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    return F.pad(x, (0, 0, before, after)) if before or after else x


class _Layout:
    """How queries are cut into blocks, who may look at whom, and where the near keys of a block
    begin.
    """

    def __init__(self, q: Tensor, sparsity: Sparsity, mask: Mask) -> None:
        self.rule, self.keys, self.device = _allowed(sparsity, mask).rule, mask.keys, q.device
        self.length, self.block = q.shape[2], sparsity.block
        self.blocks = math.ceil(self.length / self.block)
        self.tokens = self.blocks * self.block
        self.short = self.tokens - self.length  # what the last block lacks
        self.near = bool(sparsity.stretch) or sparsity.left + sparsity.right >= 0
        beside = self.near and not sparsity.stretch
        self.left, self.right = (min(n, self.length) if beside else 0 for n in (sparsity.left, sparsity.right))
        self.width = self.left + self.block + self.right if self.near else 0

    def rows(self, first: int, last: int) -> Tensor:
        """The queries of blocks first .. last - 1, (blocks, block, 1)."""
        places = torch.arange(first * self.block, last * self.block, device=self.device)
        return places.unflatten(0, (-1, self.block)).unsqueeze(2)

    def start(self, first: int, last: int) -> Tensor:
        """Where their near keys begin, (blocks, 1, 1)."""
        return torch.arange(first, last, device=self.device)[:, None, None] * self.block - self.left

    def outside(self, first: int, last: int, places: Tensor) -> Tensor:
        """Whether keys are none of a block's near ones."""
        if not self.near:
            return torch.ones((), dtype=torch.bool, device=self.device)
        start = self.start(first, last)
        return (places < start) | (places >= start + self.width)

    def may_look(self, rows: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        """The rule and the real keys: rows (blocks, block, 1), places that broadcast to (blocks,
        block, keys) -> (batch or 1, 1, blocks, block, keys).
        """
        may = self.rule(rows, places) & valid
        if self.keys is None:
            return may[None, None]
        return (may & self.keys[:, places.clamp(0, self.length - 1)]).unsqueeze(1)


# A zone is some of the keys that a query may look at, ``size`` to each, laid out so that blocks of queries meet them
# as views. ``allowed``: (batch or 1, 1, blocks, block, keys) bool of some blocks. ``scores`` and ``mixed``: queries
# (batch, heads, blocks, block, size) to scores, probabilities to results. ``fused``: (heads, blocks, block, size)
# through the fused kernel to (heads, tokens, value size) and the logarithms of the sums, under a mask (groups, queries
# of a group, keys) of ``mask_shape``, of which ``in_blocks`` is a view by blocks.
Kernel = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]


class _Near:
    """The keys around a block, or those of its stretch."""

    def __init__(self, layout: _Layout, kv: Sequence[Tensor]) -> None:
        self.layout, self.size = layout, layout.width
        self.k, self.v = (x.unfold(2, layout.width, layout.block) for x in kv)  # (.., blocks, size, width)

    def allowed(self, first: int, last: int) -> Tensor:
        places = self.layout.start(first, last) + torch.arange(self.size, device=self.layout.device)
        valid = (places >= 0) & (places < self.layout.length)
        return self.layout.may_look(self.layout.rows(first, last), places, valid)

    def scores(self, q: Tensor, blocks: slice) -> Tensor:
        return q @ self.k[:, :, blocks]

    def mixed(self, share: Tensor, blocks: slice) -> Tensor:
        return share @ self.v[:, :, blocks].transpose(-1, -2)

    def mask_shape(self) -> tuple[int, int, int]:
        return self.layout.blocks, self.layout.block, self.size

    def in_blocks(self, mask: Tensor) -> Tensor:
        return mask

    def fused(self, q: Tensor, kernel: Kernel) -> list[Tensor]:
        k, v = (x.flatten(0, 1).transpose(-1, -2) for x in (self.k, self.v))
        return [x.flatten(1, 2) for x in kernel(q, k, v)]


class _Far:
    """Columns that everyone sees, behind keys that stand in front of the row."""

    def __init__(
        self, layout: _Layout, kv: Sequence[Tensor], columns: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> None:
        self.layout, self.columns, self.extra = layout, columns, 0 if before is None else before[0].shape[2]
        self.size = len(columns) + self.extra
        far = [x.index_select(2, columns) for x in kv]
        if before is not None:
            front = [b.to(x.dtype).expand(x.shape[0], -1, -1, -1) for b, x in zip(before, far, strict=True)]
            far = [torch.cat(pair, 2) for pair in zip(front, far, strict=True)]
        self.k, self.v = far

    def allowed(self, first: int, last: int) -> Tensor:
        places = self.columns[None, None, :]
        valid = self.layout.outside(first, last, places)
        return F.pad(self.layout.may_look(self.layout.rows(first, last), places, valid), (self.extra, 0), value=True)

    def scores(self, q: Tensor, blocks: slice) -> Tensor:
        return torch.einsum("bhgqd,bhkd->bhgqk", q, self.k)

    def mixed(self, share: Tensor, blocks: slice) -> Tensor:
        return torch.einsum("bhgqk,bhkd->bhgqd", share, self.v)

    def mask_shape(self) -> tuple[int, int, int]:
        return 1, self.layout.tokens, self.size

    def in_blocks(self, mask: Tensor) -> Tensor:
        return mask[0].unflatten(0, (self.layout.blocks, self.layout.block))

    def fused(self, q: Tensor, kernel: Kernel) -> list[Tensor]:
        k, v = (x.flatten(0, 1).unsqueeze(1) for x in (self.k, self.v))
        return [x.squeeze(1) for x in kernel(q.flatten(1, 2).unsqueeze(1), k, v)]


class _Residue:
    """The keys of a query's residue class that no other zone has; a block is one round of all
    residues, or several.
    """

    def __init__(self, layout: _Layout, kv: Sequence[Tensor], stride: int, columns: Tensor) -> None:
        self.layout, self.stride, self.columns, self.size = layout, stride, columns, layout.tokens // stride
        self.k, self.v = (
            x[:, :, layout.left : layout.left + layout.tokens].unflatten(2, (self.size, stride)).transpose(2, 3)
            for x in kv
        )  # (batch, heads, residue, step, size), views

    def allowed(self, first: int, last: int) -> Tensor:
        rows = self.layout.rows(first, last)
        places = rows % self.stride + torch.arange(self.size, device=self.layout.device) * self.stride
        valid = (places < self.layout.length) & self.layout.outside(first, last, places)
        if len(self.columns):
            valid = valid & ~torch.isin(places, self.columns)
        return self.layout.may_look(rows, places, valid)

    def rounds(self, x: Tensor) -> Tensor:
        """(.., blocks, block, n) -> (.., rounds, residue, n)."""
        return x.flatten(2, 3).unflatten(2, (-1, self.stride))

    def blocked(self, x: Tensor) -> Tensor:
        """And back."""
        return x.flatten(2, 3).unflatten(2, (-1, self.layout.block))

    def scores(self, q: Tensor, blocks: slice) -> Tensor:
        return self.blocked(torch.einsum("bhgrd,bhrkd->bhgrk", self.rounds(q), self.k))

    def mixed(self, share: Tensor, blocks: slice) -> Tensor:
        return self.blocked(torch.einsum("bhgrk,bhrkd->bhgrd", self.rounds(share), self.v))

    def mask_shape(self) -> tuple[int, int, int]:
        return self.stride, self.layout.tokens // self.stride, self.size

    def in_blocks(self, mask: Tensor) -> Tensor:
        return mask.transpose(0, 1)

    def fused(self, q: Tensor, kernel: Kernel) -> list[Tensor]:
        by_class = q.flatten(1, 2).unflatten(1, (-1, self.stride)).transpose(1, 2)  # (heads, residue, rounds, size)
        found = kernel(by_class, self.k.flatten(0, 1), self.v.flatten(0, 1))
        return [x.transpose(1, 2).flatten(1, 2) for x in found]


class _Run:
    """One run of `sparse_attention` over its zones."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, sparsity: Sparsity, args: AttentionArgs) -> None:
        layout = self.layout = _Layout(q, sparsity, args.mask)
        self.dropout, self.scale = args.dropout, 1 / math.sqrt(q.shape[3])
        self.q = _padded(q, 0, layout.short).unflatten(2, (layout.blocks, layout.block))  # (.., blocks, block, size)
        wide = tuple(_padded(x, layout.left, layout.right + layout.short) for x in (k, v))
        found = () if sparsity.columns is None else sparsity.columns(layout.length)
        columns = torch.tensor(list(found), device=q.device, dtype=torch.int64)
        self.zones: list[_Near | _Far | _Residue] = [_Near(layout, wide)] if layout.near else []
        if len(columns) or args.before is not None:
            self.zones.append(_Far(layout, (k, v), columns, args.before))
        if sparsity.stride:
            self.zones.append(_Residue(layout, wide, sparsity.stride, columns))

    def by_blocks(self) -> Tensor:
        """The formula written out for a few blocks at a time, with dropout and gradients, on any
        device.
        """
        batch, heads, blocks, block, _ = self.q.shape
        group = max(1, ROOM // max(1, batch * heads * block * sum(zone.size for zone in self.zones)))
        out = [self.some(first, min(first + group, blocks)) for first in range(0, blocks, group)]
        return (out[0] if len(out) == 1 else torch.cat(out, 2)).flatten(2, 3)[:, :, : self.layout.length]

    def some(self, first: int, last: int) -> Tensor:
        """Blocks first .. last - 1 of queries: (batch, heads, blocks, block, value size)."""
        blocks = slice(first, last)
        scores = [zone.scores(self.q[:, :, blocks], blocks) for zone in self.zones]
        probabilities = self.softmax(scores, [zone.allowed(first, last) for zone in self.zones])
        shares = probabilities.split([zone.size for zone in self.zones], -1)
        out = self.zones[0].mixed(shares[0], blocks)
        for zone, share in zip(self.zones[1:], shares[1:], strict=True):
            out = out + zone.mixed(share, blocks)
        return out

    def softmax(self, scores: Sequence[Tensor], allowed: Sequence[Tensor]) -> Tensor:
        """Over all zones together; a query that may see nothing yields zeros."""
        joined = (scores[0] if len(scores) == 1 else torch.cat(list(scores), -1)) * self.scale
        batch = max(mask.shape[0] for mask in allowed)
        may = torch.cat([mask.expand(batch, *mask.shape[1:]) for mask in allowed], -1)
        probabilities = joined.masked_fill(~may, torch.finfo(joined.dtype).min).softmax(-1)
        if not bool(may.any(-1).all()):
            probabilities = probabilities.masked_fill(~may, 0)
        return F.dropout(probabilities, self.dropout)

    def masks(self) -> list[tuple[Tensor, Tensor]]:
        """Zone by zone, for all blocks: what the fused kernel adds, 0 or -inf (batch and heads are
        one there), and the queries that see nothing. The rule is asked piece by piece, so that what
        it makes on the way stays small.
        """
        layout, found = self.layout, []
        count = max(1, PIECE // (layout.block * max(zone.size for zone in self.zones)))
        for zone in self.zones:
            mask = self.q.new_zeros(zone.mask_shape())
            view = zone.in_blocks(mask)
            each = view.shape[0] // layout.blocks
            for first in range(0, layout.blocks, count):
                last = min(first + count, layout.blocks)
                hidden = ~zone.allowed(first, last)[0, 0].reshape(-1, *view.shape[1:])
                view[first * each : last * each].masked_fill_(hidden, -torch.inf)
            found.append((mask, (mask == -torch.inf).all(-1)))
        return found

    def fused(self, masks: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """All blocks at once, one zone after the other: (1, heads, length, value size)."""
        q = self.q.flatten(0, 1)  # (heads, blocks, block, size)
        zones = [zone.fused(q, partial(self.kernel, mask=mask)) for zone, mask in zip(self.zones, masks, strict=True)]
        out, total = zones[0]
        for more, log_sum in zones[1:]:
            joined = torch.logaddexp(total, log_sum)
            safe = joined.masked_fill(joined == -torch.inf, 0)
            kept, added = ((x - safe).exp().to(out.dtype).unsqueeze(-1) for x in (total, log_sum))
            out, total = out.mul_(kept).addcmul_(more, added), joined
        return out[None, :, : self.layout.length]

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(heads, groups, queries, size) each -> the result and the logarithm of each query's sum,
        -inf where it may see nothing.
        """
        assert FLASH is not None
        add = mask[0].expand(q.shape[0], *mask[0].shape)
        out, log_sum = FLASH(q, k, v, 0.0, False, attn_mask=add, scale=self.scale)
        return out, log_sum.masked_fill(mask[1], -torch.inf)
