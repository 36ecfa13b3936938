"""One vector for each text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
import torch

from zoo.inference.pipeline.base import Pipeline, Result


class SentenceEmbeddingPipeline(Pipeline):
    """A text -> ``{"embedding"}``, an array (size,) of float32."""

    task = "sentence-embedding"

    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        return list(self.model(**batch).embedding.float().cpu().numpy())

    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        return {"embedding": found[0]}
