"""Several streams under one encoder: a schedule of steps, and the blocks in which streams look at
each other.

A schedule is data: an ordered list of steps, each a block with the streams that it reads and those
that it writes. It can be printed and drawn before a model exists. A block of one stream is any
encoder block. A block of several is called with the tensors of the streams that it reads, then with
their runs, and gives the streams that it writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers.run import Run


@dataclass(frozen=True)
class Step:
    """Run block ``index`` of ``part`` on the streams it ``reads``; what it gives becomes the
    streams it ``writes``.
    """

    part: str
    index: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @classmethod
    def of(cls, part: str, index: int, *streams: str) -> Step:
        """A step that writes what it reads; a part named like a stream is a block of that stream
        alone.
        """
        both = streams or (part,)
        return cls(part, index, both, both)

    def __str__(self) -> str:
        return f"{self.part} {self.index}"


def interleaved(streams: Mapping[str, tuple[int, Sequence[int]]], connection: str = "both") -> tuple[Step, ...]:
    """ViLBERT's schedule for any number of streams: each has its number of layers and its stops.

    Connection k reads and writes all streams once each has run as many blocks as its k-th stop says;
    the blocks that remain run behind the last connection.
    """
    names = tuple(streams)
    steps: list[Step] = []
    done = dict.fromkeys(names, 0)
    for k, stops in enumerate(zip(*(stops for _, stops in streams.values()), strict=True)):  # eq: interleaved
        for name, stop in zip(names, stops, strict=True):
            steps += [Step.of(name, i) for i in range(done[name], stop)]
            done[name] = stop
        steps.append(Step.of(connection, k, *names))
    for name in reversed(names):  # eq: interleaved
        steps += [Step.of(name, i) for i in range(done[name], streams[name][0])]
    return tuple(steps)


def draw(steps: Sequence[Step]) -> str:
    """A picture of a schedule: a column for each stream, time downwards, one row for each run of
    blocks.
    """
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
                f"a schedule must run the blocks it has: it asks for {lacking or 'none'} too many and never runs "
                f"{idle or 'none'}"
            )

    def block(self, step: Step) -> nn.Module:
        """The block that a step runs."""
        return self.get_submodule(f"{step.part}.{step.index}")

    def runs(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """For each step the path of its block from here and the streams it writes."""
        for step in self.steps:
            yield f"{step.part}.{step.index}", step.writes

    def forward(
        self, states: Mapping[str, Float[Tensor, "... _size"]], runs: Mapping[str, Run], steps: slice = slice(None)
    ) -> dict[str, Float[Tensor, "... _size"]]:
        """``steps``: the part of the schedule to run."""
        states = dict(states)
        for step in self.steps[steps]:
            block, reads = self.block(step), step.reads
            if len(reads) == 1:
                run = runs[reads[0]]
                made = block(states[reads[0]], run.mask, None, run.trace)
            else:
                made = block(*(states[name] for name in reads), *(runs[name] for name in reads))
            states.update(zip(step.writes, made if len(step.writes) > 1 else (made,), strict=True))
            for name in step.writes:
                runs[name].trace.hidden(states[name])
        return states
