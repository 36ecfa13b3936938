"""The loop that writes: scores of the next token, rules on them, a choice, and on with what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.inference.search.choosing import FoundText, Limits, Stops, chooser_of, texts
from zoo.inference.search.rules import SoFar, rules_of
from zoo.inference.search.settings import Search
from zoo.inference.search.writers import Writer

Streamer = Callable[[int, int], None]  # the number of a source and its next token


@dataclass(frozen=True)
class Outside:
    """What a search is handed besides its settings: random numbers, who is told of each token and of each
    length that is reached (and of the longest), and which texts hold a stop string.
    """

    generator: torch.Generator | None = None
    streamer: Streamer | None = None
    progress: Callable[[int, int], None] | None = None
    stops: Stops | None = None


def write(writer: Writer, search: Search, ends: tuple[int, ...], longest: int, outside: Outside) -> list[FoundText]:
    """The texts of all sources, ``num_return_sequences`` for each."""
    beginning = writer.beginning
    limits = Limits(beginning.shape[1], longest, ends, outside.stops)
    rules = rules_of(search, ends, beginning.shape[1], longest)
    chooser = chooser_of(beginning, search, limits, outside.generator, limited=bool(rules))
    logits = wide(writer.start()).repeat_interleave(chooser.each, 0)  # (rows, vocabulary)
    writer.repeat(chooser.each)
    while True:
        step = SoFar(chooser.ids, chooser.rows, of_rows(writer.source_ids, chooser.rows))
        scores = logits if search.num_beams == 1 else logits.log_softmax(1)
        for rule in rules:
            scores = rule(step, scores)
        sources = chooser.rows
        move = chooser.choose(scores, logits)
        if outside.streamer is not None:
            for source, token in zip(sources.tolist(), move.chosen.tolist(), strict=True):
                outside.streamer(source, token)
        if outside.progress is not None:
            outside.progress(step.ids.shape[1] + 1, longest)
        if not len(chooser.sources):
            return texts(chooser, search.num_return_sequences)
        if move.parents is not None:
            writer.follow(move.parents, move.since)
        if move.open is not None:
            writer.keep(move.open, chooser.each)
        logits = wide(writer.step(chooser.ids[:, -1]))


def wide(logits: Tensor) -> Tensor:
    """Scores in float32 at least: sums of logarithms need it."""
    return logits if logits.dtype == torch.float64 else logits.float()


def of_rows(ids: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if ids is None else ids[rows]
