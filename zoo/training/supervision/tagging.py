"""A label for each word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zoo.data.aligned import Words, encode_words
from zoo.data.masking import IGNORED
from zoo.data.tables import Columns, Row, cells
from zoo.errors import InputError
from zoo.tasks.metrics.language import accuracy, span_scores
from zoo.training.supervision.base import Batch, Supervision, label_names, label_number


class Tagging(Supervision):
    """``words`` and as many ``tags``: lists, or one cell with blanks between them. The first token of
    a word answers for it; the others count for nothing.
    """

    needed = ("words", "tags")
    optional = ()

    @property
    def spans(self) -> bool:
        """Whether the tags tell the beginnings of entities, as B-PER does."""
        return any(name.startswith("B-") for name in self.options.get("labels") or ())

    @property
    def measure(self) -> str:
        return "f1" if self.spans else "accuracy"

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        if "labels" in options or "num_labels" in options:
            return dict(options)
        return {**options, "labels": label_names((t for row in rows for t in cells(columns.of(row, "tags"))), "tag")}

    def examples(self, row: Row) -> Iterable[Any]:
        words, tags = cells(self.columns.of(row, "words")), cells(self.columns.of(row, "tags"))
        if len(words) != len(tags) or not words:
            raise InputError(f"a row has {len(words)} words and {len(tags)} tags; each word needs one: {words[:5]}")
        names, count = self.options.get("labels"), self.options["num_labels"]
        encoded = encode_words(self.tokenizer, [str(word) for word in words], self.max_length)
        return ((encoded, [label_number(tag, names, count, "tag") for tag in tags]),)

    def size(self, example: tuple[Words, list[int]]) -> int:
        return len(example[0].ids)

    def batch(self, examples: Sequence[tuple[Words, list[int]]]) -> Batch:
        batch = self.padded([words for words, _ in examples])
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for number, (words, tags) in enumerate(examples):
            for place, tag in zip(words.first, tags, strict=True):
                if place is not None:
                    labels[number, place] = tag
        return {**batch, "labels": labels}

    def results(self, output: Any, batch: Batch, examples: Sequence[tuple[Words, list[int]]]) -> list[Any]:
        found = output.logits.detach().argmax(-1).cpu()
        kept = []
        for row, (words, tags) in enumerate(examples):
            placed = [
                (int(found[row, place]), tag) for place, tag in zip(words.first, tags, strict=True) if place is not None
            ]
            kept.append(placed)
        return kept

    def figures(self, results: Sequence[list[tuple[int, int]]]) -> dict[str, float]:
        pairs = torch.tensor([pair for sentence in results for pair in sentence])
        figures = {"accuracy": accuracy(pairs[:, 0], pairs[:, 1])}
        if self.spans:
            names = self.options["labels"]
            sides = [[[names[pair[side]] for pair in sentence] for sentence in results] for side in (0, 1)]
            figures |= span_scores(*sides)
        return figures
