"""Rows in windows, and the rows of a window in batches of like length: how a long input is worked
through with little padding and in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")

ROWS = 2048
"""The most rows that are sorted together, where a batch is no larger: enough that those of a batch
differ by a token or two, and little to hold.
"""


def windows(rows: Iterable[Item], batch_size: int, most: int = ROWS) -> Iterator[list[Item]]:
    """The rows in their order, cut into lists of whole batches: first one batch, so that somebody who
    waits sees something soon, then each twice as long as the last, up to ``most`` rows.
    """
    remaining, count = iter(rows), 1
    while window := list(islice(remaining, count * batch_size)):
        yield window
        count = min(2 * count, max(1, most // batch_size))


def like_lengths(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """The numbers of all items in batches, the longest items first: what does not fit into memory
    shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))
