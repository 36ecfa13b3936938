"""Does a small student learn more from a teacher than alone? Headlines of BBC news, five topics, a
trained MiniLM as the teacher.

The teacher (6 layers) is tuned on a few labelled headlines. The student has two of the untuned
MiniLM's layers and learns the same headlines in three ways, from the same start with the same
number of steps:

    alone          cross-entropy on the labels
    soft targets   half of that, half the teacher's softened distribution on the same headlines
    transfer set   the teacher's softened distribution alone, on headlines without labels

Split, drawn anew by each seed: 150 labelled headlines, 1,200 without labels, 600 to test. Headlines
alone are few words, so that nothing reaches the ceiling that whole texts reach.

    python examples/distillation_table.py [--seeds 3] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from texts import NEWS
from torch import Tensor

import zoo
from zoo.checkpoints.fetching.fetch import fetch
from zoo.training.distillation.students import student_of

LABELLED, UNLABELLED, TEST = 150, 1200, 600
TEMPERATURE, STEPS, BATCH = 2.0, 240, 16
Example = tuple[str, int]


def headlines() -> list[Example]:
    """(headline, topic) of every text."""
    topics = [folder for folder in sorted(fetch(NEWS).iterdir()) if folder.is_dir()]
    found = {}
    for topic, folder in enumerate(topics):
        for path in sorted(folder.glob("*.txt")):
            found.setdefault(
                path.read_text(encoding="latin-1").split("\n", 1)[0].strip(), topic
            )  # some texts stand there twice
    return list(found.items())


def train(
    model: Any,
    objective: Callable[[dict[str, Tensor], Tensor], Tensor],
    data: Sequence[Example],
    tokenizer: Any,
    seed: int,
) -> Any:
    """``STEPS`` steps of AdamW with a linear decay, on batches drawn by the seed."""
    order = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    model.train()
    for _ in range(STEPS):
        chosen = order.sample(list(data), BATCH)
        loss = objective(tokenizer([text for text, _ in chosen]), torch.tensor([topic for _, topic in chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def scores(model: Any, data: Sequence[Example], tokenizer: Any) -> tuple[float, float]:
    """Accuracy and macro-F1."""
    guesses: list[int] = []
    with torch.inference_mode():
        for start in range(0, len(data), 64):
            guesses += model(**tokenizer([text for text, _ in data[start : start + 64]])).logits.argmax(1).tolist()
    truth = [topic for _, topic in data]
    f1 = []
    for topic in sorted(set(truth)):
        both = sum(g == t == topic for g, t in zip(guesses, truth, strict=True))
        f1.append(2 * both / max(1, guesses.count(topic) + truth.count(topic)))
    return sum(g == t for g, t in zip(guesses, truth, strict=True)) / len(truth), statistics.mean(f1)


def run(source: str, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy and macro-F1 of the teacher and of the student in its three ways."""
    torch.manual_seed(seed)
    data = headlines()
    random.Random(seed).shuffle(data)
    labelled, rest = data[:LABELLED], data[LABELLED:]
    unlabelled, test = rest[:UNLABELLED], rest[UNLABELLED : UNLABELLED + TEST]
    tokenizer = zoo.tokenizer(source)
    if source in zoo.list_models(source):
        teacher = zoo.create(source, pretrained=True, task="sequence-classification", num_labels=5)
    else:
        teacher = zoo.load(source, task="sequence-classification", num_labels=5)
    start = student_of(teacher, (0, 5))  # the layers of the untuned model
    train(teacher, lambda batch, labels: teacher(**batch, labels=labels).loss, labelled, tokenizer, seed)
    found = {"teacher": teacher}
    for name, data_of, weights in (
        ("alone", labelled, None),
        ("soft targets", labelled, (0.5, 0.5)),
        ("transfer set", unlabelled, (1.0, 0.0)),
    ):
        student = student_of(start, (0, 1))
        if weights is None:
            objective = lambda batch, labels, student=student: student(**batch, labels=labels).loss  # noqa: E731
        else:
            terms = [zoo.SoftTargets(temperature=TEMPERATURE, weight=weights[0], hard_weight=weights[1])]
            distillation = zoo.Distillation(teacher, student, terms)
            objective = lambda batch, labels, d=distillation: d(batch, labels=labels)[0]  # noqa: E731
        found[name] = train(student, objective, data_of, tokenizer, seed)
    result = {}
    for name, model in found.items():
        accuracy, f1 = scores(model, test, tokenizer)
        result[name] = {"accuracy": accuracy, "macro_f1": f1, "parameters": model.num_parameters()}
    return result


def table(runs: Sequence[dict[str, dict[str, float]]]) -> str:
    """Mean, lowest and highest over the seeds, as a Markdown table."""
    lines = ["| model | accuracy | macro-F1 | parameters |", "| --- | --- | --- | --- |"]
    for name in runs[0]:
        cells = []
        for key in ("accuracy", "macro_f1"):
            values = [100 * run[name][key] for run in runs]
            cells.append(f"{statistics.mean(values):.1f} ({min(values):.1f} .. {max(values):.1f})")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {int(runs[0][name]['parameters']):,} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="minilm-l6-h384.all-minilm-l6-v2")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.perf_counter()
    runs = [run(options.model, seed) for seed in range(options.seeds)]
    if options.json:
        print(json.dumps({"runs": runs, "seconds": time.perf_counter() - started}, indent=1))
    else:
        print(table(runs))
        print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
