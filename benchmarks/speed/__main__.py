"""Speed against what users would pick instead, all of it: python -m benchmarks.speed [--rounds 7]
[--parts forward ...] [--only minilm ...]

Each part prints its tables; with --out the rows go into a CSV, with the date and the versions of what
was compared. `python -m benchmarks.speed.report` draws the docs' page from all CSVs of
docs/performance, a file for each machine.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.metadata
import tempfile
from pathlib import Path

from benchmarks.speed.forward import Row, forward, matrix_rates
from benchmarks.speed.process import process
from benchmarks.speed.tokens import tokens
from benchmarks.speed.training import training
from benchmarks.timing import machine

PARTS = ("forward", "training", "process", "tokens")
COMPARED = {"zoo": "extended-zoo"} | {
    name: name for name in ("torch", "transformers", "onnxruntime", "openvino", "ctranslate2")
}


def about() -> list[Row]:
    """Rows that say when the run was and which versions it compared."""
    said = {"date": datetime.date.today().isoformat()}
    for name, distribution in COMPARED.items():
        try:
            said[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue  # its sides were left out
    empty = dict.fromkeys(("model", "batch", "kind", "real", "cosine", "side", "ms"), "")
    return [{**empty, "model": value, "kind": "run", "side": name} for name, value in said.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of model names, for the forward passes")
    parser.add_argument("--out", type=Path, help="a CSV to write")
    parser.add_argument("--folder", type=Path, help="keep the weights here for another run")
    given = parser.parse_args()
    torch_rate, onednn_rate = matrix_rates()
    rates = f"torch's own {torch_rate:.0f} GFLOP/s, oneDNN's {onednn_rate:.0f}"
    print(machine(), f"float32 matrix multiplication: {rates}", sep="\n")
    shape = {"model": machine(), "batch": "1024 x 768 x 3072", "kind": "machine", "real": "", "cosine": ""}
    rows: list[Row] = [
        *about(),
        {**shape, "side": "torch", "ms": round(torch_rate)},
        {**shape, "side": "onednn", "ms": round(onednn_rate)},
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if "forward" in given.parts:
            rows += forward(given.only, given.rounds, folder)
        if "training" in given.parts:
            rows += training(given.rounds, folder)
        if "process" in given.parts:
            rows += process(given.rounds, folder)
        if "tokens" in given.parts:
            rows += tokens(given.rounds)
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
