"""What every benchmark prints around its figures; the timing itself is the library's."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from zoo.inference.timing import interleaved as interleaved


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
