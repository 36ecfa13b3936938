"""The right one of several texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zoo.data.tables import Columns, Row, cells
from zoo.errors import InputError
from zoo.tasks.metrics.language import accuracy
from zoo.training.supervision.base import Batch, Supervision, label_number


class Choices(Supervision):
    """``text`` and ``choices``, a list of texts that may follow it, and ``label``: the number of the
    right one, from 0. A batch's rows need as many choices each.
    """

    needed = ("text", "choices", "label")
    optional = ()

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        return dict(options)

    def examples(self, row: Row) -> Iterable[Any]:
        choices = [str(choice) for choice in cells(self.columns.of(row, "choices"))]
        if len(choices) < 2:
            raise InputError(f"a row needs at least two choices, got {choices}")
        number = label_number(self.columns.of(row, "label"), None, len(choices))
        return ((self.columns.text(row, "text"), choices, number),)

    def size(self, example: Any) -> int:
        return len(example[0]) + max(map(len, example[1]))

    def batch(self, examples: Sequence[Any]) -> Batch:
        counts = {len(choices) for _, choices, _ in examples}
        if len(counts) > 1:
            raise InputError(f"all rows need as many choices, got {min(counts)} and {max(counts)}")
        count = counts.pop()
        flat = self.encoded(
            [text for text, choices, _ in examples for _ in choices], [c for _, choices, _ in examples for c in choices]
        )
        inputs = {name: value.unflatten(0, (-1, count)) for name, value in flat.items() if name != "lengths"}
        return {**inputs, "labels": torch.tensor([number for *_, number in examples])}

    def results(self, output: Any, batch: Batch, examples: Sequence[Any]) -> list[Any]:
        return list(zip(output.logits.detach().argmax(1).tolist(), batch["labels"].tolist(), strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        found, wanted = torch.tensor(results).unbind(1)
        return {"accuracy": accuracy(found, wanted)}
