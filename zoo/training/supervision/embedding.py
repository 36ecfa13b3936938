"""Vectors of texts that belong together lie close to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.data.tables import Row
from zoo.errors import InputError
from zoo.tasks.metrics.language import pearson_correlation, spearman_correlation
from zoo.training.supervision.base import Batch, Supervision, number_of, rows_of, stacked

SCALE = 20.0


class Similarity(Supervision):
    """``text`` and ``pair``; with ``score``, how alike they are, the order of the cosines follows that
    of the scores (CoSENT, Su 2022: log(1 + sum exp(20 (cos_j - cos_i))) over pairs i more alike than
    j). Without, each text's own pair is to be the closest of the batch (Henderson et al., 2017,
    arXiv:1705.00652, with cosines times 20).
    """

    needed = ("text", "pair")
    optional = ("score",)

    @property
    def measure(self) -> str:
        return "spearman" if "score" in self.columns else "accuracy"

    def batch(self, examples: Sequence[Row]) -> Batch:
        sides = [self.columns.text(row, name) for name in ("text", "pair") for row in examples]
        batch = self.encoded(sides)
        if "score" not in self.columns:
            return batch
        scores = [number_of(self.columns.of(row, "score")) for row in examples]
        if None in scores:
            raise InputError(f"a score must be a number; row {scores.index(None)} of the batch has none")
        return {**batch, "scores": torch.tensor([float(score or 0) for score in scores])}

    def run(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        output = model(**{name: value for name, value in batch.items() if name != "scores"})
        first, second = F.normalize(output.embedding.float(), dim=1).chunk(2)
        if "scores" in batch:
            return cosent((first * second).sum(1), batch["scores"]), output
        return F.cross_entropy(SCALE * first @ second.T, torch.arange(len(first), device=first.device)), output

    def results(self, output: Any, batch: Batch, examples: Sequence[Row]) -> list[Any]:
        first, second = output.embedding.detach().float().chunk(2)
        scores: Sequence[Any] = batch["scores"].tolist() if "scores" in batch else [0.0] * len(examples)
        return list(zip(rows_of(first), rows_of(second), scores, strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        if "score" not in self.columns:
            return {"accuracy": closest([row[0] for row in results], [row[1] for row in results])}
        first, second = (F.normalize(stacked([row[side] for row in results]), dim=1) for side in (0, 1))
        cosines, scores = (first * second).sum(1).double(), torch.tensor([row[2] for row in results]).double()
        return {
            "spearman": spearman_correlation(cosines, scores),
            "pearson": pearson_correlation(cosines, scores),
        }


class Translations(Supervision):
    """``text`` and ``pair``, its translation: the two views of `zoo.tasks.views`. A text's own translation
    is to be the closest of all.
    """

    needed = ("text", "pair")
    optional = ()

    def batch(self, examples: Sequence[Row]) -> Batch:
        batch = self.encoded([self.columns.text(row, name) for row in examples for name in ("text", "pair")])
        return {n: x.unflatten(0, (-1, 2)) if isinstance(x, Tensor) else x for n, x in batch.items()}

    def results(self, output: Any, batch: Batch, examples: Sequence[Row]) -> list[Any]:
        return list(zip(*(rows_of(output.scores[side]) for side in ("query", "key")), strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        return {"accuracy": closest([row[0] for row in results], [row[1] for row in results])}


def closest(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The share of vectors whose own partner has the highest cosine of all."""
    one, other = (F.normalize(stacked(side), dim=1) for side in (first, second))
    best = (one @ other.T).argmax(1)
    return float((best == torch.arange(len(best))).double().mean())


def cosent(cosines: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum over all pairs with score_i > score_j of exp(20 (cos_j - cos_i))): cosines (n,),
    scores (n,).
    """
    above = scores[:, None] > scores
    differences = SCALE * (cosines[None] - cosines[:, None])  # [i, j] = cos_j - cos_i
    terms = differences.masked_fill(~above, float("-inf")).flatten()
    return torch.logsumexp(torch.cat([terms, terms.new_zeros(1)]), 0)
