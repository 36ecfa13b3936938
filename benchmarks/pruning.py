"""What pruning saves in time: a full batch against what is kept of heads, feed-forward units and
layers, and zeros that nobody skips.

    python -m benchmarks.pruning [--rounds 7] [--image docs/images/pruning-speed.png]

Structured pruning makes the matrices smaller, so time falls; single weights at zero are multiplied
like any other (float32, dense kernels). MiniLM's shape with random weights, 16 x 128 tokens, as
built and prepared by `zoo.optimize`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import zoo
from benchmarks.timing import machine, table
from examples.charts import chart
from zoo.inference.timing import interleaved

KEPT = (1.0, 0.75, 0.5, 0.25)
WAYS: dict[str, Callable[[float], list[Any]]] = {
    "heads": lambda kept: [zoo.HeadPruning(kept=kept)],
    "feed-forward units": lambda kept: [zoo.FeedForwardPruning(kept=kept)],
    "heads and units": lambda kept: [zoo.HeadPruning(kept=kept), zoo.FeedForwardPruning(kept=kept)],
    "single weights (zeros)": lambda kept: [zoo.WeightPruning(sparsity=1 - kept)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image", type=Path)
    options = parser.parse_args()
    print(machine())
    ids = torch.randint(1000, 20000, (16, 128), generator=torch.Generator().manual_seed(1))
    models: dict[tuple[str, float, str], Any] = {}
    for kept in KEPT:
        for way, techniques in WAYS.items():
            applied = techniques(kept) if kept < 1 else []
            model = zoo.create("minilm-l6-h384", techniques=applied, generator=torch.Generator().manual_seed(0)).eval()
            models[way, kept, "as built"] = model
            if way != "single weights (zeros)":
                models[way, kept, "optimized"] = zoo.optimize(model)
    with torch.inference_mode():
        times = interleaved({str(key): partial(model, ids) for key, model in models.items()}, options.rounds)
    found = {key: times[str(key)] for key in models}
    rows = []
    for way in WAYS:
        for form in ("as built", "optimized"):
            if (way, 1.0, form) in found:
                whole = found[way, 1.0, form]
                rows.append(
                    [
                        way,
                        form,
                        *(f"{found[way, kept, form]:.0f} ({whole / found[way, kept, form]:.2f} x)" for kept in KEPT),
                    ]
                )
    table(
        "milliseconds (times faster) by the share that is kept",
        ["what", "form", *(f"{kept:.0%}" for kept in KEPT)],
        rows,
    )
    if options.image:
        draw(found, options.image)


def draw(found: dict[tuple[str, float, str], float], path: Path) -> None:
    """Speed against the kept share, one line for each way."""
    with chart(path, height=3.8) as axis:
        for way in WAYS:
            for form, style in (("as built", "-"), ("optimized", "--")):
                if (way, 1.0, form) in found:
                    whole = found[way, 1.0, form]
                    faster = [whole / found[way, kept, form] for kept in KEPT]
                    color = f"C{list(WAYS).index(way)}"
                    axis.plot(KEPT, faster, style, marker="o", color=color, label=f"{way}, {form}")
        axis.set(xlabel="share kept", ylabel="times faster than whole")
        axis.invert_xaxis()
        axis.legend()


if __name__ == "__main__":
    main()
