"""Fair timing on a noisy machine: sides take turns, and the median of several rounds counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(sides: Mapping[str, Callable[[], object]], rounds: int = 7, warmup: int = 2) -> dict[str, float]:
    """The median time of each side in milliseconds; every round runs each side once, in turn."""
    for side in sides.values():
        for _ in range(warmup):
            side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}
