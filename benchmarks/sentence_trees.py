"""How long K-BERT's trees take as the graph grows: build, open, look-ups, 10,000 sentences, and how
much memory each process has held at most: the one that builds, and the one that opens and grafts
("bare": before it opened anything).

"_cpu_s" are seconds of one core, "_s" those of the clock.

python -m benchmarks.sentence_trees [--triples 1000000] [--sentences 10000]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from zoo.data.knowledge.graph import KnowledgeGraph
from zoo.data.knowledge.readers import Triple
from zoo.data.knowledge_batches import SentenceTreeCollator


def facts(count: int, seed: int = 0) -> Iterator[Triple]:
    """Random triples: two fifths as many subjects as facts, fifty predicates."""
    rng = random.Random(seed)
    for number in range(count):
        yield (
            f"主{rng.randrange(max(1, count * 2 // 5))}",
            f"关系{number % 50}",
            f"值{rng.randrange(max(1, count * 3 // 5))}",
        )


def sentences(count: int, triples: int, seed: int = 1) -> list[list[str]]:
    """Thirty words each, a third of them subjects of the graph."""
    rng = random.Random(seed)
    known = max(1, triples * 2 // 5)
    return [
        ["[CLS]", *(f"主{rng.randrange(known)}" if rng.random() < 1 / 3 else "字" for _ in range(30))]
        for _ in range(count)
    ]


def peak() -> int:
    """The most memory this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def build(folder: Path, triples: int) -> dict[str, float]:
    started, started_cpu = time.perf_counter(), time.process_time()
    KnowledgeGraph.from_triples(facts(triples)).save(folder)
    return {
        "build_s": round(time.perf_counter() - started, 3),
        "build_cpu_s": round(time.process_time() - started_cpu, 3),
        "build_peak_mib": peak(),
    }


def graft(folder: Path, triples: int, count: int) -> dict[str, float]:
    bare = peak()
    started = time.perf_counter()
    graph = KnowledgeGraph.open(folder)
    opened = time.perf_counter()
    rng = random.Random(2)
    asked = [f"主{rng.randrange(triples)}" for _ in range(10_000)]
    looked, looked_cpu = time.perf_counter(), time.process_time()
    for subject in asked:
        graph.values(subject, limit=2)
    found, found_cpu = time.perf_counter(), time.process_time()
    collator = SentenceTreeCollator(graph=graph, token_id=lambda token: 5, unknown_id=1, max_length=128)
    texts = sentences(count, triples)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    for start in range(0, count, 32):
        collator(texts[start : start + 32])
    done, done_cpu = time.perf_counter(), time.process_time()
    return {
        "open_s": round(opened - started, 4),
        "look_up_us": round((found - looked) * 100, 2),
        "look_up_cpu_us": round((found_cpu - looked_cpu) * 100, 2),
        "sentences": count,
        "trees_s": round(done - begun, 2),
        "trees_cpu_s": round(done_cpu - begun_cpu, 2),
        "bare_mib": bare,
        "trees_peak_mib": peak(),
    }


def alone(function: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """In a process of its own, so that its memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(triples: int, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph"
        return {"triples": triples} | alone(build, graph, triples) | alone(graft, graph, triples, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triples", type=int, default=1_000_000)
    parser.add_argument("--sentences", type=int, default=10_000)
    options = parser.parse_args()
    print(json.dumps({"machine": platform.processor() or platform.machine(), "python": platform.python_version()}))
    for size in (options.triples // 100, options.triples // 10, options.triples):
        print(json.dumps(measure(size, options.sentences)), flush=True)


if __name__ == "__main__":
    main()
