"""Fine-tune the trained MiniLM on two real sets, beside the same run by transformers' Trainer.

    python -m benchmarks.fine_tuning [--seeds 3] [--train 1000] [--test 500] [--epochs 2]

Sets: the topic of a BBC news text from its headline and first sentence (5 classes), and the language of
a message of Django's user interface (10 classes). Both sides start from the same weights, with the same
rows, number of updates, schedule, AdamW and batch size, and pad to the longest text of a batch; they
take turns, seed by seed. The time is that of training alone.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import zoo
from benchmarks.timing import machine, table
from examples.texts import NEWS, sentences_of, translations
from zoo.checkpoints.fetching.fetch import fetch
from zoo.training import evaluate, fit
from zoo.training.supervision.base import label_names

BASE = "minilm-l6-h384.all-minilm-l6-v2"
TASK = "sequence-classification"
LANGUAGES = ("de", "es", "fr", "it", "nl", "pl", "pt", "sv", "tr", "fi")
LENGTH = 128
Row = dict[str, str]


def topics() -> list[Row]:
    """BBC news: the folder of a text is its topic."""

    found = []
    for folder in sorted(path for path in fetch(NEWS).iterdir() if path.is_dir()):
        for path in sorted(folder.glob("*.txt")):
            sentences = sentences_of(path.read_text(encoding="latin-1"))
            found.append({"text": " ".join(sentences[:2]), "label": folder.name})
    return found


def languages() -> list[Row]:
    """Django's messages, each in one of the languages."""
    aligned = translations(LANGUAGES)
    return [{"text": text, "label": language} for message in aligned for language, text in message.items() if text]


def split(rows: list[Row], train: int, test: int) -> tuple[list[Row], list[Row]]:
    """Drawn once, the same for all seeds."""
    rows = list(rows)
    random.Random(0).shuffle(rows)
    return rows[:train], rows[train : train + test]


def with_zoo(folder: Path, train: list[Row], test: list[Row], labels: list[str], seed: int, chosen: Any) -> Any:
    torch.manual_seed(seed)
    model = zoo.load(folder, task=TASK, labels=labels)
    tokenizer = zoo.tokenizer(folder)
    begun = time.perf_counter()
    settings = {"epochs": chosen.epochs, "batch_size": chosen.batch_size, "lr": chosen.lr, "max_length": LENGTH}
    fit(model, train, tokenizer=tokenizer, seed=seed, **settings)
    seconds = time.perf_counter() - begun
    return evaluate(model, test, tokenizer=tokenizer, max_length=LENGTH)["accuracy"], seconds


def with_trainer(folder: Path, train: list[Row], test: list[Row], labels: list[str], seed: int, chosen: Any) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.set_seed(seed)
    model = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
    names = {name: number for number, name in enumerate(labels)}

    def examples(rows: list[Row]) -> list[dict[str, Any]]:
        encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=LENGTH)
        return [
            {**{name: values[n] for name, values in encoded.items()}, "labels": names[row["label"]]}
            for n, row in enumerate(rows)
        ]

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                output_dir=out,
                num_train_epochs=chosen.epochs,
                per_device_train_batch_size=chosen.batch_size,
                per_device_eval_batch_size=64,
                learning_rate=chosen.lr,
                warmup_steps=0.1,
                weight_decay=0.01,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
                seed=seed,
            ),
            train_dataset=examples(train),  # type: ignore[arg-type]
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        seconds = time.perf_counter() - begun
        found = trainer.predict(examples(test))  # type: ignore[arg-type]
    hits = found.predictions.argmax(1) == found.label_ids
    return float(hits.mean()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4)
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        zoo.save(zoo.load(BASE), ours, zoo.tokenizer(BASE))
        zoo.convert(ours, theirs, to="hf-bert")
        for title, rows in (("topic of a BBC text", topics()), ("language of a message", languages())):
            train, test = split(rows, chosen.train, chosen.test)
            labels = label_names(row["label"] for row in rows)
            found: dict[str, list[tuple[float, float]]] = {"zoo": [], "Trainer": []}
            for seed in range(chosen.seeds):
                found["zoo"].append(with_zoo(ours, train, test, labels, seed, chosen))
                found["Trainer"].append(with_trainer(theirs, train, test, labels, seed, chosen))
            times = {side: statistics.median(seconds for _, seconds in runs) for side, runs in found.items()}
            for side, runs in found.items():
                scores = [score for score, _ in runs]
                ratio = f"{times['Trainer'] / times[side]:.2f}"
                each = ", ".join(f"{score:.3f}" for score in scores)
                lines.append([title, side, f"{statistics.mean(scores):.3f} ({each})", f"{times[side]:.1f}", ratio])
    print(machine())
    table("Fine-tuning MiniLM", ["set", "side", "accuracy (by seed)", "seconds", "times as fast"], lines)


if __name__ == "__main__":
    main()
