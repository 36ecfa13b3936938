"""Rows in windows, and the rows of a window in batches of like length: how a long input is worked
through with little padding and in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")

WINDOW = 64
"""The most batches that are sorted together: enough that the rows of a batch differ by a token or two."""


def windows(rows: Iterable[Item], batch_size: int, most: int = WINDOW) -> Iterator[list[Item]]:
    """The rows in their order, cut into lists: first one batch, so that somebody who waits sees
    something soon, then each twice as long as the last, up to ``most`` batches.
    """
    remaining, count = iter(rows), 1
    while window := list(islice(remaining, count * batch_size)):
        yield window
        count = min(2 * count, most)


def like_lengths(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The numbers of all items in batches, the longest items first: what does not fit into memory
    shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
