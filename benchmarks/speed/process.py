"""A process from its start to its first answer, and what loading a model takes of memory, against
`transformers`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import zoo
from benchmarks.speed.cases import CASES
from benchmarks.timing import table

ANSWER = {
    "zoo": "import zoo, torch; m = zoo.load({ours!r})",
    "transformers": "import torch; from transformers import AutoModel; m = AutoModel.from_pretrained({theirs!r})",
}
RUN = "; m.eval(); print(m(input_ids=torch.ones(1, 8, dtype=torch.int64)).last_hidden_state.sum().item())"
MEMORY = """
import re, torch
def kept(word):
    return int(re.search(word + r":\\s+(\\d+) kB", open("/proc/self/smaps_rollup").read())[1]) / 1024
{small}
m = None
a, r = kept("Anonymous"), kept("Rss")
{load}
total = sum(p.sum().item() for p in m.parameters())
print(kept("Anonymous") - a, kept("Rss") - r)
"""
"""What a process holds after loading a model and reading all of it, beyond what it held after
loading a small one.
"""


def process(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """The small model with trained weights and bert-base, from local files."""
    rows: list[dict[str, Any]] = []
    shown, memory = [], []
    small = _small(folder)
    for case in CASES:
        if not case.peers:
            continue
        case.write(folder / case.name)
        paths = {"ours": str(folder / case.name / "zoo"), "theirs": str(folder / case.name / "theirs")}
        times: dict[str, list[float]] = {side: [] for side in ANSWER}
        for _ in range(rounds + 1):
            for side, code in ANSWER.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, "-c", code.format(**paths) + RUN], check=True, capture_output=True)
                times[side].append((time.perf_counter() - start) * 1000)
        medians = {side: statistics.median(found[1:]) for side, found in times.items()}
        shown.append(
            [case.name, *(f"{ms:.0f}" for ms in medians.values()), f"{medians['zoo'] / medians['transformers']:.2f}"]
        )
        size = (folder / case.name / "zoo" / "model.safetensors").stat().st_size / 2**20
        for side, code in ANSWER.items():
            script = MEMORY.format(small=code.format(**small), load=code.format(**paths))
            done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
            anonymous, resident = map(float, done.stdout.split())
            memory.append(
                [case.name, side, f"{size:.0f}", f"{anonymous:.0f}", f"{resident:.0f}", f"{resident / size:.2f}"]
            )
            common = {"model": case.name, "side": side, "batch": "", "real": "", "cosine": ""}
            rows.append({**common, "kind": "first answer of a new process", "ms": round(medians[side], 1)})
            rows.append({**common, "kind": "memory of loading, share of the file", "ms": round(resident / size, 3)})
    table(
        "from the start of a process to its first answer, ms",
        ["model", "zoo", "transformers", "zoo / transformers"],
        shown,
    )
    table("loading, MiB", ["model", "side", "file", "anonymous", "anonymous and mapped", "of the file"], memory)
    return rows


def _small(folder: Path) -> dict[str, str]:
    """A BERT of two layers in both layouts."""
    paths = {"ours": str(folder / "small" / "zoo"), "theirs": str(folder / "small" / "theirs")}
    if not (folder / "small").exists():
        zoo.save(zoo.create("bert-tiny", generator=torch.Generator().manual_seed(0)), paths["ours"])
        zoo.convert(paths["ours"], paths["theirs"], to="hf-bert")
    return paths
