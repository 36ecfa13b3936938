"""One attention layer's core at 1k to 16k tokens: time, and the memory it needs besides its inputs;
dense against sparse.

    python -m benchmarks.sparse [--lengths 1024 2048 ...] [--json FILE] [--svg FILE]
    python -m benchmarks.sparse --again FILE --svg FILE                                 draws what was measured before

Each figure is taken in a process of its own with one thread: the least processor time of three
forward passes (wall time stands in the JSON; it says little on a shared machine), and how far the
peak of the resident memory rises over what the inputs take. The slope is that of log time over log
length between 4k and the longest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEADS, SIZE = 12, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384)
FORMS = ("dense", "dense, masked", "strided", "strided heads", "fixed", "window", "window + global")


def forms(length: int) -> dict[str, Callable[[], object]]:
    """What is measured: each a forward pass over random queries, keys and values (1, heads, length,
    size).
    """
    import torch
    from torch.nn import functional as F

    from zoo.layers import Mask
    from zoo.techniques.sparse.layers import SparseAttention
    from zoo.techniques.sparse.patterns import fixed, local, strided, windowed

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, SIZE, generator=generator) for _ in range(3))
    stride = 1 << round(math.log2(math.sqrt(length)))
    merged = local(stride) | strided(stride)

    def run(*patterns: object) -> Callable[[], object]:
        core = SparseAttention(*patterns)
        return lambda: core(q, k, v, Mask(), None, None, 0.0)

    def masked() -> object:
        place = torch.arange(length)
        allowed = merged.pattern.rule(place[None, None, :, None], place[None, None, None, :])
        return F.scaled_dot_product_attention(q, k, v, allowed)

    return {
        "dense": lambda: F.scaled_dot_product_attention(q, k, v),
        "dense, masked": masked,
        "strided": run(merged),
        "strided heads": run(local(stride), strided(stride)),
        "fixed": run(fixed(stride, 8)),
        "window": run(windowed(64)),
        "window + global": run(windowed(64, 16)),
    }


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(form: str, length: int) -> dict[str, float]:
    """One figure, in this process."""
    import torch

    with torch.no_grad():
        torch.set_num_threads(1)
        small, run = forms(256)[form], forms(length)[form]
        small()  # libraries and threads are up
        before, highest, done = resident(), [0], threading.Event()

        def watch() -> None:
            while not done.is_set():
                highest[0] = max(highest[0], resident())
                time.sleep(0.0005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        run()
        done.set()
        watcher.join()
        best = busy = math.inf
        for _ in range(3):
            started, worked = time.perf_counter(), time.process_time()
            run()
            best, busy = min(best, time.perf_counter() - started), min(busy, time.process_time() - worked)
    return {"wall_seconds": best, "seconds": busy, "extra_mb": max(0, max(highest[0], resident()) - before) / 1e6}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sparse", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return 0
    rows: list[dict[str, Any]] = json.loads(options.again.read_text(encoding="utf-8"))["rows"] if options.again else []
    for form in () if rows else options.forms:
        for length in options.lengths:
            command = [sys.executable, "-m", "benchmarks.sparse", "--one", form, str(length)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append({"form": form, "length": length, **json.loads(done.stdout.splitlines()[-1])})
            print(
                f"{form:16} {length:6}  {rows[-1]['seconds'] * 1000:9.1f} ms  {rows[-1]['extra_mb']:8.1f} MB",
                flush=True,
            )
    for form, slope in slopes(rows).items():
        print(f"{form:16} slope {slope:.2f}")
    machine = f"{platform.processor() or platform.machine()}, 1 thread, torch {importlib.metadata.version('torch')}"
    print(machine)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(draw(rows), encoding="utf-8")
    return 0


def slopes(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Log time over log length between 4k and the longest, of each form."""
    found = {}
    for form in dict.fromkeys(row["form"] for row in rows):
        mine = [row for row in rows if row["form"] == form and row["length"] >= 4096]
        if len(mine) > 1:
            first, last = mine[0], mine[-1]
            found[form] = math.log(last["seconds"] / first["seconds"]) / math.log(last["length"] / first["length"])
    return found


COLORS = ("#444444", "#999999", "#c0392b", "#e67e22", "#2980b9", "#27ae60", "#8e44ad")
GUIDES = {"n": 1.0, "n √n": 1.5, "n²": 2.0}


def draw(rows: list[dict[str, Any]]) -> str:
    """Time over length, both on logarithmic axes, each form with its slope; dashed, how n, n √n and
    n² rise.
    """
    left, top, width, height = 70, 20, 520, 330
    xs, ys = [math.log2(row["length"]) for row in rows], [math.log10(row["seconds"]) for row in rows]
    low_x, high_x, low_y, high_y = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - low_x) / max(high_x - low_x, 1) * width, top + (high_y - y) / max(high_y - low_y, 1) * height

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 190}" height="{top + height + 50}" '
        'font-family="sans-serif"'
        ' font-size="12">'
    ]
    for decade in range(low_y, high_y + 1):
        _, y = at(low_x, decade)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g} s</text>')
    for tick in sorted(set(xs)):
        x, _ = at(tick, low_y)
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{2**tick:.0f}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 40}" text-anchor="middle">tokens</text>')
    for name, power in GUIDES.items():
        end = min(high_x, low_x + (high_y - low_y) / (power * math.log10(2)))
        (x1, y1), (x2, y2) = at(low_x, low_y), at(end, low_y + power * (end - low_x) * math.log10(2))
        parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#bbb" stroke-dasharray="4 4"/>'
        )
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        parts.append(f'<text x="{x:.1f}" y="{y + 14:.1f}" fill="#888">{name}</text>')
    rises, below = slopes(rows), 0.0
    ends = {name: [at(x, y) for x, y, row in zip(xs, ys, rows, strict=True) if row["form"] == name] for name in rises}
    labels: dict[str, float] = {}
    for name in sorted(
        ends, key=lambda name: ends[name][-1][1]
    ):  # from the top, each at least a line below the one before
        labels[name] = below = max(ends[name][-1][1] + 4, below + 14)
    for color, (name, mine) in zip(COLORS, ends.items(), strict=False):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in mine)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(
            f'<text x="{mine[-1][0] + 6:.1f}" y="{labels[name]:.1f}" fill="{color}">{name}: slope '
            f"{rises[name]:.2f}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
