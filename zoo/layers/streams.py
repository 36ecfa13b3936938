"""Several streams under one encoder: a schedule of steps, and the blocks in which streams look at each other.

A schedule is data: an ordered list of steps, each a block with the streams that it reads and those that it writes. It can be printed
and drawn before a model exists. A block of one stream is any encoder block. A block of several is called with the tensors of the streams
that it reads, then with their paddings, then with the trace, and gives the streams that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers.attention import Attention
from zoo.layers.blocks import EncoderBlock
from zoo.layers.masks import Mask, Padding, between, together
from zoo.layers.residual import Residual, post_norm
from zoo.layers.trace import Trace


@dataclass(frozen=True)
class Step:
    """Run block ``index`` of ``part`` on the streams it ``reads``; what it gives becomes the streams it ``writes``."""

    part: str
    index: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @classmethod
    def of(cls, part: str, index: int, *streams: str) -> Step:
        """A step that writes what it reads; a part named like a stream is a block of that stream alone."""
        both = streams or (part,)
        return cls(part, index, both, both)

    def __str__(self) -> str:
        return f"{self.part} {self.index}"


def interleaved(text_layers: int, image_layers: int, text_at: Sequence[int], image_at: Sequence[int]) -> tuple[Step, ...]:
    """ViLBERT's schedule: connection k runs once ``text_at[k]`` text blocks and ``image_at[k]`` image blocks have run; then the rest."""
    steps: list[Step] = []
    text = image = 0
    for k, (text_stop, image_stop) in enumerate(zip(text_at, image_at, strict=True)):
        steps += [Step.of("text", i) for i in range(text, text_stop)] + [Step.of("image", i) for i in range(image, image_stop)]
        steps.append(Step.of("both", k, "text", "image"))
        text, image = text_stop, image_stop
    steps += [Step.of("image", i) for i in range(image, image_layers)] + [Step.of("text", i) for i in range(text, text_layers)]
    return tuple(steps)


def draw(steps: Sequence[Step]) -> str:
    """A picture of a schedule: a column for each stream, time downwards, one row for each run of blocks."""
    streams = tuple(dict.fromkeys(name for step in steps for name in step.writes))
    rows: list[tuple[list[str], tuple[str, ...]]] = []
    run: list[Step] = []

    def close() -> None:
        if not run:
            return
        first, last = run[0], run[-1]
        span = f"{first.part} {first.index}" if first is last else f"{first.part} {first.index}..{last.index}"
        rows.append(([f"[{span}]" if name in first.writes else "|" for name in streams], first.reads))
        run.clear()

    for step in steps:
        same = run and (step.part, step.reads, step.writes) == (run[-1].part, run[-1].reads, run[-1].writes)
        if not (same and step.index == run[-1].index + 1 and len(step.reads) == 1):
            close()
        run.append(step)
    close()
    width = max([len(cell) for cells, _ in rows for cell in cells] + [len(name) for name in streams])
    lines = ["     ".join(name.center(width) for name in streams)]
    for cells, reads in rows:
        line = cells[0].center(width)
        for left, right, cell in zip(streams, streams[1:], cells[1:], strict=False):
            line += (" <=> " if left in reads and right in reads else "     ") + cell.center(width)
        lines.append(line)
    return "\n".join(line.rstrip() for line in lines)


class Schedule(nn.Module):
    """Blocks in named parts, and the steps in which they run."""

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]], steps: Sequence[Step]) -> None:
        super().__init__()
        for name, blocks in parts.items():
            self.add_module(name, nn.ModuleList(blocks))
        self.steps = tuple(steps)
        used = {(step.part, step.index) for step in steps}
        there = {(name, index) for name, blocks in parts.items() for index in range(len(blocks))}
        if used != there:
            lacking, idle = sorted(used - there), sorted(there - used)
            raise ConfigError(
                f"a schedule must run the blocks it has: it asks for {lacking or 'none'} too many and never runs {idle or 'none'}"
            )

    def block(self, step: Step) -> nn.Module:
        """The block that a step runs."""
        return self.get_submodule(f"{step.part}.{step.index}")

    def runs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """For each step the path of its block from here and the streams it writes."""
        for step in self.steps:
            yield f"{step.part}.{step.index}", step.writes

    def forward(
        self,
        states: Mapping[str, Tensor],
        paddings: Mapping[str, Padding],
        traces: Mapping[str, Trace],
        steps: slice = slice(None),
    ) -> dict[str, Tensor]:
        """Each stream (batch, length, its size) or packed rows -> the same. ``traces``: one for each stream, and "across" for maps between
        streams. ``steps``: the part of the schedule to run.
        """
        states = dict(states)
        for step in self.steps[steps]:
            block = self.block(step)
            if len(step.reads) == 1:
                (name,) = step.reads
                states[name] = block(states[name], paddings[name].mask, None, traces[name])
            else:
                trace = traces["across"] if len(step.writes) > 1 else traces[step.writes[0]]
                made = block(*(states[name] for name in step.reads), *(paddings[name] for name in step.reads), trace)
                states.update(zip(step.writes, made if len(step.writes) > 1 else (made,), strict=True))
            for name in step.writes:
                traces[name].hidden(states[name])
        return states


class Journey:
    """Several streams on their way through a schedule: padded tensors between runs, packed inside, and what was kept on the way.

    ``x``: each stream (batch, length, size). ``of``: its padding. Lives for one call.
    """

    def __init__(self, x: Mapping[str, Tensor], of: Mapping[str, Padding], *, hidden_states: bool, attentions: bool) -> None:
        self.x, self.of = dict(x), dict(of)
        self.wanted = (hidden_states, attentions)
        self.states: dict[str, list[Tensor]] = {name: [] for name in x}
        self.maps: dict[str, list[Tensor]] = {name: [] for name in (*x, "across")}

    @property
    def apart(self) -> bool:
        """Whether the streams have batches of different sizes, so that they can't look at each other yet."""
        first, *others = self.x.values()
        return any(other.shape[0] != first.shape[0] for other in others)

    def go(self, schedule: Schedule, *, all_pairs: bool = False) -> None:
        """The whole schedule, of which "text" and "image" run apart until they first meet where their batches differ.

        There one text is repeated for each picture; ``all_pairs``: every text meets every picture, rows with the pictures running fast.
        """
        if not (all_pairs or self.apart):
            self.run(schedule)
            return
        meet = next((i for i, step in enumerate(schedule.steps) if len(step.writes) > 1), len(schedule.steps))
        self.run(schedule, slice(meet))
        texts, pictures = self.x["text"].shape[0], self.x["image"].shape[0]
        which: dict[str, Callable[[Tensor], Tensor]] = {"text": lambda x: x.repeat_interleave(pictures, 0)}
        if all_pairs:
            which["image"] = lambda x: x.repeat(texts, *[1] * (x.dim() - 1))
        self.spread(which)
        self.run(schedule, slice(meet, None))

    def run(self, schedule: Schedule, steps: slice = slice(None)) -> None:
        """Some steps of the schedule."""
        if not self.apart:
            self.of = dict(zip(self.of, together(*self.of.values()), strict=True))
        traces = {name: Trace(*self.wanted) for name in (*self.x, "across")}
        packed = {name: self.of[name].pack(value) for name, value in self.x.items()}
        for name, value in packed.items():
            if not self.states[name]:
                traces[name].hidden(value)  # what enters the first block
        self.x = {name: self.of[name].unpack(value) for name, value in schedule(packed, self.of, traces, steps).items()}
        for name in self.x:
            self.states[name] += traces[name].states(self.of[name].unpack) or ()
            self.maps[name] += traces[name].maps(self.of[name].real) or ()
        self.maps["across"] += traces["across"].maps() or ()

    def spread(self, which: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Give streams other rows: each one's function takes (batch, ...) to (new batch, ...)."""
        for name, change in which.items():
            real, packed = self.of[name].real, self.of[name].packed
            lengths = None
            if packed is not None and packed.positions is None:  # known, so that nobody is asked
                lengths = change(torch.tensor([n for _, n in sorted(zip(packed.order, packed.lengths, strict=True))])).tolist()
            self.x[name] = change(self.x[name])
            grid = (self.x[name].shape[0], self.x[name].shape[1])
            real = None if real is None else change(real)
            self.of[name] = Padding.of(real, grid, lengths=lengths, pack=packed is not None or real is None)

    def first(self, name: str) -> Tensor:
        """The first real state of each row of a stream, (batch, size)."""
        return self.of[name].first(self.x[name])

    def kept(self, name: str) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """A stream's hidden states and its attention maps, where they were asked for."""
        return tuple(self.states[name]) if self.wanted[0] else None, tuple(self.maps[name]) if self.wanted[1] else None

    def across(self, *directions: tuple[str, str]) -> tuple[tuple[Tensor, ...], ...] | None:
        """The maps between streams, those of each block together: its ``directions`` are (who looks, at whom); padded queries are zeros."""
        if not self.wanted[1]:
            return None
        maps = self.maps["across"]
        looking = [self.of[name].real for name, _ in directions] * (len(maps) // len(directions))
        kept = [m if real is None else m.masked_fill(~real[:, None, :, None], 0) for m, real in zip(maps, looking, strict=True)]
        return tuple(tuple(kept[i : i + len(directions)]) for i in range(0, len(kept), len(directions)))


class Side(nn.Module):
    """One stream's half of a co-attention block: attention to the other stream, then feed-forward, each in its residual."""

    roles = {**EncoderBlock.roles, "attention": "cross-attention", "attention_norm": "cross-attention-norm"}  # noqa: RUF012

    def __init__(
        self,
        attention: nn.Module,
        feed_forward: nn.Module,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention, self.attention_norm = attention, attention_norm
        self.feed_forward, self.feed_forward_norm = feed_forward, feed_forward_norm
        self.dropout = nn.Dropout(dropout)

    def attend(self, x: Tensor, other: Tensor, mask: Mask, residual: Residual, trace: Trace | None) -> Tensor:
        return residual(x, lambda y: self.attention(y, other, other, mask, None, trace), self.attention_norm, self.dropout)

    def think(self, x: Tensor, residual: Residual) -> Tensor:
        return residual(x, self.feed_forward, self.feed_forward_norm, self.dropout)


class CoAttentionBlock(nn.Module):
    """ViLBERT's connection layer: each stream attends to the other, then its own feed-forward. Widths may differ.

    Both look at the streams as they came in; letting the second see the first's result is another model.
    """

    def __init__(self, text: Side, image: Side, residual: Residual = post_norm) -> None:
        super().__init__()
        self.text, self.image, self.residual = text, image, residual

    def forward(
        self, text: Tensor, image: Tensor, text_padding: Padding, image_padding: Padding, trace: Trace | None = None
    ) -> tuple[Tensor, Tensor]:
        """text (batch, words, text size), image (batch, regions, image size), or both packed -> the same."""
        new_text = self.text.attend(text, image, between(text_padding, image_padding), self.residual, trace)
        new_image = self.image.attend(image, text, between(image_padding, text_padding), self.residual, trace)
        return self.text.think(new_text, self.residual), self.image.think(new_image, self.residual)


class GatedAttention(Attention):
    """Self-attention whose queries and keys another stream scales: ``q · (1 + sigmoid(W s + b))`` with s a vector for the whole row."""

    def __init__(self, hidden_size: int, num_heads: int, gate_size: int, *, dropout: float = 0.0) -> None:
        super().__init__(hidden_size, num_heads, dropout=dropout)
        self.query_gate = nn.Linear(gate_size, hidden_size)
        self.key_gate = nn.Linear(gate_size, hidden_size)

    def gated(self, x: Tensor, summary: Tensor, padding: Padding, trace: Trace | None) -> Tensor:
        """x (batch, length, hidden) or packed rows, summary (batch, gate size) -> like x."""

        def along_rows(gate: Tensor) -> Tensor:
            each = (1 + torch.sigmoid(gate)).unsqueeze(1)  # (batch, 1, hidden)
            return each if padding.packed is None else padding.pack(each.expand(padding.grid[0], padding.grid[1], -1))

        q = (self.query(x) * along_rows(self.query_gate(summary))).unflatten(-1, (-1, self.head_size))
        k = (self.key(x) * along_rows(self.key_gate(summary))).unflatten(-1, (-1, self.head_size))
        v = self.value(x).unflatten(-1, (-1, self.head_size))

        def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
            return self.attend(q, k, v, mask, None, trace)

        return self.output(padding.mask.attend(kernel, q, k, v).flatten(-2))


class GatedBlock(EncoderBlock):
    """An encoder block of one stream whose attention the mean of another stream scales (ViLBERT's dynamic attention)."""

    attention: GatedAttention

    def forward(  # type: ignore[override]
        self, x: Tensor, other: Tensor, padding: Padding, other_padding: Padding, trace: Trace | None = None
    ) -> Tensor:
        """x (batch, length, hidden), other (batch, other length, gate size), or both packed -> like x."""
        mean = real_mean(other, other_padding)
        x = self.residual(x, lambda y: self.attention.gated(y, mean, padding, trace), self.attention_norm, self.dropout)
        return self.residual(x, self.feed_forward, self.feed_forward_norm, self.dropout)


def real_mean(x: Tensor, padding: Padding) -> Tensor:
    """The mean of a stream's real tokens, (batch, length, size) or packed rows -> (batch, size)."""
    x = padding.unpack(x)  # zeros at padding
    if padding.real is None:
        return x.mean(1)
    return x.sum(1) / padding.real.sum(1, keepdim=True).clamp(min=1)
