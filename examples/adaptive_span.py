"""Heads that learn how far they look: a character model on real text with adaptive spans, drawn,
and the time that short spans save.

    python examples/adaptive_span.py --images docs/images
    python examples/adaptive_span.py --steps 50            a shorter run

XLM's causal model over the characters of news texts, with ``zoo.AdaptiveSpan`` at its attention: 3
layers of 4 heads, at most 256 characters back, each span from 64 on. The loss is that of the text
plus the paper's term for long spans. Afterwards the same model reads a longer text with dense
attention, with its spans but over all keys, with all spans at the limit, and as it is. Minutes on
one core; needs matplotlib (``pip install extended-zoo[examples]``).
"""

from __future__ import annotations

import argparse
import copy
import math
import string
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import charts
import texts
import torch
from torch import Tensor

import zoo
from zoo.techniques.adaptive_span.technique import clamp_spans, span_loss, spans_of
from zoo.training.optimizers import clip_gradients

CHARACTERS = "\n " + string.ascii_lowercase + string.digits + string.punctuation
BLOCK, BATCH, LIMIT, RAMP, START = 256, 8, 256, 16, 0.25
SIZE: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 128,
    "num_heads": 4,
    "initializer_range": 0.05,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
PLACE = {
    "num_languages": 1,
    "languages": (),
    "causal": True,
    "vocab_size": len(CHARACTERS) + 1,
    "pad_token_id": len(CHARACTERS),
}


@dataclass
class Run:
    """What happened: the text's loss in bits, and each head's span in characters, (layers, heads),
    every ``every`` steps.
    """

    bits: list[float] = field(default_factory=list)
    spans: list[Tensor] = field(default_factory=list)
    every: int = 10
    held_out: float = 0.0


def characters(documents: Sequence[list[str]]) -> Tensor:
    """All texts in one row of character ids; what is not in the table is left out."""
    places = {character: place for place, character in enumerate(CHARACTERS)}
    return torch.tensor(
        [places[c] for document in documents for c in "\n".join(document).lower() + "\n" if c in places]
    )


def create(generator: torch.Generator, coefficient: float, longest: int = 2048) -> Any:
    technique = zoo.AdaptiveSpan(limit=LIMIT, ramp=RAMP, start=START, coefficient=coefficient)
    return zoo.create(
        "xlm-clm-enfr-1024",
        task="masked-lm",
        techniques=[technique],
        generator=generator,
        max_positions=longest,
        **SIZE,
        **PLACE,
    )


def batch_of(row: Tensor, generator: torch.Generator, size: int = BATCH, length: int = BLOCK) -> dict[str, Tensor]:
    """Stretches of the text, each labeled with its next characters."""
    starts = torch.randint(len(row) - length - 1, (size,), generator=generator)
    found = torch.stack([row[start : start + length + 1] for start in starts.tolist()])
    return {"input_ids": found[:, :-1], "labels": found[:, 1:]}


def spans(model: Any) -> Tensor:
    """(layers, heads) in characters, without the ramp."""
    return torch.stack([span.fraction.detach() * span.limit for span in spans_of(model)])


def train(
    row: Tensor, held_out: Tensor, steps: int, generator: torch.Generator, coefficient: float = 5e-6
) -> tuple[Any, Run]:
    model = create(generator, coefficient)
    own = [span.fraction for span in spans_of(model)]
    rest = [parameter for parameter in model.parameters() if all(parameter is not z for z in own)]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 2e-3}, {"params": own, "lr": 4e-3}], betas=(0.9, 0.98))
    run = Run()
    for step in range(steps + 1):
        if step % run.every == 0:
            run.spans.append(spans(model))
        if step == steps:
            break
        for group, rate in zip(optimizer.param_groups, (2e-3, 4e-3), strict=True):
            group["lr"] = rate * min(1, (step + 1) / 50)
        output = model(**batch_of(row, generator))
        optimizer.zero_grad()
        (output.loss + span_loss(model)).backward()
        clip_gradients(model.parameters())
        optimizer.step()
        clamp_spans(model)
        run.bits.append(float(output.loss.detach()) / math.log(2))
        if step % 100 == 99:
            print(
                f"  step {step + 1}: {sum(run.bits[-100:]) / 100:.3f} bits, spans "
                f"{spans(model).round().int().tolist()}",
                file=sys.stderr,
            )
    model.eval()
    with torch.inference_mode():
        losses = [float(model(**batch_of(held_out, generator)).loss) for _ in range(8)]
    run.held_out = sum(losses) / len(losses) / math.log(2)
    return model, run


def times(model: Any, length: int = 2048, repeats: int = 3) -> dict[str, float]:
    """Processor seconds of one forward pass over ``length`` characters: dense; with the learned
    spans, but over all keys, as it must be where the attention maps are asked for; with all spans
    at the limit; with the learned ones.
    """
    full = copy.deepcopy(model)
    with torch.no_grad():
        for span in spans_of(full):
            span.fraction.fill_(1)
    dense = zoo.create(
        "xlm-clm-enfr-1024",
        task="masked-lm",
        generator=torch.Generator().manual_seed(0),
        max_positions=length,
        **SIZE,
        **PLACE,
    )
    ids = torch.zeros(1, length, dtype=torch.int64)
    found = {}
    forms = {
        "no technique": (dense, False),
        "nothing cut": (model, True),
        "spans at the limit": (full, False),
        "learned spans": (model, False),
    }
    for name, (one, whole) in forms.items():
        one.eval()
        with torch.inference_mode():
            best = math.inf
            for _ in range(repeats + 1):
                start = time.process_time()
                one.model(ids, output_attentions=whole)
                best = min(best, time.process_time() - start)
        found[name] = best
    return found


def draw(run: Run, seconds: dict[str, float], path: Path) -> None:
    with charts.chart(path, 2, 3.4, gridspec_kw={"width_ratios": (2, 1)}) as (left, right):
        table = torch.stack(run.spans)  # (checks, layers, heads)
        steps = [number * run.every for number in range(len(table))]
        for layer in range(table.shape[1]):
            for head in range(table.shape[2]):
                label = f"layer {layer}" if head == 0 else None
                left.plot(steps, table[:, layer, head].tolist(), color=f"C{layer}", linewidth=1.2, label=label)
        left.set(title="Each head's span", xlabel="step", ylabel="characters back")
        left.legend()
        colors = [charts.GRAY, charts.ORANGE, "#e0a875", charts.BLUE]
        right.barh([*seconds], [value * 1000 for value in seconds.values()], color=colors)
        right.invert_yaxis()
        right.set(title="2,048 characters", xlabel="ms, one thread")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=Path, default=Path("curves"), help="the folder for the drawing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train_texts, held_out = texts.split(texts.news(1000))
    start = time.process_time()
    model, run = train(
        characters(train_texts), characters(held_out), options.steps, torch.Generator().manual_seed(options.seed)
    )
    print(
        f"{len(run.bits)} steps in {time.process_time() - start:.0f} s: {run.bits[0]:.2f} -> {run.held_out:.2f} bits a "
        "character, held out"
    )
    for layer, row in enumerate(spans(model).round().int().tolist()):
        print(f"layer {layer}: spans of {', '.join(map(str, row))} characters, {RAMP} more on the ramp")
    seconds = times(model)
    print(", ".join(f"{name} {value * 1000:.0f} ms" for name, value in seconds.items()))
    draw(run, seconds, options.images / "adaptive-span.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
