"""The span of a text that answers a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
import torch
from torch import Tensor

from zoo.inference.pipeline.base import Pipeline, Result
from zoo.inference.pipeline.classification import is_pair


class QuestionAnsweringPipeline(Pipeline):
    """``(question, text)`` -> ``{"answer", "score", "start", "end", "no_answer"}``, with places in the text.

    A long text is read in windows that overlap, the question in front of each. The answer is the span
    of the highest sum of its first and last token's logits, of at most ``longest`` tokens; its score is the product of
    their probabilities among the tokens of all windows. ``no_answer``: by how much the first token
    scores above it, for models that were taught to point there where a text has no answer (the lowest of the
    windows, as BERT has it). An empty text has the answer "" of score 0.
    """

    task = "question-answering"
    meanings = ("question", "context")
    row = "a tuple of a question and a text"
    overlap = 128
    longest = 30

    @classmethod
    def is_row(cls, value: Any) -> bool:
        return is_pair(value)

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        return values["question"], values["context"]

    def pieces(self, rows: Sequence[Any]) -> list[list[tokenizers.Encoding]]:
        return [self.tokenizer.windows(question, text, overlap=self.overlap) for question, text in rows]

    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        output = self.model(**batch)
        return list(torch.stack((output.start_logits, output.end_logits), 1).float().cpu())

    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        text = self.tokenizer.pre_step(row[1])
        logits = [
            scores[:, torch.tensor([s == 1 for s in piece.sequence_ids] + [False] * (scores.shape[1] - len(piece.ids)))]
            for piece, scores in zip(pieces, found, strict=True)
        ]
        spans = [best_span(scores, self.longest) for scores in logits]
        best = max(range(len(spans)), key=lambda window: spans[window][0])
        score, first, last = spans[best]
        nothing = min(float(scores[:, 0].sum()) for scores in found) - score
        if first > last:
            return {"answer": "", "score": 0.0, "start": None, "end": None, "no_answer": None}
        inside = [offset for offset, s in zip(pieces[best].offsets, pieces[best].sequence_ids, strict=True) if s == 1]
        start, end = inside[first][0], inside[last][1]
        start += len(text[start:end]) - len(text[start:end].lstrip())
        weight = float(torch.cat(logits, 1).logsumexp(1).sum())
        probability = float(torch.tensor(score - weight).exp())
        where = {"start": start, "end": end} if text == row[1] else {"start": None, "end": None}
        return {"answer": text[start:end], "score": probability, **where, "no_answer": nothing}


def best_span(logits: Tensor, longest: int) -> tuple[float, int, int]:
    """The highest sum of a first and a last token's logits, and their places; the last before the
    first where there is no token. ``logits``: (first and last, tokens).
    """
    count = logits.shape[1]
    if not count:
        return float("-inf"), 0, -1
    allowed = torch.ones(count, count, dtype=torch.bool).triu().tril(longest - 1)
    sums = (logits[0][:, None] + logits[1][None]).masked_fill(~allowed, float("-inf"))
    place = int(sums.argmax())
    return float(sums.flatten()[place]), place // count, place % count
