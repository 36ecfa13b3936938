"""How much the loss feels each attention head (Michel, Levy, Neubig, 2019), and which heads to
prune by it.

With ξ a factor on each head's context, ξ = 1:

    "position"   I = Σ over positions of |context · dL/dcontext|      as the authors' code takes it
    "batch"      I = Σ over batches of |dL/dξ|                        the absolute value once a batch
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import TechniqueError
from zoo.layers.feed_forward import check_choice
from zoo.models.base.model import bare_model
from zoo.techniques.pruning.structured import HeadPruning
from zoo.techniques.pruning.width import Stream


@dataclass(frozen=True)
class HeadScores:
    """``importance``: by the attention's path, a number for each head. ``entropy``: of its
    probabilities, where asked for.
    """

    importance: Mapping[str, Tensor]
    entropy: Mapping[str, Tensor] | None = None


def head_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    loss: Callable[[Any], Tensor] = lambda output: output.loss,
    *,
    form: str = "position",
    mask: Mapping[str, Tensor] | None = None,
    by_layer: bool = True,
    as_published: bool = False,
    entropy: bool = False,
) -> HeadScores:
    """Run the batches and see how much each head matters, for each real token.

    loss: from the model's output. mask: a factor for each head, 0 = off meanwhile, see `head_mask`.
    by_layer: divide each layer by its L2 norm. as_published: count as the code of each form does:
    that for "position" divides the last layer by rows in place of tokens, that for "batch" never
    clears the factors' gradient between batches, so that each adds the absolute value of the sum so
    far.
    """
    check_choice("form", form, ("position", "batch"))
    attentions = {site.path: site.module for site in HeadPruning().parts(bare_model(model))}
    factors = {path: factor.requires_grad_() for path, factor in head_mask(model, {}, mask).items()}
    totals = {path: torch.zeros(len(factor), dtype=torch.float64) for path, factor in factors.items()}
    spreads = {path: torch.zeros_like(total) for path, total in totals.items()}
    tokens = rows = 0.0
    with _evaluated(model):
        for batch in batches:
            with _Watched(attentions, factors) as contexts, torch.enable_grad():
                output = model(**batch, **({"output_attentions": True} if entropy else {}))
                loss(output).backward()
            for path, seen in contexts.items():
                if form == "position":
                    for y in seen:  # eq: heads
                        assert y.grad is not None
                        totals[path] += (y.detach() * y.grad).sum(-1).abs().flatten(0, -2).sum(0).double().cpu()
                else:
                    totals[path] += factors[path].grad.abs().double().cpu()  # type: ignore[union-attr]
            given = batch.get("attention_mask")
            real = given if given is not None else torch.ones_like(batch["input_ids"])
            tokens, rows = tokens + float(real.sum()), rows + len(real)
            if entropy:
                maps = getattr(output, "encoded", output).attentions
                for path, probabilities in zip(attentions, maps, strict=True):
                    weighed = probabilities.detach() * factors[path].detach()[:, None, None]
                    spreads[path] += _entropy(weighed, real)
            if not (as_published and form == "batch"):
                for factor in factors.values():
                    factor.grad = None
    if not tokens:
        raise TechniqueError("there were no batches to see importance in")
    scores = {path: total / tokens for path, total in totals.items()}  # eq: heads
    if as_published and form == "position":
        last = list(scores)[-1]
        scores[last] = totals[last] / rows
    if by_layer:
        scores = {path: score / (score.norm() + 1e-20) for path, score in scores.items()}
    return HeadScores(scores, {path: spread / tokens for path, spread in spreads.items()} if entropy else None)


def scaled(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores of all layers together brought to [0, 1]."""
    low, high = (float(f(torch.cat(list(scores.values())))) for f in (torch.min, torch.max))
    return {path: (score - low) / (high - low) for path, score in scores.items()}


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Without dropout, and without a gradient left behind."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.zero_grad()
        model.train(was)


def width_importance(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    loss: Callable[[Any], Tensor] = lambda output: output.loss,
    width: str = "hidden_size",
) -> Tensor:
    """How much the loss feels each dimension of the hidden width: I = Σ over batches of |dL/dγ|, γ = 1
    one factor for the whole network behind every norm (McCarley et al., 2019, "gain"). Behind a
    norm dL/dγ = w · dL/dw + b · dL/db, so that nothing is put in. -> (width) float64.
    """
    norms = Stream.of(model, width).norms()
    if not norms:
        raise TechniqueError(f"no norm of {type(bare_model(model)).__name__} has the width {width}")
    total: Tensor | None = None
    with _evaluated(model):
        for batch in batches:
            with torch.enable_grad():
                loss(model(**batch)).backward()
            parts = [p.detach() * p.grad for norm in norms.values() for p in norm.parameters() if p.grad is not None]
            gain = torch.stack([part.double().cpu() for part in parts]).sum(0).abs()
            total = gain if total is None else total + gain
            model.zero_grad()
    if total is None:
        raise TechniqueError("there were no batches to see importance in")
    return total


def head_mask(
    model: nn.Module, off: Mapping[str, Iterable[int]], mask: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A factor for each head, by its attention's path: 1, or that of ``mask``; 0 where it is
    ``off``.
    """
    factors = {}
    for site in HeadPruning().parts(bare_model(model)):
        attention: Any = site.module
        like = attention.output.weight
        factor = like.new_ones(attention.num_heads) if mask is None else mask[site.path].to(like).clone()
        factor[list(off.get(site.path, ()))] = 0
        factors[site.path] = factor
    return factors


class _Watched:
    """Inside, each head's context is multiplied by its factor, and kept with its gradient."""

    def __init__(self, attentions: Mapping[str, Any], factors: Mapping[str, Tensor]) -> None:
        self.attentions, self.factors = attentions, factors

    def __enter__(self) -> dict[str, list[Tensor]]:
        self.seen: dict[str, list[Tensor]] = {path: [] for path in self.attentions}
        self.handles = [
            part.output.register_forward_pre_hook(self._hook(path, part)) for path, part in self.attentions.items()
        ]
        return self.seen

    def _hook(self, path: str, part: Any) -> Callable[[Any, Any], Any]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            context = inputs[0].unflatten(-1, (part.num_heads, part.head_size)) * self.factors[path][:, None]
            if context.requires_grad:
                context.retain_grad()
                self.seen[path].append(context)
            return (context.flatten(-2), *inputs[1:])

        return hook

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def masked_heads(model: nn.Module, heads: Mapping[str, Iterable[int]]) -> _Watched:
    """A context in which these heads, by their attention's path, give nothing: what removing them
    would give.
    """
    attentions = {site.path: site.module for site in HeadPruning().parts(bare_model(model))}
    return _Watched(attentions, head_mask(model, heads))


def _entropy(p: Tensor, real: Tensor) -> Tensor:
    """Σ over real queries of -Σ p ln p, (batch, heads, query, key) -> (heads,)."""
    rows = -torch.special.xlogy(p, p).sum(-1)  # (batch, heads, query)
    return torch.einsum("bhq,bq->h", rows.double(), real.double()).cpu()


def heads_to_prune(
    scores: Mapping[str, Tensor],
    count: int,
    pruned: Mapping[str, Iterable[int]] | None = None,
    *,
    least: int = 0,
    by_number: bool = False,
) -> dict[str, list[int]]:
    """The ``count`` least important heads of all layers, and those ``pruned`` before. -> sorted
    heads by layer.

    least: so many of each layer's best heads never go. by_number: the scores of a layer that lost
    heads count sqrt(lost / layers) times.
    """
    before = {layer: sorted(set(heads)) for layer, heads in (pruned or {}).items()}
    ranked: list[tuple[float, str, int]] = []
    for layer, score in scores.items():
        weight = math.sqrt(len(before[layer]) / len(scores)) if by_number and before.get(layer) else 1.0
        values = [float(value) * weight for value in score]
        order = sorted(range(len(values)), key=lambda head: values[head])
        safe = set(order[len(order) - least :]) if least else set()
        ranked += [
            (values[head], layer, head) for head in order if head not in safe and head not in before.get(layer, ())
        ]
    ranked.sort(key=lambda item: item[0])
    after = {layer: list(heads) for layer, heads in before.items()}
    for _, layer, head in ranked[:count]:
        after.setdefault(layer, []).append(head)
    return {layer: sorted(after[layer]) for layer in scores if after.get(layer)}
