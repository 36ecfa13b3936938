"""Export every task of every family, small and random, both ways:

    python -m benchmarks.exports                     all of them (half an hour on one core)
    python -m benchmarks.exports albert knowbert     these families
    python -m benchmarks.exports --formats .onnx --techniques

`zoo.export` opens and runs what it wrote, so a line here says that the file was checked, ran, and gave
what the model gives; with onnxruntime beside torch, an ``.onnx`` too. ``--techniques``: instead of the
tasks, each technique that fits a family, onto its model without a head. Exit code 1 where something
failed that is not refused by name (masks that are still being learned). What works with one number of rows
alone (12-in-1's task of all heads, where two rows are a pair of pictures) is exported with two.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import zoo
from tests import strategies
from zoo.errors import ZooError
from zoo.inference.export import FORMATS
from zoo.techniques.matrix import EXAMPLES, refusal


def models(families: list[str], with_techniques: bool) -> Iterator[tuple[str, str, Any]]:
    """Family, task or technique, and the model."""
    for family in families:
        if not with_techniques:
            for task in (None, *strategies.tasks_of(family)):
                yield family, task or "-", built(family, task)
            continue
        config = strategies.small_config(family)
        for name, techniques in EXAMPLES.items():
            if refusal(strategies.model_class(family), config, techniques) is None:
                yield family, name, strategies.randomised(zoo.apply(built(family), *techniques))


def built(family: str, task: str | None = None) -> Any:
    return strategies.build(family, strategies.small_config(family), task, seed=2, dtype=torch.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=strategies.families())
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--techniques", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: collections.Counter[str] = collections.Counter()
    worst, start = 0.0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for family, name, model in models(options.families, options.techniques):
            for ending in options.formats:
                rows = 2 if name == "multi-task" else None
                try:
                    made = zoo.export(model, Path(folder) / f"model{ending}", rows=rows)
                except ZooError as error:
                    counts["refused"] += 1
                    print(f"{family:16} {name:28} {ending}: {error}", flush=True)
                    continue
                print(f"{family:16} {name:28} {ending}: {made['difference']:.1e}", flush=True)
                worst = max(worst, made["difference"])
                counts[f"{ending} ran in {made['ran_in']}"] += 1
    print(f"{dict(counts)}; largest difference {worst:.1e} of a result's largest value")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if counts["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
