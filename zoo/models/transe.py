"""TransE (Bordes et al., 2013): a fact (head, relation, tail) holds where ``head + relation ≈
tail``.

    d(h, r, t) = || h + r - t ||_p     small = true; p = 1 or 2; ``normalize``: vectors scaled to length one first
    score      = margin - d, where a margin is given: large = true

Its vectors are what ERNIE (Tsinghua) reads. Losses take the scores of n positives (n, 1) and of
their k negatives (n, k); they are named for what OpenKE calls them.

Trap: OpenKE normalizes relations too, the paper entities alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers.embeddings import check_ids
from zoo.models.base.config import Config, check_positive


@dataclass(frozen=True, kw_only=True)
class TransEConfig(Config):
    num_entities: int
    num_relations: int
    size: int = 100
    p_norm: int = 1
    normalize: bool = True
    margin: float | None = None  # scores are margin - distance where it is given
    epsilon: float | None = None  # with a margin: vectors start uniform in ±(margin + epsilon) / size

    def check(self) -> None:
        check_positive(self, "num_entities", "num_relations", "size", "p_norm")
        if self.epsilon is not None and self.margin is None:
            raise ConfigError(f"epsilon={self.epsilon} says how vectors start together with a margin; give one")


class TransE(nn.Module):
    """Two tables of vectors. `init_weights` draws them: Xavier's uniform, or OpenKE's own range
    where margin and epsilon are given.
    """

    def __init__(self, config: TransEConfig) -> None:
        super().__init__()
        self.config = config
        self.entities = nn.Embedding(config.num_entities, config.size)
        self.relations = nn.Embedding(config.num_relations, config.size)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fresh vectors."""
        c = self.config
        for table in (self.entities, self.relations):
            if c.margin is not None and c.epsilon is not None:
                reach = (c.margin + c.epsilon) / c.size
                table.weight.uniform_(-reach, reach, generator=generator)
            else:
                nn.init.xavier_uniform_(table.weight, generator=generator)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | Mapping[str, Tensor], config: Mapping[str, Any]) -> TransE:
        """OpenKE's checkpoint, a file or its tensors, with OpenKE's own words for the config
        (ent_tot, rel_tot, dim, ...).
        """
        from zoo.formats.opening import opened
        from zoo.maps import layouts

        keymap = layouts.load("openke-transe")
        with opened(source) as archive:
            built = cls(TransEConfig.from_dict(keymap.config_forward(config, archive.tensors)))
            plan = keymap.forward(archive.tensors, built.config.to_dict(), targets=built.state_dict())
            built.load_state_dict(plan.run(archive.read), strict=True)
        return built

    def distance(
        self, heads: Int[Tensor, "*#facts"], relations: Int[Tensor, "*#facts"], tails: Int[Tensor, "*#facts"]
    ) -> Float[Tensor, "*facts"]:
        """``|| h + r - t ||_p``."""
        h, r, t = self.vectors(heads, relations, tails)
        if self.config.normalize:
            h, r, t = (F.normalize(x, dim=-1) for x in (h, r, t))
        return torch.linalg.vector_norm(h + r - t, ord=self.config.p_norm, dim=-1)

    def forward(
        self, heads: Int[Tensor, "*#facts"], relations: Int[Tensor, "*#facts"], tails: Int[Tensor, "*#facts"]
    ) -> Float[Tensor, "*facts"]:
        """The distance, or ``margin - distance`` where there is a margin."""
        distance = self.distance(heads, relations, tails)
        return distance if self.config.margin is None else self.config.margin - distance

    def vectors(
        self, heads: Int[Tensor, "*#facts"], relations: Int[Tensor, "*#facts"], tails: Int[Tensor, "*#facts"]
    ) -> tuple[Float[Tensor, "*#facts size"], Float[Tensor, "*#facts size"], Float[Tensor, "*#facts size"]]:
        """The three vectors of each fact, as they are stored."""
        for ids, count, name in (
            (heads, self.config.num_entities, "heads"),
            (relations, self.config.num_relations, "relations"),
            (tails, self.config.num_entities, "tails"),
        ):
            check_ids(ids.reshape(1, -1), count, name)
        return self.entities(heads), self.relations(relations), self.entities(tails)

    def regularization(
        self, heads: Int[Tensor, "*#facts"], relations: Int[Tensor, "*#facts"], tails: Int[Tensor, "*#facts"]
    ) -> Float[Tensor, ""]:
        """The mean of the squares of the three vectors, as they are stored."""
        h, r, t = self.vectors(heads, relations, tails)
        return (h.square().mean() + r.square().mean() + t.square().mean()) / 3


def _weights(scores: Float[Tensor, "n k"], temperature: float | None) -> Float[Tensor, "n k"] | None:
    """Self-adversarial weights (Sun et al., 2019): the harder a negative, the more it counts; no
    gradient.
    """
    return None if temperature is None else (scores * temperature).softmax(-1).detach()


@dataclass(frozen=True)
class MarginLoss:
    """``mean max(0, margin + d(positive) - d(negative))`` on distances. ``temperature``:
    self-adversarial weights.
    """

    margin: float = 6.0
    temperature: float | None = None

    def __call__(self, positive: Float[Tensor, "n 1"], negative: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        """Of distances."""
        weights = _weights(-negative, self.temperature)
        hinge = (positive - negative).clamp(min=-self.margin)
        return (hinge.mean() if weights is None else (weights * hinge).sum(-1).mean()) + self.margin


@dataclass(frozen=True)
class SigmoidLoss:
    """``-(mean log σ(positive) + mean log σ(-negative)) / 2`` on scores. ``temperature``:
    self-adversarial weights.
    """

    temperature: float | None = None

    def __call__(self, positive: Float[Tensor, "n 1"], negative: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        """Of scores."""
        weights = _weights(negative, self.temperature)
        unlikely = F.logsigmoid(-negative)
        return (
            -(
                F.logsigmoid(positive).mean()
                + (unlikely.mean() if weights is None else (weights * unlikely).sum(-1).mean())
            )
            / 2
        )


@dataclass(frozen=True)
class SoftplusLoss:
    """``(mean softplus(-positive) + mean softplus(negative)) / 2`` on scores. ``temperature``:
    self-adversarial weights.
    """

    temperature: float | None = None

    def __call__(self, positive: Float[Tensor, "n 1"], negative: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
        """Of scores."""
        weights = _weights(negative, self.temperature)
        wrong = F.softplus(negative)
        return (
            F.softplus(-positive).mean() + (wrong.mean() if weights is None else (weights * wrong).sum(-1).mean())
        ) / 2


def split_scores(scores: Float[Tensor, "all"], positives: int) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n k"]]:
    """Scores of n positives, then k blocks of n negatives, taken apart."""
    if scores.dim() != 1 or positives < 1 or len(scores) % positives or len(scores) == positives:
        raise InputError(
            f"{positives} positives and whole blocks of as many negatives must make up the scores, got "
            f"{tuple(scores.shape)}"
        )
    blocks = rearrange(scores, "(blocks n) -> n blocks", n=positives)
    return blocks[:, :1], blocks[:, 1:]


def corrupted(
    triples: Int[Tensor, "n 3"],
    num_entities: int,
    negatives: int,
    *,
    known: Collection[tuple[int, int, int]] = (),
    generator: torch.Generator | None = None,
    rounds: int = 20,
) -> Int[Tensor, "made 3"]:
    """``negatives`` blocks of the triples (head, relation, tail), each with its head or its tail, by
    a coin, made another entity.

    ``known``: facts that are no negatives; what hits one is drawn again, for ``rounds`` rounds at
    most.
    """
    made = triples.repeat(negatives, 1)
    column = torch.where(torch.rand(len(made), generator=generator) < 0.5, 0, 2)
    todo = torch.arange(len(made))
    for _ in range(rounds):
        made[todo, column[todo]] = torch.randint(num_entities, (len(todo),), generator=generator)
        if not known:
            break
        todo = torch.tensor([i for i in todo.tolist() if tuple(made[i].tolist()) in known], dtype=torch.int64)
        if not len(todo):
            break
    return made


@torch.no_grad()
def ranks(
    model: TransE, triples: Int[Tensor, "n 3"], known: Collection[tuple[int, int, int]] = ()
) -> Int[Tensor, "n 2"]:
    """The rank of the true tail, then of the true head, among all entities (1 = best), other
    ``known`` facts left out.
    """
    everyone = torch.arange(model.config.num_entities)
    found = []
    for head, relation, tail in triples.tolist():
        h, r, o = (torch.tensor([one]) for one in (head, relation, tail))
        tails, heads = model.distance(h, r, everyone), model.distance(everyone, r, o)
        closer_tails = (tails < tails[tail]).nonzero().flatten().tolist()
        closer_heads = (heads < heads[head]).nonzero().flatten().tolist()
        row = [
            1 + sum((head, relation, e) not in known for e in closer_tails),
            1 + sum((e, relation, tail) not in known for e in closer_heads),
        ]
        found.append(row)
    return torch.tensor(found).reshape(-1, 2)


def link_scores(ranked: Int[Tensor, "n 2"]) -> dict[str, float]:
    """Mean rank, mean reciprocal rank, and the share of ranks within 1, 3 and 10."""
    values = ranked.flatten().double()
    hits = {f"hits@{k}": float((values <= k).double().mean()) for k in (1, 3, 10)}
    return {"mean_rank": float(values.mean()), "mrr": float((1 / values).mean())} | hits
