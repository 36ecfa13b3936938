"""How fast the default variant of each family is, next to its parameters: one forward pass on the
CPU, and between its passes those of bert-base, so that a busy machine slows both.

    python -m benchmarks.family_speed docs/family_speed.csv [FAMILY ...]

With families named, their rows alone are measured anew. `python -m docs.generate` draws
docs/images/family-speed.svg from the file.
"""

from __future__ import annotations

import csv
import gc
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

import zoo
from benchmarks.timing import machine
from docs.drawings.trace import inputs_for
from zoo.models.base.model import Model
from zoo.registry import variants as registry

ROWS, LENGTH, REPEATS = 2, 64, 5
LARGE = 1_500_000_000  # parameters beyond which two blocks' weights stand for all, so that the model fits
COLUMNS = (
    *("family", "variant", "pillar", "parameters", "ms", "bert_ms", "relative", "note"),
    *("texts", "tokens", "date", "machine", "zoo"),
)


def call(model: Model) -> Callable[[], object]:
    """One pass over the batch."""
    batch = inputs_for(model, rows=ROWS, length=LENGTH, device="cpu")

    def run() -> object:
        with torch.inference_mode():
            return model(**batch)

    return run


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(family: str, bert: Callable[[], object]) -> dict[str, object]:
    """One row: the median of a family's times, and that of bert-base's passes around them."""
    variant = registry.families()[family][0]
    parameters = zoo.create(variant.name, device="meta").num_parameters()
    large = parameters > LARGE
    model: Any = zoo.create(variant.name, **({"num_layers": 2} if large else {})).eval()
    if large:
        model.encoder.plan = (0, 1) * (registry.config(variant.name).num_layers // 2)
    run = call(model)
    run()
    own, other = [], []
    for _ in range(3 if large else REPEATS):
        other.append(seconds(bert))
        own.append(seconds(run))
        other.append(seconds(bert))
    relative = median(2 * a / (b + c) for a, b, c in zip(own, other[::2], other[1::2], strict=True))
    return {
        "family": family,
        "variant": variant.name,
        "pillar": variant.pillar,
        "parameters": parameters,
        "ms": round(1000 * median(own), 1),
        "bert_ms": round(1000 * median(other), 1),
        "relative": round(relative, 3),
        "note": "two blocks' weights in all layers, to fit into memory" if large else "",
        "texts": ROWS,
        "tokens": LENGTH,
        "date": date.today().isoformat(),
        "machine": machine(),
        "zoo": zoo.__version__,
    }


def main() -> None:
    path, named = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    rows: dict[str, dict[str, object]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row["family"]: dict(row) for row in csv.DictReader(file)}
    bert_model: Model = zoo.create("bert-base").eval()  # type: ignore[assignment]
    bert = call(bert_model)
    bert()
    for family in named or registry.families():
        rows[family] = measure(family, bert)
        print(f"{family:<16} {rows[family]['ms']:>8} ms, {rows[family]['relative']} x bert-base", flush=True)
        gc.collect()
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows[name] for name in sorted(rows))


if __name__ == "__main__":
    main()
