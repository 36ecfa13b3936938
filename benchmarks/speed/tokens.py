"""Cost per real token, from one to 4,096 of them in a batch: sentences of 32 tokens, and one batch
of texts of growing length.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import zoo
from benchmarks.timing import table
from zoo.inference.timing import interleaved

LENGTH = 32
COUNTS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def tokens(rounds: int) -> list[dict[str, Any]]:
    """MiniLM as loaded and optimized, in microseconds for each real token."""
    model = zoo.create("minilm-l6-h384", generator=torch.Generator().manual_seed(0)).eval()
    sides = {"zoo": model, "zoo optimized": zoo.optimize(model), "zoo bfloat16": zoo.optimize(model, "bfloat16")}
    rows, shown = [], []
    for count in COUNTS:
        lengths = [LENGTH] * (count // LENGTH) + ([count % LENGTH] if count % LENGTH else [])
        mask = (torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(1000, 20000, mask.shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            times = interleaved({name: partial(m, ids, mask) for name, m in sides.items()}, rounds)
        each = {name: ms * 1000 / count for name, ms in times.items()}
        shown.append([str(count), *(f"{us:.1f}" for us in each.values())])
        for name, us in each.items():
            rows.append(
                {
                    "model": "minilm-l6-h384",
                    "batch": f"{count} tokens",
                    "kind": "per token",
                    "real": "",
                    "side": name,
                    "ms": us / 1000,
                    "cosine": "",
                }
            )
    table(f"MiniLM, microseconds for each real token, rows of {LENGTH}", ["real tokens", *sides], shown)
    return rows
