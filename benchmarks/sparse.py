"""One attention layer's core at 1k to 16k tokens: time, and the memory it needs besides its inputs;
dense against sparse.

    python -m benchmarks.sparse [--lengths 1024 2048 ...] [--json benchmarks/sparse.json]
    python -m benchmarks.sparse --again FILE                   the slopes of what was measured before

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


if __name__ == "__main__":
    sys.exit(main())
