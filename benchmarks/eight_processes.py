"""Eight processes create the same model that nobody has fetched yet: one download, one conversion,
eight working models.

    python -m benchmarks.eight_processes [NAME] [--kills N]

With --kills, N more processes are each killed at a random moment of the same call, in a cache of
their own; after each the cache must serve a whole model again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CODE = """
import sys, torch, zoo
model = zoo.create(sys.argv[1], pretrained=True)
total = sum(float(p.double().sum()) for p in model.parameters())
print(f"{total:.6f}")
"""


def start(name: str, home: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "ZOO_HOME": home, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, name], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def together(name: str) -> None:
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        processes = [start(name, home) for _ in range(8)]
        answers = [process.communicate() for process in processes]
        wrong = [err for (_, err), process in zip(answers, processes, strict=True) if process.returncode]
        assert not wrong, wrong[0]
        assert len({out for out, _ in answers}) == 1, answers
        fetched, converted = (
            list(Path(home, "refs").glob("*.json")),
            [p for p in Path(home, "converted").iterdir() if p.is_dir()],
        )
        print(
            f"8 processes, {len(fetched)} fetched, {len(converted)} converted, all alike, "
            f"{time.perf_counter() - began:.1f} s"
        )


def killed(name: str, kills: int) -> None:
    dice, whole, left = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as home:
        reference = start(name, home).communicate()[0]
    with tempfile.TemporaryDirectory() as home:
        for _ in range(kills):
            process = start(name, home)
            time.sleep(dice.uniform(0.3, 4.0))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            target = Path(home, "converted")
            done = (
                [p for p in target.glob("*/config.json") if not p.parent.name.startswith(".")]
                if target.is_dir()
                else []
            )
            whole += bool(done)
            left += not done
            if done and dice.random() < 0.5:  # go on from nothing again
                subprocess.run(["rm", "-rf", home + "/converted", home + "/refs"], check=True)
            again = start(name, home).communicate()
            assert again[0] == reference, again
            subprocess.run(["rm", "-rf", str(target)], check=True)
    print(
        f"{kills} kills: {left} left the old state, {whole} the whole new one; the next call always gave the right "
        "model"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", default="albert-rxn.rxnmapper")
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    together(options.name)
    if options.kills:
        killed(options.name, options.kills)


if __name__ == "__main__":
    main()
