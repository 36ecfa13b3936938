"""A label for a text or a pair: one of several, several at once, or a number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zoo.data.tables import Columns, Row
from zoo.errors import InputError
from zoo.tasks.metrics.language import (
    accuracy,
    binary_f1,
    class_scores,
    matthews_correlation,
    pearson_correlation,
    spearman_correlation,
)
from zoo.training.supervision.base import Batch, Supervision, label_names, label_number, number_of, rows_of, stacked


class TextClassification(Supervision):
    """``text``, ``pair`` where there is one, and ``label``: a name or a whole number is one of
    several classes, a number with a fraction a value (regression), a list of names several at once.
    """

    @property
    def kind(self) -> str:
        said = self.options.get("problem_type")
        return said or ("regression" if self.options.get("num_labels") == 1 else "single-label")

    @property
    def measure(self) -> str:
        return {"regression": "spearman", "multi-label": "micro_f1"}.get(self.kind, "accuracy")

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        found = dict(options)
        values = [columns.of(row, "label") for row in rows]
        kind = found.get("problem_type")
        lists = [_listed(value) for value in values]
        if kind is None:
            if any(entry is not None for entry in lists):
                kind = "multi-label"
            elif any(isinstance(number_of(value), float) for value in values):
                kind = "regression"
            else:
                kind = "single-label"
            if kind != "single-label":
                found["problem_type"] = kind
        if "labels" in found or "num_labels" in found:
            return found
        if kind == "regression":
            return {**found, "num_labels": 1}
        each = [name for entry in lists for name in entry or ()] if kind == "multi-label" else values
        names = label_names(each)
        if kind == "single-label" and len(names) < 2:
            raise InputError(
                f"all rows have the label {names[0]!r}; a classifier needs two or more (labels=[...] names those that "
                "the table lacks)"
            )
        return {**found, "labels": names}

    def examples(self, row: Row) -> Iterable[Row]:
        self._label(self.columns.of(row, "label"))  # a wrong one is refused with its row
        return (row,)

    def batch(self, examples: Sequence[Row]) -> Batch:
        pairs = [self.columns.text(row, "pair") for row in examples] if "pair" in self.columns else None
        batch = self.encoded([self.columns.text(row, "text") for row in examples], pairs)
        labels = [self._label(self.columns.of(row, "label")) for row in examples]
        kind = torch.int64 if self.kind == "single-label" else torch.float32
        return {**batch, "labels": torch.tensor(labels, dtype=kind)}

    def _label(self, value: Any) -> Any:
        count, names = self.options.get("num_labels", 2), self.options.get("labels")
        if self.kind == "single-label":
            return label_number(value, names, count)
        if self.kind == "regression":
            number = number_of(value)
            if number is None:
                raise InputError(f"a label must be a number, as the others are; got {value!r}")
            return float(number)
        held = {label_number(name, names, count) for name in _listed(value) or ()}
        return [float(place in held) for place in range(count)]

    def results(self, output: Any, batch: Batch, examples: Sequence[Row]) -> list[Any]:
        return list(zip(rows_of(output.logits), rows_of(batch["labels"]), strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        logits, labels = (stacked(side) for side in zip(*results, strict=True))
        if self.kind == "regression":
            values = logits[:, 0].double()
            return {
                "spearman": spearman_correlation(values, labels.double()),
                "pearson": pearson_correlation(values, labels.double()),
                "mean_squared_error": float((values - labels.double()).square().mean()),
            }
        if self.kind == "multi-label":
            found, wanted = logits > 0, labels > 0.5
            return {**class_scores(found, wanted), "accuracy": float((found == wanted).all(1).double().mean())}
        found = logits.argmax(1)
        figures = {"accuracy": accuracy(found, labels), **class_scores(found, labels)}
        del figures["micro_f1"]  # of one label each it is the accuracy
        if logits.shape[1] == 2:
            figures["f1"] = binary_f1(found, labels)
        return {**figures, "mcc": matthews_correlation(found, labels)}


def _listed(value: Any) -> list[Any] | None:
    """Several labels: a list, or a cell that writes one as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return list(value) if isinstance(value, list | tuple) else None
