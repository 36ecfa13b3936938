"""Fair timing on a noisy machine: sides interleaved, medians of several rounds, one table."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


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


def machine() -> str:
    """One line that says where the figures come from."""
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] != "unknown" else platform.machine()


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table that can go into a Markdown page as it is."""
    print(f"\n{title}\n\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")
