"""One side in a process of its own, so that thread pools and library versions don't meet: a line of
JSON in, a line of JSON out.

python -m benchmarks.speed.worker SIDE FOLDER        then lines {"inputs": x.npz} or {"inputs": x.npz, "output": y.npy}
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy

from benchmarks.speed.sides import SIDES


def main() -> None:
    name, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to stderr
    side = SIDES[name](Path(folder))
    cached: dict[str, object] = {}
    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["inputs"] not in cached:
            with numpy.load(asked["inputs"], allow_pickle=False) as file:
                cached[asked["inputs"]] = side.prepare(dict(file))
        start = time.perf_counter()
        result = side.run(cached[asked["inputs"]])
        took = (time.perf_counter() - start) * 1000
        if "output" in asked:
            numpy.save(asked["output"], side.states(result), allow_pickle=False)
        print(json.dumps({"ms": took}), file=answers, flush=True)


if __name__ == "__main__":
    main()
