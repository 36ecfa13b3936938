"""Memory of `zoo embed` over many rows: it must not grow with them.

    python -m benchmarks.predict_memory [--rows 1000000] [--kind npy] [--json FILE]

Writes a file of that many lines, encodes it with a tiny model in a process of its own, and looks at
that process' resident memory all along.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zoo
from zoo.inference.results import kept_rows
from zoo.tokenization.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(95))]


def resident(pid: int) -> float:
    """MB of resident memory that belong to the process alone (not the files it maps)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", default="npy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base, generator = Path(temporary), random.Random(1)
        sizes = {"vocab_size": 100, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "intermediate_size": 16}
        made = zoo.create("bert-base", task="sentence-embedding", max_positions=32, **sizes)
        tokenizer = wordpiece({word: number for number, word in enumerate(WORDS)}, max_length=32)
        zoo.save(made, base / "model", tokenizer)
        with (base / "rows.txt").open("w") as file:
            for _ in range(options.rows):
                file.write(" ".join(generator.choices(WORDS[5:], k=generator.randint(1, 12))) + "\n")
        out = base / f"out.{options.kind}"
        command = [
            sys.executable,
            "-m",
            "zoo",
            "embed",
            str(base / "rows.txt"),
            "-m",
            str(base / "model"),
            "-o",
            str(out),
        ]
        start, seen = time.monotonic(), list[tuple[int, float]]()
        process = subprocess.Popen([*command, "--batch-size", "128"], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            if done := kept_rows(out):
                seen.append((done, resident(process.pid)))
            time.sleep(1)
        assert process.returncode == 0
        took = time.monotonic() - start
        size = out.stat().st_size
    tenths = [
        max((mb for done, mb in seen if part <= 10 * done / options.rows < part + 1), default=0) for part in range(10)
    ]
    result = {
        "rows": options.rows,
        "kind": options.kind,
        "seconds": round(took),
        "bytes": size,
        "load average": os.getloadavg(),
        "most MB, by tenths of the rows": tenths,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
