"""What Ray costs a row: `zoo.inference.ray.on_ray` on one worker beside the local engine, same model, same rows.

    OMP_NUM_THREADS=1 python -m benchmarks.ray_rows [--rows 5000] [--rounds 3]

Both sides have one thread. A model of one narrow layer shows the overhead itself; MiniLM, how much of a
real job it is. Ray starts a worker for each job (of up to 100,000 rows), so its time is taken for a quarter
of the rows and for all: the slope is what a row costs, the rest what a job costs to begin. Sides take turns;
medians of the rounds. Vectors are compared. Needs the extra ``ray``.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy

import zoo
from benchmarks.encode import NAME, sentences
from benchmarks.timing import machine, table
from zoo.checkpoints.locate import locate
from zoo.inference.ray import on_ray

TINY = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 64}


def timed(engine: Callable[[Iterator[Any]], Iterator[Any]], rows: list[str]) -> tuple[float, numpy.ndarray]:
    begin = time.perf_counter()
    vectors = numpy.stack([result["embedding"] for result in engine(iter(rows))])
    return time.perf_counter() - begin, vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = sentences(args.rows)
    trained = str(locate(NAME)[0])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tiny = zoo.save(
            zoo.create("minilm-l6-h384", task="sentence-embedding", **TINY), Path(folder) / "tiny", zoo.tokenizer(NAME)
        )
        for name, model in (("one layer of 32", str(tiny)), ("MiniLM", trained)):
            make = functools.partial(zoo.pipeline, "sentence-embedding", model)
            sides = {"local": make().stream, "ray": on_ray(make, workers=1)}
            timed(sides["ray"], rows[:64])  # starts the cluster
            times: dict[tuple[str, int], list[float]] = {}
            for number in range(args.rounds):
                for part in (rows[: len(rows) // 4], rows):
                    vectors = {}
                    for side in sorted(sides, reverse=bool(number % 2)):
                        spent, vectors[side] = timed(sides[side], part)
                        times.setdefault((side, len(part)), []).append(spent)
                    assert numpy.allclose(vectors["local"], vectors["ray"], atol=1e-5)
            middle = {key: statistics.median(values) for key, values in times.items()}
            slope = {
                side: (middle[side, len(rows)] - middle[side, len(rows) // 4]) / (len(rows) - len(rows) // 4)
                for side in sides
            }
            begin = middle["ray", len(rows)] - slope["ray"] * len(rows)
            local, ray = (slope[side] * 1000 for side in ("local", "ray"))
            found.append([name, f"{local:.3f}", f"{ray:.3f}", f"{ray - local:+.3f}", f"{begin:.1f}"])
    print(machine())
    columns = ["model", "local, ms a row", "ray, ms a row", "difference", "to begin a job on ray, s"]
    table(f"{len(rows):,} rows, {args.rounds} rounds", columns, found)


if __name__ == "__main__":
    main()
