"""Adversarial training (VILLA, Gan et al. 2020; FreeLB's free steps) of any task model over words, regions or both.

    delta_0 = 0
    loss_k  = (task(x + delta_k) + kl_weight · [KL(clean || x + delta_k) + KL(x + delta_k || clean)]) / steps
    delta_{k+1} = project(delta_k + lr · g / max(norm(g), 1e-8)),           g = the gradient of loss_k to delta_k

The parameters' gradients of all steps add up to one update. Words are perturbed as token embeddings, before
position, segment and norm; regions as raw features; boxes stay. The norm is one sequence's, over all its tokens and
dimensions.

Traps: the clean scores are not cut off, so both KL terms teach the clean pass too. The first delta is zero, where the
paper describes a random one: step 0 is the plain loss. Padding is part of delta; its gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError
from zoo.models.base.model import bare_model, unwrapped
from zoo.tasks.losses import mean_of, widened

SMALLEST = 1e-8  # what a gradient's norm is at least
REGIONS = "visual_features"
Run = Callable[[Any, dict[str, Any]], tuple[Tensor, Any]]


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """What is perturbed, and how. The defaults are VILLA's for VQA, NLVR2 and SNLI-VE."""

    steps: int = 3  # perturbed passes of an update
    text_lr: float = 1e-3  # how far a step moves the words' embeddings; 0: they stay as they are
    image_lr: float = 0.0  # how far a step moves the regions' features; 0: they stay as they are
    norm: Literal["l2", "linf"] = "l2"  # in which a step's length and max_norm are measured
    max_norm: float = 0.0  # of a perturbation, at most; 0: no bound
    kl_weight: float = 1.5  # of both divergences between clean and perturbed scores, beside the loss
    kl: Literal["sum", "mean"] = "sum"  # over a row's classes; VILLA takes the mean for VCR
    alternate: bool = False  # two passes a step, for words and for regions, in place of one for both

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise ConfigError(f"steps={self.steps!r} must be a whole number of at least 1")
        for name in ("text_lr", "image_lr", "max_norm", "kl_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ConfigError(f"{name}={value!r} must be a number, zero or above")
        for name, known in (("norm", ("l2", "linf")), ("kl", ("sum", "mean"))):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not self.text_lr and not self.image_lr:
            raise ConfigError("text_lr and image_lr are zero, so nothing would be perturbed; give one of them")
        if self.alternate and not (self.text_lr and self.image_lr):
            raise ConfigError("alternate=True perturbs words and regions by turns; give text_lr and image_lr")


@dataclass
class Attack:
    """One step. ``loss`` is its share of the update, to be sent backward, with ``retain_graph`` unless it is the
    ``last``: the clean pass is shared. ``deltas`` by the input they are added to; ``task`` and ``divergence``, and
    ``outputs``, one for each pass of the step.
    """

    loss: Tensor
    last: bool
    deltas: dict[str, Tensor]
    task: list[Tensor]
    divergence: list[Tensor]
    outputs: list[Any]


def attacks(
    run: Run,
    model: nn.Module,
    batch: Mapping[str, Any],
    chosen: Adversarial,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Attack]:
    """The steps of one update. Send each ``loss`` backward before asking for the next, whose deltas follow from the
    gradients. run: what gives a model's loss and its result for a batch; context: what forward passes run in.
    """
    with context():
        _, clean = run(model, dict(batch))
    deltas = first_deltas(model, batch, chosen)
    for step in range(chosen.steps):
        groups = [{name: delta} for name, delta in deltas.items()] if chosen.alternate else [deltas]
        for delta in deltas.values():
            delta.requires_grad_()
        with context():
            made = [run(model, perturbed(model, batch, group)) for group in groups]
        task, outputs = [loss for loss, _ in made], [output for _, output in made]
        apart = [divergence(clean, output, chosen.kl) for output in outputs] if chosen.kl_weight else []
        total = sum(task[1:], task[0])
        if apart:
            total = total + chosen.kl_weight * sum(apart[1:], apart[0])
        last = step + 1 == chosen.steps
        yield Attack(total / (len(groups) * chosen.steps), last, deltas, task, apart, outputs)
        if last:
            return
        rates = {name: chosen.image_lr if name == REGIONS else chosen.text_lr for name in deltas}
        deltas.update({name: moved_delta(delta, rates[name], chosen) for name, delta in deltas.items()})


def first_deltas(model: nn.Module, batch: Mapping[str, Any], chosen: Adversarial) -> dict[str, Tensor]:
    """Zeros for each input that is perturbed, words first."""
    bare = bare_model(unwrapped(model))
    found: dict[str, Tensor] = {}
    if chosen.text_lr:
        if "inputs_embeds" not in bare.arguments:
            raise ConfigError(f"{type(bare).__name__} takes no inputs_embeds, so its words can't be perturbed")
        given = batch.get("inputs_embeds")
        if given is None:
            ids = batch.get("input_ids")
            if ids is None:
                raise InputError("words are perturbed, and the batch has no input_ids")
            table = bare.embeddings.token.weight  # type: ignore[union-attr]
            found["inputs_embeds"] = table.new_zeros(*ids.shape, bare.embeddings.token.embedding_dim)  # type: ignore
        else:
            found["inputs_embeds"] = torch.zeros_like(given)
    if chosen.image_lr:
        if batch.get(REGIONS) is None:
            raise InputError(f"image_lr={chosen.image_lr} perturbs regions, and the batch has no {REGIONS}")
        found[REGIONS] = torch.zeros_like(batch[REGIONS])
    return found


def perturbed(model: nn.Module, batch: Mapping[str, Any], deltas: Mapping[str, Tensor]) -> dict[str, Any]:
    """The batch with the deltas added."""
    changed = dict(batch)
    for name, delta in deltas.items():
        if name == "inputs_embeds" and changed.get(name) is None:
            embeddings: Any = bare_model(unwrapped(model)).embeddings
            ids = changed.pop("input_ids")
            if changed.get("position_ids") is None and (places := embeddings.places(ids)) is not None:
                changed["position_ids"] = places
            changed[name] = embeddings.token(ids) + delta
        else:
            changed[name] = changed[name] + delta
    return changed


def moved_delta(delta: Tensor, rate: float, chosen: Adversarial) -> Tensor:
    """The delta after a step along its gradient, inside of the bound."""
    assert delta.grad is not None, "the loss of a step was not sent backward"
    gradient = delta.grad
    moved = delta.detach() + rate * gradient / length_of(gradient, chosen.norm).clamp(min=SMALLEST)  # eq: step
    if not chosen.max_norm:
        return moved
    if chosen.norm == "linf":
        return moved.clamp(-chosen.max_norm, chosen.max_norm)
    length = length_of(moved, "l2")
    return torch.where(length > chosen.max_norm, moved * (chosen.max_norm / length.clamp(min=SMALLEST)), moved)


def length_of(x: Tensor, norm: str) -> Tensor:
    """The norm of each sequence, over tokens or regions and dimensions: (..., length, size) -> (..., 1, 1)."""
    flat = widened(x.flatten(-2))
    found = flat.norm(dim=-1) if norm == "l2" else flat.abs().amax(-1)
    return found[..., None, None].to(x.dtype)


def divergence(clean: Any, other: Any, over_classes: str) -> Tensor:
    """``KL(clean || other) + KL(other || clean)`` of the softmax of each of a result's scores, the mean over rows;
    over a row's classes the "sum" or the "mean".
    """
    pairs = list(zip(scores_of(clean), scores_of(other), strict=True))
    if not pairs:
        raise ConfigError("the task gives no scores over classes to compare; set kl_weight=0")
    parts = []
    for mine, theirs in pairs:
        p, q = widened(mine).log_softmax(-1), widened(theirs).log_softmax(-1)
        each = (p.exp() - q.exp()) * (p - q)  # both directions together  # eq: divergence
        rows = each.sum(-1) if over_classes == "sum" else each.mean(-1)
        # places that are zeros in both, padding, are the same for certain and no row
        counted = (mine != 0).any(-1)
        parts.append(mean_of(rows, counted))
    return sum(parts[1:], parts[0])


def scores_of(output: Any) -> list[Tensor]:
    """A result's scores over classes, (..., classes) each; one score for a yes or no stands beside a zero. Of a head
    that judges each choice alone the two outputs of each.
    """
    if (judged := getattr(output, "scores", {}).get("choice")) is not None:
        return [judged]
    names = ("logits", "start_logits", "end_logits")
    found = [value for name in names if (value := getattr(output, name, None)) is not None]
    if not found:
        later = ("prediction_logits", "seq_relationship_logits", "sop_logits")
        found = [value for name in later if (value := getattr(output, name, None)) is not None]
    made = []
    for value in found:
        one = value.unsqueeze(-1) if value.dim() == 1 else value
        made.append(torch.cat([torch.zeros_like(one), one], -1) if one.shape[-1] == 1 else one)
    return made
