"""Forward passes of every side on the same weights and inputs: equal outputs first, then
interleaved rounds.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.speed.cases import CASES, Case
from benchmarks.speed.sides import SIDES
from benchmarks.timing import table
from zoo.inference.prepared import PreparedLinear
from zoo.inference.timing import interleaved

PLAIN = ("zoo", "zoo optimized", "transformers")
PEERS = ("onnxruntime", "onnxruntime int8", "openvino", "openvino bfloat16", "ctranslate2", "ctranslate2 int8")
COMPILED = ("zoo compiled", "transformers compiled")
MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "ctranslate2": "ctranslate2"}
CLOSE = 1e-3  # the largest difference where nothing is rounded
COSINE = {
    "bfloat16": 0.999,
    "int8": 0.80,
}  # below this a side doesn't compute the model at all; the figure itself is reported

Row = dict[str, Any]


@dataclass
class Worker:
    """A side in its process."""

    process: subprocess.Popen[str]
    log: Path

    @classmethod
    def start(cls, side: str, folder: Path, log: Path) -> Worker:
        command = [sys.executable, "-m", "benchmarks.speed.worker", side, str(folder)]
        with log.open("w") as errors:
            made = cls(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True), log
            )
        made.answer()
        return made

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended early: {self.log.read_text()[-2000:]}")
        return json.loads(line)

    def ask(self, inputs: Path, output: Path | None = None) -> float:
        assert self.process.stdin is not None
        asked = {"inputs": str(inputs)} | ({} if output is None else {"output": str(output)})
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return float(self.answer()["ms"])

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def sides_of(case: Case, kind: str) -> list[str]:
    """Which sides run a case: compiled ones only on full batches, where nothing depends on the
    data.
    """
    sides = [side for side in PLAIN if case.layout or not side.startswith("transformers")]
    if case.int8:
        sides += ["zoo bfloat16", "zoo int8", "transformers bfloat16"]
    if case.peers:
        sides += list(PEERS)
    if case.peers and kind == "full":
        sides += list(COMPILED)
    return sides


def compare(a: numpy.ndarray, b: numpy.ndarray, real: numpy.ndarray, side: str) -> float:
    """The cosine of all real states, flattened; refuses a side whose outputs are not the
    model's.
    """
    first, second = a[:, : real.shape[1]][real], b[:, : real.shape[1]][real]
    cosine = float((first * second).sum() / numpy.linalg.norm(first) / numpy.linalg.norm(second))
    form = next((form for form in COSINE if side.endswith(form)), None)
    if form is None and float(numpy.abs(first - second).max()) > CLOSE:
        raise AssertionError(f"{side} differs from the first side by {numpy.abs(first - second).max():.2e}")
    if form is not None and cosine < COSINE[form]:
        raise AssertionError(f"{side} has cosine {cosine:.4f} to float32")
    return cosine


def matrix_rates() -> tuple[float, float]:
    """GFLOP/s of multiplying 1024 x 768 by 768 x 3072 in float32: torch's own, and oneDNN's
    over weights laid out for it.
    """
    x, w = torch.randn(1024, 768), torch.randn(3072, 768)
    packed = PreparedLinear(w, None)
    with torch.inference_mode():
        times = interleaved({"torch": lambda: torch.nn.functional.linear(x, w), "onednn": lambda: packed(x)}, 15)
    work = 2 * 1024 * 768 * 3072 / 1e6
    return work / times["torch"], work / times["onednn"]


def work_of(case: Case, folder: Path, arrays: Mapping[str, numpy.ndarray]) -> float:
    """GFLOP of the matrix multiplications in one padded pass."""
    side = SIDES["zoo"](folder / "theirs")
    with FlopCounterMode(display=False) as counter, zoo.packing(False):
        side.run(side.prepare(arrays))
    return counter.get_total_flops() / 1e9


def measure(case: Case, rounds: int, folder: Path, skip: set[str]) -> list[Row]:
    """One row for each side and kind of batch."""
    case.write(folder)
    names = [side for side in dict.fromkeys(sides_of(case, "full") + sides_of(case, "third")) if side not in skip]
    workers = {name: Worker.start(name, folder / "theirs", folder / f"{name}.log") for name in names}
    rows = []
    try:
        for kind in case.kinds:
            arrays = case.inputs(kind)
            inputs = folder / f"{kind}.npz"
            numpy.savez(inputs, **arrays)
            here = {name: workers[name] for name in sides_of(case, kind) if name in workers}
            real, states = arrays["attention_mask"] != 0, {}
            for name, worker in here.items():
                for _ in range(3):
                    worker.ask(inputs, folder / "states.npy")
                states[name] = numpy.load(folder / "states.npy", allow_pickle=False)
            first = states["transformers" if "transformers" in states else "zoo"]
            cosines = {name: compare(first, found, real, name) for name, found in states.items()}
            times: dict[str, list[float]] = {name: [] for name in here}
            for _ in range(rounds):
                for name, worker in here.items():
                    times[name].append(worker.ask(inputs))
            for name in here:
                row = {
                    "model": case.name,
                    "batch": f"{case.batch} x 128",
                    "kind": kind,
                    "real": f"{real.mean():.3f}",
                    "side": name,
                }
                rows.append({**row, "ms": round(statistics.median(times[name]), 2), "cosine": f"{cosines[name]:.5f}"})
            if kind == "full":
                work = round(work_of(case, folder, arrays), 2)
                rows.append(
                    {**dict.fromkeys(rows[0], ""), "model": case.name, "kind": "gflop", "side": "padded", "ms": work}
                )
            show(rows, case.name, kind)
    finally:
        for worker in workers.values():
            worker.stop()
    return rows


def show(rows: list[Row], model: str, kind: str) -> None:
    """The rows of one case, with the time against `transformers`."""
    mine = [row for row in rows if row["model"] == model and row["kind"] == kind]
    base = next((row["ms"] for row in mine if row["side"] == "transformers"), None)
    lines = [[r["side"], f"{r['ms']:.1f}", "-" if base is None else f"{base / r['ms']:.2f}", r["cosine"]] for r in mine]
    table(
        f"{model} {mine[0]['batch']} {kind}, {float(mine[0]['real']):.0%} real",
        ["side", "ms", "times transformers", "cosine"],
        lines,
    )


def missing() -> set[str]:
    """Sides whose library isn't installed."""
    return {side for side in PEERS if importlib.util.find_spec(MODULES[side.split()[0]]) is None}


def forward(only: Sequence[str], rounds: int, folder: Path) -> list[Row]:
    """Every case whose name begins with one of ``only`` (all, where that is empty)."""
    skip = missing()
    if skip:
        print("not installed, left out:", ", ".join(sorted(skip)))
    chosen = [case for case in CASES if not only or any(case.name.startswith(start) for start in only)]
    return [row for case in chosen for row in measure(case, rounds, folder / case.name, skip)]
