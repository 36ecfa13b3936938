"""One training step, masked words on a ragged batch: forward, backward and AdamW, the same weights
and the same labels on both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import zoo
from benchmarks.speed.cases import CASES
from benchmarks.timing import table
from zoo.inference.timing import interleaved


def training(rounds: int, folder: Path) -> list[dict[str, Any]]:
    """bert-base at one third real tokens."""
    case = next(case for case in CASES if case.name == "bert-base")
    case.write(folder / case.name)
    ours = zoo.create(
        "bert-base", pretrained=folder / case.name / "zoo", task="masked-lm", generator=torch.Generator().manual_seed(0)
    ).train()
    zoo.save(ours, folder / case.name / "masked-lm")
    zoo.convert(folder / case.name / "masked-lm", folder / case.name / "theirs-masked-lm", to="hf-bert")
    theirs = transformers.BertForMaskedLM.from_pretrained(folder / case.name / "theirs-masked-lm").train()
    arrays = {name: torch.from_numpy(value) for name, value in case.inputs("third").items()}
    real = arrays["attention_mask"] != 0
    hidden = (torch.rand(real.shape, generator=torch.Generator().manual_seed(1)) < 0.15) & real
    given = {**arrays, "labels": arrays["input_ids"].masked_fill(~hidden, -100)}

    with torch.no_grad():
        first, second = (model.eval()(**given).loss.item() for model in (ours, theirs))
    if abs(first - second) > 1e-3:
        raise AssertionError(f"the losses differ: {first} and {second}")
    ours.train(), theirs.train()

    def stepper(model: Any) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-6)

        def step() -> None:
            model(**given).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    times = interleaved({"zoo": stepper(ours), "transformers": stepper(theirs)}, rounds)
    share = f"{real.float().mean():.3f}"
    rows = [
        {
            "model": "bert-base",
            "batch": "8 x 128",
            "kind": "training step",
            "real": share,
            "side": side,
            "ms": round(ms, 1),
            "cosine": "",
        }
        for side, ms in times.items()
    ]
    ratio = times["transformers"] / times["zoo"]
    table(
        "training step, bert-base, ms",
        ["zoo", "transformers", "times"],
        [[f"{times['zoo']:.0f}", f"{times['transformers']:.0f}", f"{ratio:.2f}"]],
    )
    return rows
