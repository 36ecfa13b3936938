"""Kill writers, and read beside them: does anything load that is neither the old nor the new?

    python -m benchmarks.kills [--random 300] [--loads 10000] [--creators 20] [--only WORD] [--seed 0] [--json FILE]

Every way to write a folder (`tests.kills.writers`) replaces one tiny model by another, whose sizes
agree and whose heads and activation differ.

1. Killed before each of its file operations in turn, however many there are.
2. ``--random``: killed (SIGKILL) after a random time, so many times over all ways.
3. ``--loads``: one process writes the two in turn, three others load, so many times over all ways.
4. ``--creators``: so many processes convert a checkpoint into one cache, beside one that prunes all
   of it again and again.

What is found is the old model, the new one, a refusal with its reason, or MIXED, of which there may
be none; after each kill the next write mends all and leaves no unfinished file. Needs fork.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zoo
from tests.kills import Writer, deaths, output, tiny, writers
from zoo.checkpoints.fetching.cache import Cache
from zoo.checkpoints.load import filled, open_to_load
from zoo.registry.records import Record

READERS = 3
Counts = collections.Counter[str]


def kind_of(found: str) -> str:
    return {"0": "old", "1": "new"}.get(found, found.partition(":")[0])


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def at_every_operation(writer: Writer) -> Counts:
    return collections.Counter(kind_of(found) for _, found in deaths(writer))


def at_random(writer: Writer, kills: int, dice: random.Random) -> Counts:
    """Kills at random moments of endless writing; what was there before each is model 0."""

    def forever() -> None:
        for number in range(1, 1 << 30):
            writer.write(number % 2)

    counts: Counts = collections.Counter()
    for _ in range(kills):
        writer.write(0)
        pid = child(forever)
        time.sleep(dice.uniform(0.0, 0.4))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        counts[kind_of(writer.found())] += 1
        writer.write(1)
        assert writer.found() == "1"
        assert not writer.left(), writer.left()
    return counts


def beside(writer: Writer, loads: int) -> Counts:
    """What readers find in a folder that somebody writes again and again."""

    def forever() -> None:
        for number in range(1 << 30):
            writer.write(number % 2)

    writer.write(0)
    at_work = child(forever)
    pipes = []
    for _ in range(READERS):
        here, there = os.pipe()

        def read(there: int = there) -> None:
            found = collections.Counter(kind_of(writer.found()) for _ in range(loads // READERS))
            os.write(there, json.dumps(found).encode())

        pipes.append((child(read), here))
        os.close(there)
    counts: Counts = collections.Counter()
    for pid, here in pipes:
        with open(here, "rb") as pipe:
            counts.update(json.loads(pipe.read()))
        os.waitpid(pid, 0)
    os.kill(at_work, signal.SIGKILL)
    os.waitpid(at_work, 0)
    return counts


def beside_a_pruner(base: Path, creators: int) -> Counts:
    """How many of those who convert beside `zoo cache prune --all` get their model."""
    os.environ["ZOO_HOME"] = str(base / "home")
    zoo.convert(zoo.save(tiny(1), base / "ours"), base / "theirs", to="hf-bert")
    record = Record("bert", "bert-tiny", "one", (f"file:{base / 'theirs'}",), layout="hf-bert")

    def prune() -> None:
        while True:
            Cache().prune(everything=True)

    def create() -> None:
        with open_to_load(record, name="bert-tiny") as checkpoint:
            os._exit(0 if torch.equal(output(filled(checkpoint)), output(tiny(1))) else 2)

    pruner = child(prune)
    made = [child(create) for _ in range(creators)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in made]
    os.kill(pruner, signal.SIGKILL)
    os.waitpid(pruner, 0)
    return collections.Counter({0: "made", 2: "MIXED"}.get(code, "failed") for code in codes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=300)
    parser.add_argument("--loads", type=int, default=10_000)
    parser.add_argument("--creators", type=int, default=20)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    dice, result = random.Random(options.seed), dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        ways = {name: make for name, make in writers(base / "models").items() if options.only in name}
        totals: dict[str, Counts] = collections.defaultdict(collections.Counter)
        for place, (name, make) in enumerate(ways.items()):
            began, writer = time.monotonic(), make(base / str(place))
            found = {
                "at every operation": at_every_operation(writer),
                "at random": at_random(writer, options.random // len(ways), dice),
                "beside a writer": beside(writer, options.loads // len(ways) + READERS),
            }
            result[name] = {key: dict(sorted(counts.items())) for key, counts in found.items()}
            print(name, json.dumps(result[name]), f"{time.monotonic() - began:.0f} s", flush=True)
            for key, counts in found.items():
                totals[key].update(counts)
        if options.creators:
            totals["beside a pruner"] = beside_a_pruner(base / "cache", options.creators)
    result["all"] = {
        key: {"in all": counts.total(), **counts, "MIXED": counts["MIXED"]} for key, counts in totals.items()
    }
    print(json.dumps(result["all"], indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    raise SystemExit(any(counts["MIXED"] for counts in totals.values()))


if __name__ == "__main__":
    main()
