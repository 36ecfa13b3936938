"""Adaptive attention span (Sukhbaatar et al., 2019): each head learns how far it looks, and what
nobody looks at is not computed.

    m(d) = clamp((z · L - d) / R + 1, 0, 1)          d: how far back a key is, z in [0, 1] learned per head,
                                                     L the longest span, R the ramp
    p    = softmax(scores) · m / (Σ softmax(scores) · m + 1e-8)
    loss = coefficient · L · mean(z)

The sums are taken after the softmax. Beyond z · L + R every weight is zero; keys farther than the
greatest such reach among the heads are cut before the softmax, which changes nothing but the 1e-8.
`SpanAttention` is the paper's layer: a causal model over a cache, in which a token sees the L
positions before it, not itself. `SpanCore` is the same mask around a token of an encoder, by
distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError
from zoo.layers.attention import AttentionArgs, DenseAttention, in_front
from zoo.layers.masks import Mask, window

STEP = 64  # the reference trims in steps of so many keys


class AttentionSpan(nn.Module):
    """The spans z of the heads and what follows from them. ``limit``: L; ``ramp``: R;
    ``coefficient``: of the loss.
    """

    def __init__(self, heads: int, limit: int, ramp: int, coefficient: float = 0.0, start: float = 0.0) -> None:
        super().__init__()
        self.fraction = nn.Parameter(torch.full((heads,), start))
        self.limit, self.ramp, self.coefficient, self.start = limit, ramp, coefficient, start

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.fraction.fill_(self.start)

    def weight(self, distance: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """m(d): distances (...) >= 0 -> (heads, ...), of all heads or of these."""
        z = self.fraction if heads is None else self.fraction[list(heads)]  # eq: ramp
        z = z.reshape(-1, *[1] * distance.dim())
        return ((z * self.limit - distance.to(z.dtype)) / self.ramp + 1).clamp(0, 1)  # eq: ramp

    def apply_to(self, probabilities: Tensor, *, normalize: bool = True) -> Tensor:
        """(..., heads, queries, keys), the keys from the farthest to the nearest, the nearest at
        distance 0 -> the same, masked.
        """
        keys = probabilities.shape[-1]
        distance = torch.arange(keys - 1, -1, -1, device=probabilities.device)
        masked = probabilities * self.weight(distance).unsqueeze(1)
        return normalized(masked) if normalize else masked

    def loss(self) -> Tensor:
        """``coefficient · L · mean(z)``, to be added to the model's own."""
        return self.coefficient * self.limit * self.fraction.mean()  # eq: loss

    @torch.no_grad()
    def clamp(self) -> None:
        """Put z back into [0, 1]; the paper does so after every step of the optimizer."""
        self.fraction.clamp_(0, 1)

    def _reach(self, z: float) -> int:
        return min(self.limit, max(0, math.ceil(z * self.limit) + self.ramp))

    @property
    def reaches(self) -> list[int]:
        """How far each head reaches, ramp included."""
        return [self._reach(z) for z in self.fraction.detach().tolist()]

    @property
    def max_span(self) -> int:
        """How far the farthest looking head reaches, ramp included."""
        return self._reach(float(self.fraction.detach().max()))

    @property
    def average_span(self) -> int:
        """How far the heads reach on the average, ramp included."""
        return self._reach(float(self.fraction.detach().mean()))

    @property
    def trim(self) -> int:
        """How many of the farthest of L keys nobody looks at, in steps of 64."""
        return min(self.limit - 1, self.limit - self.max_span) // STEP * STEP

    def cache_size(self, adaptive: bool = True) -> int:
        """How many positions a cache must hold: those that are looked at and one step more, or all
        L.
        """
        return min(self.limit, self.limit - self.trim + STEP) if adaptive else self.limit

    def trimmed(self, *, keys: int, queries: int) -> tuple[int, int, int]:
        """For a cache and its block of ``keys`` rows: (rows of zeros in front, the first row kept,
        columns of key positions cut).
        """
        surplus = keys - queries - (self.limit - self.trim)
        return max(0, -surplus), max(0, surplus), self.trim


def normalized(masked: Tensor) -> Tensor:  # eq: masked
    """Divided by its sums over keys, 1e-8 added."""
    return masked / (masked.sum(-1, keepdim=True) + 1e-8)


class SpanAttention(nn.Module):
    """The paper's layer: causal multi-head attention over a cache, with learned key positions,
    spans and persistent memory where asked for.

    scores of query i over the L positions before it: ``(q_i · k_{i-d-1} + q_i · r_d) / sqrt(head
    size)``; no biases in the projections. ``memory``: so many learned keys and values that every
    query sees beside them, in place of a feed-forward; keys are scaled by sqrt(head size), values
    by sqrt(memory). The softmax runs over both, the spans over positions alone.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, span: int | AttentionSpan, *, memory: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.query, self.key, self.value, self.output = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )
        self.span = span if isinstance(span, AttentionSpan) else None
        self.limit = span.limit if isinstance(span, AttentionSpan) else span
        self.memory_key = nn.Parameter(torch.empty(num_heads, self.head_size, memory)) if memory else None
        self.memory_value = nn.Parameter(torch.empty(num_heads, memory, self.head_size)) if memory else None
        self.dropout = dropout

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        if self.memory_key is not None and self.memory_value is not None:
            self.memory_key.normal_(0, self.head_size**-0.5, generator=generator)
            self.memory_value.normal_(0, self.memory_value.shape[1] ** -0.5, generator=generator)

    def forward(self, x: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        """x (batch, block, hidden); cache (batch, cached, hidden), what came before; positions
        (head size, L), from the farthest on.
        """
        block = x.shape[1]
        rows = torch.cat([cache, x], 1)  # (batch, cached + block, hidden)
        if self.span is not None:
            front, first, cut = self.span.trimmed(keys=rows.shape[1], queries=block)
            rows, positions = F.pad(rows, (0, 0, front, 0))[:, first:], positions[:, cut:]
        length = positions.shape[1]  # positions that a query looks at
        if rows.shape[1] != length + block:
            raise InputError(f"the cache must hold {length} positions, got {rows.shape[1] - block}")
        q, k, v = (
            rearrange(y, "batch length (heads size) -> batch heads length size", heads=self.num_heads)
            for y in (self.query(x), self.key(rows), self.value(rows))
        )
        # (batch, heads, block, head size, length): row i from i to i + length
        k, v = (y.unfold(2, length, 1)[:, :, :block] for y in (k, v))
        scores = torch.einsum("bhqd,bhqdk->bhqk", q, k) + torch.einsum("bhqd,dk->bhqk", q, positions)
        if self.memory_key is not None:
            scale = math.sqrt(self.head_size)
            beside = torch.einsum("bhqd,hdn->bhqn", q, self.memory_key * scale)
            joined = (torch.cat([beside, scores], -1) / scale).softmax(-1)
            own, probabilities = joined.split([beside.shape[-1], length], -1)
        else:
            own, probabilities = None, (scores / math.sqrt(self.head_size)).softmax(-1)
        if self.span is not None:
            probabilities = self.span.apply_to(probabilities, normalize=own is None)
            if own is not None:  # both parts share one sum
                total = own.sum(-1, keepdim=True) + probabilities.sum(-1, keepdim=True) + 1e-8
                own, probabilities = own / total, probabilities / total
        if own is not None:
            own = F.dropout(own, self.dropout, self.training)
        out = torch.einsum("bhqk,bhqdk->bhqd", F.dropout(probabilities, self.dropout, self.training), v)
        if own is not None and self.memory_value is not None:
            out = out + torch.einsum("bhqn,hnd->bhqd", own, self.memory_value * math.sqrt(self.memory_value.shape[1]))
        return self.output(rearrange(out, "batch heads length size -> batch length (heads size)"))


class SpanBlock(nn.Module):
    """``norm(h + attention)``, then ``norm(h + W_2 relu(W_1 h))`` unless the attention's memory
    stands for it.
    """

    def __init__(
        self, attention: SpanAttention, feed_forward: nn.Module | None, hidden_size: int, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm = nn.LayerNorm(hidden_size, norm_eps)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, norm_eps) if feed_forward is not None else None

    def forward(self, x: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        x = self.attention_norm(x + self.attention(x, cache, positions))
        if self.feed_forward is None or self.feed_forward_norm is None:
            return x
        return self.feed_forward_norm(x + self.feed_forward(x))


class SpanLanguageModel(nn.Module):
    """The paper's character model: an embedding, blocks over caches of their own inputs, a linear
    layer to the next character.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        limit: int,
        blocks: list[SpanBlock],
        *,
        dropout: float = 0.0,
        adaptive_cache: bool = True,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, hidden_size)
        self.blocks = nn.ModuleList(blocks)
        self.key_positions = nn.Parameter(torch.empty(hidden_size // blocks[0].attention.num_heads, limit))
        self.output = nn.Linear(hidden_size, vocab_size)
        self.limit, self.dropout, self.adaptive_cache = limit, dropout, adaptive_cache

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        self.key_positions.normal_(0, std, generator=generator)

    def forward(self, input_ids: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """input_ids (batch, block), each block's cache (batch, cached, hidden) -> log-probabilities
        (batch, block, vocabulary), new caches.

        A cache is as long as it is needed next time, zeros at the start.
        """
        x = F.dropout(self.token(input_ids), self.dropout, self.training)
        kept = []
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, SpanBlock)
            span = block.attention.span
            size = self.limit if span is None else span.cache_size(self.adaptive_cache)
            kept.append(torch.cat([cache, x], 1)[:, -size:].detach())
            x = block(x, cache, self.key_positions)
        return self.output(F.dropout(x, self.dropout, self.training)).log_softmax(-1), kept

    def span_loss(self) -> Tensor:
        """The sum of the blocks' span losses."""
        return torch.stack([part.loss() for part in self.modules() if isinstance(part, AttentionSpan)]).sum()


class SpanCore(DenseAttention):
    """The core of `Attention` with learned spans: weights m(|i - j|) after the softmax, prefixes in
    front at weight 1.

    ``positions``: the size of the heads, where they are to have a learned score for each distance
    (heads share it, sides differ). Heads of like reach run together, and their blocks of queries
    meet only the keys within it, so each short span takes less time, also beside a long one; under
    torch.compile and for irregular masks all keys are met.
    """

    def __init__(self, span: AttentionSpan, positions: int | None = None) -> None:
        super().__init__()
        self.span = span
        self.key_positions = None if positions is None else nn.Parameter(torch.empty(2 * span.limit + 1, positions))

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        if self.key_positions is not None:
            self.key_positions.normal_(0, std, generator=generator)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        mask, bias, before, dropout = args.mask, args.bias, args.before, args.dropout
        length = q.shape[2]
        regular = mask.dense is None and mask.query_positions is None and bias is None and before is None
        if (
            regular
            and k.shape[2] == length
            and not args.wants_probabilities
            and q.device.type != "meta"
            and not torch.compiler.is_compiling()
        ):
            groups = self.groups(length)
            if len(groups) > 1:
                out = q.new_empty(q.shape[0], q.shape[1], length, v.shape[3])
                for reach, heads in groups.items():
                    out[:, heads] = self.near(q[:, heads], k[:, heads], v[:, heads], args, reach, heads)
                return out
            ((reach, heads),) = groups.items()
            if reach < length:
                return self.near(q, k, v, args, reach, heads)
        rows, columns = self.places(mask, length, k.shape[2], q.device)
        distance = rows[:, :, None] - columns[:, None, :]  # (batch or 1, query, key)
        allowed = mask.allowed(length, k.shape[2], q.device)
        add = None if bias is None else mask.bias_at(bias, length, k.shape[2]).to(q.dtype)
        if self.key_positions is not None:
            more = self.relative(q, distance)
            add = more if add is None else add + more
        weight = self.weight(distance)  # (batch or 1, heads, query, key)
        if before is not None:
            k, v, allowed, add = in_front(before, k, v, allowed, add)
            weight = F.pad(weight, (before[0].shape[2], 0), value=1)
        out, probabilities = self.attended(q, k, v, allowed, add, weight, dropout)
        args.keep(probabilities)
        return out

    def groups(self, length: int) -> dict[int, list[int]]:
        """Heads by how far they reach, in steps of doubling from 32 on; ``length`` where cutting
        would not pay.
        """
        by_size: dict[int, list[tuple[int, int]]] = {}
        for head, reach in enumerate(self.span.reaches):
            size = 1 << max(5, (max(reach, 1) - 1).bit_length())
            by_size.setdefault(size if 3 * reach < length else length, []).append((max(reach, 1), head))
        return {
            min(size, max(reach for reach, _ in members)) if size < length else length: [head for _, head in members]
            for size, members in by_size.items()
        }

    def weight(self, distance: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """m(|i - j|), none beyond the limit: (batch or 1, query, key) -> (batch or 1, heads, query,
        key).
        """
        far = distance.abs()
        return self.span.weight(far, heads).masked_fill(far > self.span.limit, 0).transpose(0, 1)

    def places(self, mask: Mask, query: int, key: int, device: torch.device) -> tuple[Tensor, Tensor]:
        rows = mask.query_positions if mask.query_positions is not None else torch.arange(query, device=device)[None]
        columns = mask.key_positions if mask.key_positions is not None else torch.arange(key, device=device)[None]
        return rows, columns

    def relative(self, q: Tensor, distance: Tensor) -> Tensor:
        """The learned score of each distance, (batch, heads, query, key)."""
        assert self.key_positions is not None
        limit = self.span.limit
        scores = torch.einsum("bhqd,nd->bhqn", q, self.key_positions) / math.sqrt(q.shape[-1])
        index = (distance + limit).clamp(0, 2 * limit)[:, None].expand(q.shape[0], q.shape[1], -1, -1)
        return scores.gather(3, index)

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        allowed: Tensor | None,
        add: Tensor | None,
        weight: Tensor,
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores if add is None else scores + add
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        probabilities = scores.softmax(-1)
        if allowed is not None:
            probabilities = probabilities.masked_fill(~allowed, 0)
        probabilities = normalized(probabilities * weight)  # eq: masked
        return F.dropout(probabilities, dropout) @ v, probabilities

    def near(
        self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs, reach: int, heads: Sequence[int] | None = None
    ) -> Tensor:
        """Queries of some ``heads`` in blocks over the keys at most ``reach`` away; the softmax
        leaves out what has no weight.
        """
        length, mask, out = q.shape[2], args.mask, []
        joined = mask & window(reach)
        assert joined.pattern is not None
        ahead = 0 if mask.pattern is not None and mask.pattern.causal else reach
        size = max(64, reach)
        for start in range(0, length, size):
            stop = min(start + size, length)
            low, high = max(0, start - reach), min(length, stop + ahead)
            rows, columns = torch.arange(start, stop, device=q.device), torch.arange(low, high, device=q.device)
            distance = (rows[:, None] - columns[None, :])[None]
            allowed = joined.pattern.rule(rows[None, None, :, None], columns[None, None, None, :])
            if mask.keys is not None:
                allowed = allowed & mask.keys[:, None, None, low:high]
            block = q[:, :, start:stop]
            add = None if self.key_positions is None else self.relative(block, distance)
            weight = self.weight(distance, heads)
            out.append(
                self.attended(block, k[:, :, low:high], v[:, :, low:high], allowed, add, weight, args.dropout)[0]
            )
        return torch.cat(out, 2)
