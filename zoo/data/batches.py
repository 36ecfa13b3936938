"""Rows in windows, and the rows of a window in batches of like length: how a long input is worked
through with little padding and in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

Item = TypeVar("Item")

ROWS = 2048
"""The most rows that are sorted together, where a batch is no larger: enough that those of a batch
differ by a token or two, and little to hold.
"""


@runtime_checkable
class EpochBatches(Protocol):
    """Batches that can be had from any place of any epoch on, as a run that was stopped needs them."""

    def __len__(self) -> int:
        """How many batches an epoch has."""
        ...

    def epoch(self, number: int, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[Mapping[str, Any]]:
        """The batches of an epoch from batch ``start`` on; of each the part of this process, (its number,
        how many there are).
        """
        ...


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
