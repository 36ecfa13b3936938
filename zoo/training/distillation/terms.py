"""The terms of a distillation objective: what is compared between student and teacher, and at which
layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import TaskError, unknown
from zoo.training.distillation.losses import (
    RELATIONS_V1,
    RELATIONS_V2,
    TransferWeights,
    averaged_divergence,
    patience_loss,
    relation_loss,
    score_loss,
    soft_cross_entropy,
    softened_divergence,
    transfer_gates,
    transfer_losses,
    uniform_layers,
)
from zoo.training.distillation.observe import Seen, attention_layers, num_layers

Pairs = tuple[tuple[int, int], ...]


Layers = str | Sequence[tuple[int, int]]


LAYER_MAPS = ("uniform", "skip", "last")


LOGITS = ("logits", "prediction_logits", "start_logits", "end_logits", "seq_relationship_logits", "sop_logits")


SOFT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "divergence": softened_divergence,
    "averaged": averaged_divergence,
    "cross-entropy": soft_cross_entropy,
}


def layer_pairs(layers: Layers, student: int, teacher: int) -> Pairs:
    """Pairs (student's layer, teacher's layer), from 1.

    "uniform": all of the student's, each with the last of its share of the teacher's. "skip": the
    same without the last (PKD-Skip). "last": all but the student's last with those just before the
    teacher's last (PKD-Last). Or pairs as given; 0 is the embeddings.
    """
    if isinstance(layers, str):
        if layers not in LAYER_MAPS:
            raise unknown("layer map", layers, LAYER_MAPS)
        if student > teacher:
            raise TaskError(
                f"the student has {student} layers and the teacher {teacher}; give the layers as pairs (student, "
                "teacher)"
            )
        if layers == "last":
            pairs = tuple((layer, teacher - student + layer) for layer in range(1, student))
        else:
            pairs = tuple(enumerate(uniform_layers(student, teacher), 1))[: None if layers == "uniform" else -1]
        if not pairs:
            raise TaskError(
                f"layers={layers!r} leaves the last layer out, and this student has no other; use 'uniform'"
            )
        return pairs
    pairs = tuple((int(mine), int(theirs)) for mine, theirs in layers)
    for mine, theirs in pairs:
        if not (0 <= mine <= student and 0 <= theirs <= teacher):
            raise TaskError(
                f"layers hold ({mine}, {theirs}), but the student has layers 0..{student} and the teacher 0..{teacher}"
            )
    if not pairs:
        raise TaskError("layers is empty, so there is nothing to compare; name a map or give pairs (student, teacher)")
    return pairs


@dataclass(frozen=True)
class Sizes:
    """What a term may know of the two models before the first step."""

    student: Any
    teacher: Any
    stream: str

    def layers(self, role: str) -> int:
        return num_layers(getattr(self, role), self.stream)

    def pairs(self, layers: Layers) -> Pairs:
        return layer_pairs(layers, self.layers("student"), self.layers("teacher"))

    def width(self, role: str) -> int:
        """The width of a model's states in the watched stream."""
        bare = getattr(getattr(self, role), "model", getattr(self, role))
        widths = type(bare).widths(bare.config)
        return int(widths.get(self.stream, bare.config.hidden_size))

    def heads(self, role: str) -> tuple[int, ...]:
        found: list[tuple[int, Any]] = [
            (depth, part.num_heads)
            for _, part, depths in attention_layers(getattr(self, role), self.stream)
            for depth in depths
        ]
        return tuple(heads for _, heads in sorted(found, key=lambda pair: pair[0]))


@dataclass(frozen=True)
class Call:
    """One step as a term sees it."""

    student: Seen
    teacher: Seen
    labels: Mapping[str, Tensor]
    projections: nn.ModuleDict
    step: int
    pairs: Pairs


@dataclass(frozen=True, kw_only=True)
class Term:
    """Base of the terms. ``weight`` counts the term in the sum."""

    weight: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()  # "attentions", "projected", "labels"
    name: ClassVar[str] = ""

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        """Check that the two models can be compared; -> the layers in pairs, and the maps that
        widths ask for.
        """
        return (), {}

    def losses(self, call: Call) -> dict[str, tuple[float, Tensor]]:
        """By name: how much it counts, and the loss."""
        return {self.name: (self.weight, self.loss(call))}

    def loss(self, call: Call) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SoftTargets(Term):
    """The teacher's softened distribution over classes, words or places; with ``hard_weight`` the
    task's own loss on labels too.

    form: "divergence" ``T² KL`` per example (Hinton), "averaged" the same over classes too
    (BERT-PKD's code), "cross-entropy" TinyBERT's. labelled_only: compare words only where there is
    a label.
    """

    temperature: float = 1.0
    hard_weight: float = 0.0
    form: str = "divergence"
    labelled_only: bool = False
    name = "soft_targets"

    def __post_init__(self) -> None:
        if self.form not in SOFT:
            raise unknown("form of soft targets", self.form, SOFT)
        if not self.temperature > 0:
            raise TaskError(f"temperature must be more than 0, got {self.temperature}")

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        mine, theirs = (getattr(model, "options", {}).get("num_labels") for model in (sizes.student, sizes.teacher))
        for role in ("student", "teacher"):
            if not hasattr(getattr(sizes, role), "task"):
                raise TaskError(f"soft targets compare logits, and the {role} has no head; create it with task=")
        if mine != theirs:
            raise TaskError(
                f"the student has num_labels={mine} and the teacher {theirs}; soft targets need the same classes"
            )
        return (), {}

    def losses(self, call: Call) -> dict[str, tuple[float, Tensor]]:
        found = {}
        if self.weight:
            pairs = list(self._logits(call))
            found[self.name] = (
                self.weight,
                torch.stack([SOFT[self.form](a, b, self.temperature) for a, b in pairs]).mean(),
            )
        if self.hard_weight:
            loss = call.student.output.loss
            if loss is None:
                raise TaskError("hard_weight counts the task's own loss; pass the labels with the batch")
            found["hard_targets"] = (self.hard_weight, loss)
        return found

    def _logits(self, call: Call) -> Iterator[tuple[Tensor, Tensor]]:
        mine, theirs = call.student.output, call.teacher.output
        names = [
            name for name in LOGITS if getattr(mine, name, None) is not None and getattr(theirs, name, None) is not None
        ]
        if {"logits", "prediction_logits"} <= set(names):
            names.remove("logits")
        if not names:
            raise TaskError(f"{type(mine).__name__} and {type(theirs).__name__} show no logits to compare")
        for name in names:
            a, b = getattr(mine, name), getattr(theirs, name)
            if a.dim() == 3 and tuple(a.shape[:2]) == tuple(call.student.real.shape):
                chosen = (
                    call.labels["labels"] > -1 if self.labelled_only and "labels" in call.labels else call.student.real
                )
                a, b = a[chosen], b[chosen]
            yield a, b


@dataclass(frozen=True, kw_only=True)
class HiddenStates(Term):
    """The states that leave the layers of a map, at real tokens.

    form: "mse", or "cosine" (1 - cos). projection: "auto" a linear map for each pair where the
    widths differ, "shared" one for all (and for `Embeddings` with "shared"), always there as in
    TinyBERT.
    """

    layers: Layers = "uniform"
    form: str = "mse"
    projection: str = "auto"
    name = "hidden_states"

    def __post_init__(self) -> None:
        for field_name, value, known in (
            ("form", self.form, ("mse", "cosine")),
            ("projection", self.projection, ("auto", "shared")),
        ):
            if value not in known:
                raise unknown(f"{field_name} of {self.name}", value, known)

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        pairs = sizes.pairs(self.layers)
        mine, theirs = sizes.width("student"), sizes.width("teacher")
        if self.projection == "shared":
            return pairs, {"shared": nn.Linear(mine, theirs)}
        return pairs, {} if mine == theirs else {f"layer_{a}_to_{b}": nn.Linear(mine, theirs) for a, b in pairs}

    def loss(self, call: Call) -> Tensor:
        losses = []
        for mine, theirs in call.pairs:
            key = "shared" if self.projection == "shared" else f"layer_{mine}_to_{theirs}"
            a, b = call.student.states[mine][call.student.real], call.teacher.states[theirs][call.student.real]
            a = call.projections[key](a) if key in call.projections else a
            losses.append(F.mse_loss(a, b) if self.form == "mse" else (1 - F.cosine_similarity(a, b, dim=-1)).mean())
        return torch.stack(losses).sum()


@dataclass(frozen=True, kw_only=True)
class Embeddings(HiddenStates):
    """What enters the first layer, compared as `HiddenStates` does."""

    layers: Layers = ((0, 0),)
    name = "embeddings"


@dataclass(frozen=True, kw_only=True)
class _Attention(Term):
    layers: Layers = "uniform"

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        pairs = sizes.pairs(self.layers)
        mine, theirs = sizes.heads("student"), sizes.heads("teacher")
        for a, b in pairs:
            if not a or not b:
                raise TaskError("the embeddings (layer 0) have no attention; layers count from 1 here")
            if mine[a - 1] != theirs[b - 1]:
                raise TaskError(
                    f"layer {a} of the student has {mine[a - 1]} heads and layer {b} of the teacher {theirs[b - 1]}; "
                    "attention is compared "
                    "head by head: use zoo.Relations, which splits them anew"
                )
        return pairs, {}


@dataclass(frozen=True, kw_only=True)
class AttentionScores(_Attention):
    """TinyBERT's: mean squared differences of ``q kᵀ / sqrt(head size)`` before the softmax, summed
    over the pairs of layers.
    """

    name = "attention_scores"
    needs = frozenset({"projected"})

    def loss(self, call: Call) -> Tensor:
        both = call.student.real[:, None, :, None] & call.student.real[:, None, None, :]
        pairs = [
            (call.student.scores(a - 1).masked_fill(~both, 0), call.teacher.scores(b - 1).masked_fill(~both, 0))
            for a, b in call.pairs
        ]
        return torch.stack([score_loss(mine, theirs) for mine, theirs in pairs]).sum()


@dataclass(frozen=True, kw_only=True)
class AttentionProbabilities(_Attention):
    """``KL(teacher || student)`` of each head's distribution at real queries ("divergence"), or its
    squared distance ("mse").
    """

    form: str = "divergence"
    name = "attention_probabilities"
    needs = frozenset({"attentions"})

    def __post_init__(self) -> None:
        if self.form not in ("divergence", "mse"):
            raise unknown("form of attention probabilities", self.form, ("divergence", "mse"))

    def loss(self, call: Call) -> Tensor:
        mine, theirs = call.student.encoded.attentions, call.teacher.encoded.attentions
        assert mine is not None
        assert theirs is not None
        losses = []
        for a, b in call.pairs:
            student, teacher = (
                x.transpose(1, 2)[call.student.real] for x in (mine[a - 1], theirs[b - 1])
            )  # (tokens, heads, keys)
            if self.form == "mse":
                losses.append((student - teacher).square().sum(-1).mean())
            else:
                tiny = torch.finfo(student.dtype).tiny
                losses.append(
                    (teacher * (teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log())).sum(-1).mean()
                )
        return torch.stack(losses).sum()


@dataclass(frozen=True, kw_only=True)
class Relations(Term):
    """MiniLM's relations between queries, keys and values of one layer. version 2: Q-Q, K-K, V-V in
    ``num_heads`` new heads (None: the teacher's own); version 1: Q-K and V-V, whose head counts
    must be the same in both. Layers from 1, None = the last.
    """

    version: int = 2
    num_heads: int | None = None
    teacher_layer: int | None = None
    student_layer: int | None = None
    name = "relations"
    needs = frozenset({"projected"})

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise TaskError(f"version must be 1 or 2, got {self.version}")

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        mine = sizes.layers("student") if self.student_layer is None else self.student_layer
        theirs = sizes.layers("teacher") if self.teacher_layer is None else self.teacher_layer
        pairs = sizes.pairs(((mine, theirs),))
        if not mine or not theirs:
            raise TaskError("the embeddings (layer 0) have no attention; layers count from 1 here")
        own, other = sizes.heads("student")[mine - 1], sizes.heads("teacher")[theirs - 1]
        if self.version == 1 and own != other:
            raise TaskError(
                f"MiniLM's first version needs equal head counts, got {own} and {other}; version=2 splits them anew"
            )
        return pairs, {}

    def loss(self, call: Call) -> Tensor:
        ((mine, theirs),) = call.pairs
        heads = self.num_heads if self.version == 2 and self.num_heads else call.teacher.num_heads[theirs - 1]
        student, teacher = (
            {name: parts[layer - 1] for name, parts in seen.projected.items()}
            for seen, layer in ((call.student, mine), (call.teacher, theirs))
        )
        return relation_loss(
            student, teacher, heads, call.student.real, RELATIONS_V2 if self.version == 2 else RELATIONS_V1
        )


@dataclass(frozen=True, kw_only=True)
class Patience(Term):
    """BERT-PKD's: the first token's states, scaled to length one, mean squared difference over
    layers. Widths must be the same.
    """

    layers: Layers = "skip"
    normalize: bool = True
    name = "patience"

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        mine, theirs = sizes.width("student"), sizes.width("teacher")
        if mine != theirs:
            raise TaskError(
                f"patience compares states of one width, got {mine} and {theirs}; use zoo.HiddenStates, which maps them"
            )
        return sizes.pairs(self.layers), {}

    def loss(self, call: Call) -> Tensor:
        at = call.student.real.int().argmax(1)
        rows = torch.arange(len(at), device=at.device)
        mine = torch.stack([call.student.states[a][rows, at] for a, _ in call.pairs], 1)  # (batch, layers, hidden)
        theirs = torch.stack([call.teacher.states[b][rows, at] for _, b in call.pairs], 1)
        return patience_loss(mine, theirs, normalize=self.normalize)


@dataclass(frozen=True, kw_only=True)
class Transfer(Term):
    """MobileBERT's feature maps, attention, means and variances; layer by layer over ``num_steps``
    steps, or, at 0, all at once.
    """

    num_steps: int = 0
    weights: TransferWeights = field(default_factory=TransferWeights)
    same_layer: bool = False
    name = "transfer"
    needs = frozenset({"projected"})

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        for what, mine, theirs in (
            ("layers", sizes.layers("student"), sizes.layers("teacher")),
            ("width of states", sizes.width("student"), sizes.width("teacher")),
            ("heads", sizes.heads("student"), sizes.heads("teacher")),
        ):
            if mine != theirs:
                raise TaskError(
                    f"MobileBERT's transfer compares layer with layer; the {what} must be the same, got {mine} and "
                    f"{theirs}"
                )
        layers = sizes.layers("student")
        if self.num_steps and self.num_steps < layers:
            raise TaskError(f"num_steps={self.num_steps} leaves no step for some of the {layers} layers")
        return sizes.pairs("uniform"), {}

    def losses(self, call: Call) -> dict[str, tuple[float, Tensor]]:
        layers = len(call.pairs)
        gates = transfer_gates(call.step, layers, self.num_steps) if self.num_steps else (1.0,) * layers
        scores = [[seen.scores(layer) for layer in range(layers)] for seen in (call.student, call.teacher)]
        _, terms = transfer_losses(
            call.student.states,
            call.teacher.states,
            scores[0],
            scores[1],
            gates,
            self.weights,
            same_layer=self.same_layer,
        )
        return {f"transfer_{name}": (self.weight, term) for name, term in terms.items()}


@dataclass(frozen=True, kw_only=True)
class LastStates(HiddenStates):
    """What leaves the last layer of each."""

    name = "last_states"

    def prepare(self, sizes: Sizes) -> tuple[Pairs, dict[str, nn.Module]]:
        last = ((sizes.layers("student"), sizes.layers("teacher")),)
        return HiddenStates(layers=last, form=self.form, projection=self.projection).prepare(sizes)
