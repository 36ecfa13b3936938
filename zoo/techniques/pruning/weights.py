"""Pruning of single weights: by magnitude or any score, by movement, by L0 gates; gradually, in
rounds with rewinding, or before training.

The functions below work on a model that one of the techniques was applied to.

    zoo.apply(model, zoo.WeightPruning(sparsity=0.5))     # the smallest half of each matrix
    weights.remask(model, weights.magnitudes(model), weights.cubic_sparsity(step, ...), "across")   # while training
    weights.prune_more(model, 0.1); weights.rewind(model, start)         # a round of the lottery ticket
    weights.bake(model)            # zeros in an ordinary model: any layout takes it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.extend import check_last, extend, restore
from zoo.layers.feed_forward import check_choice
from zoo.models.base.model import Model, bare_model, on_meta
from zoo.models.base.sites import Site
from zoo.techniques.base import PlacedTechnique, parts_of
from zoo.techniques.lora.technique import LINEAR_ROLES
from zoo.techniques.pruning.masks import (
    AboveThreshold,
    HardConcrete,
    MaskedLayer,
    ScoredLayer,
    Scores,
    SigmoidAboveThreshold,
    TopScores,
    top_mask,
)

SCOPES = ("matrix", "across")
METHODS: dict[str, type[Scores]] = {
    "top": TopScores,
    "threshold": AboveThreshold,
    "sigmoid-threshold": SigmoidAboveThreshold,
}


def check_share(name: str, value: float) -> None:
    """Raise ConfigError unless a share lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value} must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class WeightPruning(PlacedTechnique):
    """Set the share ``sparsity`` of the weights to zero and keep them there: the smallest of each
    matrix, or ``scope="across"`` of all matrices together. ``by``: "magnitude" or "random". Roles
    may name the "token-embedding" and the "pooler" too.

    The file of a pruned model holds zeros under the same names, and loading keeps them.
    ``sparsity=0`` makes the places ready for `remask`.
    """

    sparsity: float = 0.5  # share of the weights that become zero
    scope: str = "matrix"  # "matrix": in each; "across": in all together
    by: str = "magnitude"  # "magnitude" or "random"
    roles: tuple[str, ...] = LINEAR_ROLES  # the linear layers that are pruned

    adds_tensors = False
    only_values = True

    def check(self) -> None:
        check_share("sparsity", self.sparsity)
        check_choice("scope", self.scope, SCOPES)
        check_choice("by", self.by, ("magnitude", "random"))

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        for site in plain_weights(self, model, self.roles):
            part: Any = site.module
            extend(part, MaskedLayer)
            part.register_buffer("mask", torch.ones_like(part.weight, dtype=torch.bool), persistent=False)
        return None

    def settle(self, model: Model, generator: torch.Generator | None) -> None:
        own = {site.path: site.module for site in map(dense_of, self.places(model, *self.roles))}
        if self.by == "random":
            weights = {path: part.get_parameter("weight") for path, part in own.items()}
            scores = {path: torch.rand(w.shape, generator=generator).to(w.device) for path, w in weights.items()}
        else:
            scores = {path: part.weight.detach().abs() for path, part in own.items()}  # type: ignore[union-attr, operator]
        remask(model, scores, self.sparsity, self.scope)


@dataclass(frozen=True, kw_only=True)
class MovementPruning(PlacedTechnique):
    """A score for each weight, learned with it, says whether it stays: the share ``threshold`` with
    the largest scores of each matrix ("top": movement pruning), or whose score ("threshold") or its
    sigmoid ("sigmoid-threshold") is larger than it (soft movement).
    """

    method: str = "top"  # "top", "threshold" or "sigmoid-threshold"
    threshold: float = 0.15  # share that stays, or the score to reach
    start: float = 0.0  # first score
    roles: tuple[str, ...] = LINEAR_ROLES  # the linear layers that are pruned

    def check(self) -> None:
        check_choice("method", self.method, METHODS)
        if self.method == "top":
            check_share("threshold", self.threshold)

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        add_scores(plain_weights(self, model, self.roles), METHODS[self.method], self.start, self.threshold)
        return None


@dataclass(frozen=True, kw_only=True)
class L0Pruning(PlacedTechnique):
    """A stochastic gate on each weight, pushed shut by `score_penalty(model, "l0")` (Louizos et
    al., 2018).
    """

    start: float = 2.197  # first logit of the gates
    roles: tuple[str, ...] = LINEAR_ROLES  # the linear layers that are pruned

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        add_scores(plain_weights(self, model, self.roles), HardConcrete, self.start, 1.0)
        return None


def plain_weights(technique: PlacedTechnique, model: Model, roles: Sequence[str]) -> list[Site]:
    """The sites of these roles, each a plain matrix or table; a pooler or feed-forward part stands
    for its own ``dense`` layer.
    """
    if not roles:
        raise TechniqueError(f"{type(technique).__name__} needs at least one role, such as {', '.join(LINEAR_ROLES)}")
    sites = [dense_of(site) for site in technique.places(model, *roles)]
    kinds = (nn.Linear, nn.Embedding) if isinstance(technique, WeightPruning) else (nn.Linear,)
    for site in sites:
        if type(site.module) not in kinds:
            name = type(site.module).__name__
            raise TechniqueError(
                f"{site.path} is a {name}; {type(technique).__name__} masks plain linear layers, before other "
                "techniques change them"
            )
    return sites


def dense_of(site: Site) -> Site:
    """The site itself, or that of the layer named ``dense`` in it, which is all that a pooler
    has.
    """
    if isinstance(getattr(site.module, "dense", None), nn.Linear):
        return Site(f"{site.path}.dense", site.role, site.stream, site.depths, site.module, "dense")
    return site


def add_scores(sites: Sequence[Site], kind: type[Scores], start: float, threshold: float) -> None:
    """Give each matrix scores and let them mask it."""
    for site in sites:
        part: Any = site.module
        with part.weight.device:
            gate = kind(tuple(part.weight.shape), start, threshold)
        gate.scores.data = gate.scores.data.to(part.weight.dtype)
        gate.train(part.training)
        extend(part, ScoredLayer)
        part.gate = gate


def masked_parts(model: nn.Module) -> list[tuple[str, Any]]:
    """The parts under fixed masks, by path."""
    return list(parts_of(model, MaskedLayer).items())


def scored_parts(model: nn.Module) -> list[tuple[str, Any]]:
    """The parts under learned masks, by path."""
    return list(parts_of(model, ScoredLayer).items())


def magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """|w| of each masked matrix, also where the mask is 0: what `remask` ranks by."""
    return {path: part.weight.detach().abs() for path, part in masked_parts(model)}


def saliencies(model: nn.Module) -> dict[str, Tensor]:
    """|w · dL/dw| of each masked matrix after a backward pass: pruning at initialisation by
    connection sensitivity (SNIP).
    """
    scores = {}
    for path, part in masked_parts(model):
        if part.weight.grad is None:
            raise TechniqueError(f"{path} has no gradient; run a backward pass of the loss first")
        scores[path] = (part.weight.detach() * part.weight.grad).abs()
    return scores


@torch.no_grad()
def remask(
    model: nn.Module, scores: Mapping[str, Tensor], sparsity: float, scope: str = "matrix", *, within: bool = False
) -> None:
    """New masks: the share ``sparsity`` with the lowest scores goes, exactly round(sparsity ·
    weights) of them.

    Weights that were masked may come back with the values they had, unless ``within``, which counts
    the share of what is left.
    """
    check_share("sparsity", sparsity)
    check_choice("scope", scope, SCOPES)
    parts = dict(masked_parts(model))
    if not parts:
        raise TechniqueError(
            f"{type(bare_model(model)).__name__} has no masked weights; apply zoo.WeightPruning(sparsity=0) first"
        )
    groups = [[path] for path in scores] if scope == "matrix" else [list(scores)]
    for group in groups:
        flat = torch.cat([scores[path].detach().flatten() for path in group])
        if within:
            masks = torch.cat([parts[path].mask.flatten() for path in group])
            flat = flat.masked_fill(~masks, -torch.inf)
            left = int(masks.sum())
        else:
            left = flat.numel()
        mask = top_mask(flat, left - round(sparsity * left))
        for path, piece in zip(group, mask.split([scores[path].numel() for path in group]), strict=True):
            part = parts[path]
            part.mask = piece.view_as(part.weight)
            if isinstance(part, nn.Embedding):
                part.weight.mul_(part.mask)  # heads that are tied to the table read it without the mask


def prune_more(
    model: nn.Module, rate: float = 0.1, scores: Mapping[str, Tensor] | None = None, scope: str = "across"
) -> None:
    """One round of the lottery ticket: of the weights that are left, the share ``rate`` with the
    smallest magnitudes goes for good.
    """
    remask(model, magnitudes(model) if scores is None else scores, rate, scope, within=True)


@torch.no_grad()
def rewind(model: nn.Module, start: Mapping[str, Tensor]) -> None:
    """Put the model's weights back to those of ``start`` (its ``state_dict()`` of an earlier step,
    before the masks); masks and heads stay.

    Raises TechniqueError where ``start`` lacks a parameter of the model.
    """
    bare = bare_model(model)
    prefix = "" if bare is model else "model."
    for name, parameter in bare.named_parameters():
        key = prefix + name
        if key not in start:
            raise TechniqueError(f"the state to rewind to has no {key}; keep model.state_dict() of an early step")
        parameter.copy_(start[key])


def sparsity_of(model: nn.Module) -> float:
    """The share of the masked matrices' weights that is masked now, all matrices together."""
    masks = [part.mask for _, part in masked_parts(model)] + [part.gate() > 0 for _, part in scored_parts(model)]
    if not masks:
        raise TechniqueError(f"{type(bare_model(model)).__name__} has no masked weights")
    total = sum(mask.numel() for mask in masks)
    return 1 - sum(int(mask.sum()) for mask in masks) / total


def cubic_sparsity(
    step: int, *, begin: int, end: int, start: float = 0.0, final: float = 0.9, every: int = 1, exponent: float = 3.0
) -> float:
    """Zhu and Gupta's schedule: ``final + (start - final) (1 - progress)³`` from step ``begin`` to
    ``end``, new every so many steps.
    """
    if step < begin:
        return start
    reached = min(begin + (step - begin) // every * every, end)
    return final + (start - final) * (1 - (reached - begin) / max(end - begin, 1)) ** exponent  # eq: cubic


def threshold_at(
    step: int,
    *,
    total: int,
    warmup: int,
    initial: float,
    final: float,
    initial_warmup: int = 1,
    final_warmup: int = 2,
    final_penalty: float = 0.0,
) -> tuple[float, float]:
    """Movement pruning's schedule: threshold and weight of the penalty at a step; cubic between two
    constant pieces.
    """
    begin, rest = initial_warmup * warmup, final_warmup * warmup
    if step <= begin:
        threshold = initial
    elif step > total - rest:
        threshold = final
    else:
        threshold = final + (initial - final) * (1 - (step - begin) / (total - begin - rest)) ** 3
    return threshold, final_penalty * threshold / final


def set_threshold(model: nn.Module, threshold: float) -> None:
    """Give every learned mask this threshold (for "top": the share that stays)."""
    parts = scored_parts(model)
    if not parts:
        raise TechniqueError(f"{type(bare_model(model)).__name__} has no scores; apply zoo.MovementPruning first")
    for _, part in parts:
        part.gate.threshold = threshold


def score_penalty(scores: nn.Module | Sequence[Tensor], kind: str = "l1") -> Tensor:
    """The mean over matrices, each counting alike, of the mean sigmoid of the scores: "l1" of soft
    movement, "l0" of gates' chance to be open. ``scores``: a model, or the scores themselves.
    """
    check_choice("kind", kind, ("l1", "l0"))
    found = [part.gate.scores for _, part in scored_parts(scores)] if isinstance(scores, nn.Module) else list(scores)
    if not found:
        raise TechniqueError("there are no scores to hold small; apply zoo.MovementPruning or zoo.L0Pruning first")
    shift = 0.0 if kind == "l1" else HardConcrete.shift()
    return torch.stack([torch.sigmoid(s - shift).mean() for s in found]).mean()


@torch.no_grad()
def fix_masks(model: nn.Module) -> None:
    """Turn learned masks into fixed ones, as they are now; gates between 0 and 1 go into the
    weights. Training may go on under them.
    """
    bare = bare_model(model)
    check_last(scored_parts(bare), ScoredLayer)
    for _, part in scored_parts(bare):
        gate = part.gate.eval()()
        part.weight.mul_(gate)
        del part.gate
        restore(part, ScoredLayer)
        extend(part, MaskedLayer)
        part.register_buffer("mask", gate > 0, persistent=False)
    bare.techniques = tuple(
        WeightPruning(sparsity=0.0, roles=t.roles, streams=t.streams, depths=t.depths)
        if isinstance(t, MovementPruning | L0Pruning)
        else t
        for t in bare.techniques
    )


@torch.no_grad()
def bake(model: nn.Module) -> None:
    """Write the masks into the weights and forget them: an ordinary model with zeros, which
    `zoo.optimize` and every converter take.
    """
    bare = bare_model(model)
    if on_meta(bare):
        raise TechniqueError("a model on the meta device has no weights to write the masks into")
    check_last(masked_parts(bare), MaskedLayer)
    fix_masks(bare)
    for _, part in masked_parts(bare):
        part.weight.mul_(part.mask)
        del part.mask
        restore(part, MaskedLayer)
    bare.techniques = tuple(t for t in bare.techniques if not isinstance(t, WeightPruning))
