"""Captions beside others that were rewritten: some say the same, some are wrong in a word."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.data.masking import IGNORED
from zoo.data.tables import Columns, Row
from zoo.errors import InputError
from zoo.training.supervision.base import Batch
from zoo.training.supervision.pictures import Pictured


class Rewritten(Pictured):
    """``text``, the caption of ``image``, ``wrong``, captions that are not true of it, and optionally ``rewritten``,
    others that are (UNIMO: back-translations; words exchanged by a scene graph): lists, or cells that hold a list as
    JSON.

    Choices of a picture: its caption, the rewritten ones, the wrong ones; -100 fills rows that have fewer. With the
    option ``ranking="contrast"`` several are right; other losses know one, and `rewritten` is refused.
    """

    needed = ("text", "image", "wrong")
    optional = ("rewritten",)

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        return dict(options)

    def examples(self, row: Row) -> Iterable[tuple[Row, list[str], int]]:
        right = [self.columns.text(row, "text"), *self._texts(row, "rewritten")]
        wrong = self._texts(row, "wrong")
        if not wrong:
            raise InputError("a row has no wrong caption; give at least one")
        if len(right) > 1 and self.options.get("ranking") != "contrast":
            raise InputError(
                'rewritten captions make several right ones, which ranking="contrast" learns; set it, or leave the '
                "column out"
            )
        return ((row, [*right, *wrong], len(right)),)

    def size(self, example: Any) -> int:
        return max(map(len, example[1]))

    def batch(self, examples: Sequence[Any]) -> Batch:
        most = max(len(texts) for _, texts, _ in examples)
        filled = [texts + [texts[0]] * (most - len(texts)) for _, texts, _ in examples]
        batch = self.encoded([text for texts in filled for text in texts])
        lengths = batch.pop("lengths")
        folded = {name: value.unflatten(0, (-1, most)) for name, value in batch.items()}
        return {
            **folded,
            "lengths": lengths,
            **self.seen([row for row, _, _ in examples]),
            "labels": self.right_choices(examples, most),
        }

    def right_choices(self, examples: Sequence[Any], most: int) -> Tensor:
        """(batch, choices) for several right ones, else (batch,) the number of the right one."""
        if self.options.get("ranking") != "contrast":
            return torch.zeros(len(examples), dtype=torch.int64)
        rows = [
            [1] * right + [0] * (len(texts) - right) + [IGNORED] * (most - len(texts)) for _, texts, right in examples
        ]
        return torch.tensor(rows)

    def results(self, output: Any, batch: Batch, examples: Sequence[Any]) -> list[Any]:
        scores = output.logits.detach().float().cpu()
        return [
            float(row[: len(texts)].argmax() < right) for row, (_, texts, right) in zip(scores, examples, strict=True)
        ]

    def figures(self, results: Sequence[float]) -> dict[str, float]:
        return {"accuracy": sum(results) / len(results)}

    def _texts(self, row: Row, meaning: str) -> list[str]:
        if meaning not in self.columns:
            return []
        value = self.columns.of(row, meaning)
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.lstrip().startswith("[") else [value] if value.strip() else []
            except ValueError:
                raise InputError(f"{meaning} must be a list of texts, or JSON of one, got {value!r:.80}") from None
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text.strip() for text in value):
            raise InputError(f"{meaning} must be a list of texts, got {value!r:.80}")
        return list(value)
