"""Kill -9 at random moments of a bulk run, begin it again, and count the rows.

    python -m benchmarks.kill_predict [--kills 50] [--rows 20000] [--seed 0] [--json FILE]

A child encodes or labels a file of rows with a tiny model, into each format in turn, and is killed
after a random time, often within a write; the same call then goes on, until one of them ends. At the
end every row must be there exactly once, in order, with the result of an undisturbed run. Needs fork.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy
import torch

import zoo
from zoo.data.tables import read_rows
from zoo.inference import bulk
from zoo.inference.bulk import joined, write_results
from zoo.inference.results import kept_rows
from zoo.tokenization.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(95))]
FORMATS = ["npy", "jsonl", "csv", "tsv", *(["parquet"] if importlib.util.find_spec("pyarrow") else [])]


def rows(count: int) -> list[dict[str, object]]:
    generator = random.Random(1)
    return [
        {"id": number, "text": " ".join(generator.choices(WORDS[5:], k=generator.randint(1, 12)))}
        for number in range(count)
    ]


def write(out: Path, data: list[dict[str, object]], model: str) -> None:
    """The work of the child."""
    torch.set_num_threads(1)
    pipe = zoo.pipeline("sentence-embedding", model)
    shape = (lambda row, result: dict(result)) if out.suffix == ".npy" else joined
    write_results(out, iter(data), lambda row: row["text"], pipe.stream, run={"model": model}, shape=shape)


def read(out: Path) -> tuple[list[int] | None, numpy.ndarray]:
    """The ids, where the format has them, and the vectors."""
    if out.suffix == ".npy":
        return None, numpy.load(out)
    found = list(read_rows(out))
    vectors = [row["embedding"] for row in found]
    return [int(row["id"]) for row in found], numpy.array([json.loads(v) if isinstance(v, str) else v for v in vectors])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator, begin = random.Random(options.seed), time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    bulk.SECONDS = 0.05  # commits are more frequent than in use, so that more kills fall into one
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        sizes = {"vocab_size": 100, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 16}
        made = zoo.create("bert-base", task="sentence-embedding", max_positions=32, **sizes)
        tokenizer = wordpiece({word: number for number, word in enumerate(WORDS)}, max_length=32)
        model = str(zoo.save(made, base / "model", tokenizer))
        data = rows(options.rows)
        whole = base / "whole.npy"
        child = context.Process(target=write, args=(whole, data, model))
        start = time.monotonic()
        child.start()  # a child, so that this process never runs threads that a fork would lose
        child.join()
        took = time.monotonic() - start
        wanted = numpy.load(whole)
        while counts["kills"] < options.kills:
            kind = FORMATS[counts["runs"] % len(FORMATS)]
            out = base / f"out.{kind}"
            while True:
                before = kept_rows(out)
                child = context.Process(target=write, args=(out, data, model))
                child.start()
                child.join(generator.uniform(0.2, 1.0) * took)
                if child.is_alive():
                    os.kill(child.pid or 0, signal.SIGKILL)
                    child.join()
                    counts["kills"] += 1
                    counts[f"kills {kind}"] += 1
                    counts["kills that left more rows than the one before"] += kept_rows(out) > before
                    if counts["kills"] < options.kills * 3:  # one that never gets on would go on for ever
                        continue
                    raise SystemExit("the run does not get on")
                assert child.exitcode == 0, child.exitcode
                break
            ids, vectors = read(out)
            seen = list(range(options.rows)) if ids is None else ids
            counts["rows lost"] += len(set(range(options.rows)) - set(seen)) + options.rows - len(vectors)
            counts["rows doubled"] += len(seen) - len(set(seen))
            counts["rows out of order"] += sum(a != b for a, b in zip(seen, range(options.rows), strict=False))
            same = vectors.shape == wanted.shape and bool(numpy.allclose(vectors, wanted, atol=1e-5))
            counts["files with other vectors"] += not same
            left = [path.name for path in base.iterdir() if "part" in path.name]
            assert not left, left
            out.unlink()
            counts["runs"] += 1
    result = {"seconds": round(time.monotonic() - begin), "undisturbed, seconds": round(took, 2), **counts}
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if any(counts[what] for what in ("rows lost", "rows doubled", "rows out of order", "files with other vectors")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
