"""Labels for a text or a pair, and the right one of several texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
import torch

from zoo.errors import InputError
from zoo.inference.pipeline.base import Pipeline, Result, label_names


class SequenceClassificationPipeline(Pipeline):
    """A text, or a pair of texts as a tuple -> its labels and scores.

    One label: ``{"label", "score", "scores"}``, the likeliest, its probability, and the probability of
    each by name. Several at once (the task's ``problem_type`` is "multi-label"): ``{"labels",
    "scores"}``, those of a probability of at least one half. Regression: ``{"score"}``, or ``{"scores"}`` by name
    where the head has several outputs.
    """

    task = "sequence-classification"
    more_meanings = ("pair",)
    row = "a text (str) or a pair of texts (a tuple of two)"

    @classmethod
    def is_row(cls, value: Any) -> bool:
        return isinstance(value, str) or is_pair(value)

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        return (values["text"], values["pair"]) if "pair" in values else values["text"]

    def pieces(self, rows: Sequence[Any]) -> list[list[tokenizers.Encoding]]:
        if all(isinstance(row, str) for row in rows):
            return super().pieces(rows)
        if not all(is_pair(row) for row in rows):
            raise InputError("texts and pairs are mixed; give one or the other")
        first, second = zip(*rows, strict=True)
        return [[encoding] for encoding in self.tokenizer.encodings(list(first), list(second))]

    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        logits = self.model(**batch).logits.float()
        kind = self.model.options.get("problem_type")
        if kind == "regression" or (kind is None and logits.shape[1] == 1):
            return logits.tolist()
        return (logits.sigmoid() if kind == "multi-label" else logits.softmax(-1)).tolist()

    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        (values,) = found
        kind, names = self.model.options.get("problem_type"), label_names(self.model, len(values))
        scores = dict(zip(names, values, strict=True))
        if kind == "multi-label":
            return {"labels": [name for name, score in scores.items() if score >= 0.5], "scores": scores}
        if kind == "regression" or len(values) == 1:
            return {"score": values[0]} if len(values) == 1 else {"scores": scores}
        best = max(range(len(values)), key=values.__getitem__)
        return {"label": names[best], "score": values[best], "scores": scores}


class MultipleChoicePipeline(Pipeline):
    """``(text, [choices])`` -> ``{"choice", "score", "scores"}``: the number of the likeliest, its
    probability, and that of each.
    """

    task = "multiple-choice"
    meanings = ("text", "choices")
    row = "a tuple of a text and the list of its choices"

    @classmethod
    def is_row(cls, value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and len(value) == 2
            and isinstance(value[0], str)
            and isinstance(value[1], list | tuple)
            and len(value[1]) > 0
            and all(isinstance(choice, str) for choice in value[1])
        )

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        return values["text"], values["choices"]

    def pieces(self, rows: Sequence[Any]) -> list[list[tokenizers.Encoding]]:
        texts = [text for text, choices in rows for _ in choices]
        flat = iter(self.tokenizer.encodings(texts, [choice for _, choices in rows for choice in choices]))
        return [[next(flat) for _ in choices] for _, choices in rows]

    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        # each choice is scored by itself, so a batch of them may come from several rows
        return self.model(**{name: tensor.unsqueeze(0) for name, tensor in batch.items()}).logits[0].float().tolist()

    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        scores = torch.tensor(found).softmax(0).tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        return {"choice": best, "score": scores[best], "scores": scores}


def is_pair(value: Any) -> bool:
    """Whether a value is a pair of texts."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)
