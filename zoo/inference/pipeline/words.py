"""The words behind the masks of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
import torch

from zoo.errors import InputError
from zoo.inference.pipeline.base import Pipeline, Result
from zoo.tokenization import Tokenizer


class FillMaskPipeline(Pipeline):
    """A text with masks -> ``{"masks": [[{"token", "id", "probability"}]]}``: for each mask the ``top``
    likeliest tokens, likeliest first. A text without a mask is refused.
    """

    task = "masked-lm"

    def __init__(self, model: Any, tokenizer: Tokenizer | None = None, *, batch_size: int = 8, top: int = 5) -> None:
        super().__init__(model, tokenizer, batch_size=batch_size)
        if self.tokenizer.mask_token_id is None:
            raise InputError("this model's tokenizer has no mask token, so there is nothing to fill")
        if top < 1:
            raise InputError(f"top must be at least 1, got {top!r}")
        self.top = top

    @property
    def mask(self) -> str:
        """The token that is written where a word is missing."""
        return str(self.tokenizer.special.mask)

    def pieces(self, rows: Sequence[Any]) -> list[list[tokenizers.Encoding]]:
        """The texts, each with a mask."""
        for row in rows:
            if self.mask not in row:
                raise InputError(f"{row!r:.80} holds no mask token; write {self.mask} where a word is missing")
        return super().pieces(rows)

    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        places = batch["input_ids"].eq(self.tokenizer.mask_token_id or 0)
        probabilities = self.model(**batch).prediction_logits[places].float().softmax(-1)  # (masks, vocabulary)
        best = probabilities.topk(min(self.top, probabilities.shape[1]))
        counts = places.sum(1).tolist()
        return list(zip(best.indices.cpu().split(counts), best.values.cpu().split(counts), strict=True))

    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        ((ids, probabilities),) = found
        if len(ids) < row.count(self.mask):
            raise InputError(
                f"a mask lies behind the {self.tokenizer.max_length} tokens that the model reads; shorten {row!r:.80}"
            )
        return {
            "masks": [
                [
                    {"token": self.tokenizer.id_to_token(i), "id": i, "probability": p}
                    for i, p in zip(numbers, values, strict=True)
                ]
                for numbers, values in zip(ids.tolist(), probabilities.tolist(), strict=True)
            ]
        }
