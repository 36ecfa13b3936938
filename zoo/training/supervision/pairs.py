"""Do two texts belong together: the sentence objectives of BERT and ALBERT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from zoo.data.tables import Row
from zoo.tasks.metrics.language import accuracy
from zoo.training.supervision.base import Batch, Supervision, label_number


class NextSentence(Supervision):
    """``text``, ``pair`` and ``label``: 0 = the pair follows the text, 1 = it doesn't."""

    needed = ("text", "pair", "label")
    optional = ()
    labels: ClassVar[str] = "next_sentence_label"
    logits: ClassVar[str] = "seq_relationship_logits"

    def batch(self, examples: Sequence[Row]) -> Batch:
        texts, pairs = ([self.columns.text(row, name) for row in examples] for name in ("text", "pair"))
        numbers = [label_number(self.columns.of(row, "label"), None, 2) for row in examples]
        return {**self.encoded(texts, pairs), self.labels: torch.tensor(numbers)}

    def results(self, output: Any, batch: Batch, examples: Sequence[Row]) -> list[Any]:
        found = getattr(output, self.logits).detach().argmax(1).tolist()
        return list(zip(found, batch[self.labels].tolist(), strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        found, wanted = torch.tensor(results).unbind(1)
        return {"accuracy": accuracy(found, wanted)}


class SentenceOrder(NextSentence):
    """``text``, ``pair`` and ``label``: 0 = in their order, 1 = swapped."""

    labels = "sentence_order_label"
    logits = "sop_logits"
