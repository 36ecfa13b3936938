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
from zoo.training.distillation.activations import Activations, attention_layers
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
    squared_distance,
    transfer_gates,
    transfer_losses,
    uniform_layers,
)

LayerPairs = tuple[tuple[int, int], ...]
Layers = str | Sequence[tuple[int, int]]
Prepared = tuple[LayerPairs, dict[str, nn.Linear]]
LAYER_MAPS = ("uniform", "skip", "last")
LOGITS = ("logits", "prediction_logits", "start_logits", "end_logits", "seq_relationship_logits", "sop_logits")
SOFT: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "divergence": softened_divergence,
    "averaged": averaged_divergence,
    "cross-entropy": soft_cross_entropy,
    "squared": squared_distance,
}


def layer_pairs(layers: Layers, student: int, teacher: int) -> LayerPairs:
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
    pairs = tuple((int(of_student), int(of_teacher)) for of_student, of_teacher in layers)
    for of_student, of_teacher in pairs:
        if not (0 <= of_student <= student and 0 <= of_teacher <= teacher):
            raise TaskError(
                f"layers hold ({of_student}, {of_teacher}), but the student has layers 0..{student} and the teacher "
                f"0..{teacher}"
            )
    if not pairs:
        raise TaskError("layers is empty, so there is nothing to compare; name a map or give pairs (student, teacher)")
    return pairs


@dataclass(frozen=True)
class Profile:
    """What a term may know of a model before the first step."""

    model: Any
    stream: str

    @property
    def heads(self) -> tuple[int, ...]:
        """The heads of each layer of self-attention, in order."""
        found = [
            (depth, index, int(part.num_heads))
            for index, (_, part, depths) in enumerate(attention_layers(self.model, self.stream))
            for depth in depths
        ]
        return tuple(heads for _, _, heads in sorted(found))

    @property
    def num_layers(self) -> int:
        return sum(len(depths) for _, _, depths in attention_layers(self.model, self.stream))

    @property
    def width(self) -> int:
        """The width of the states in the compared stream."""
        bare = getattr(self.model, "model", self.model)
        return int(type(bare).widths(bare.config).get(self.stream, bare.config.hidden_size))


@dataclass(frozen=True)
class Comparison:
    """One step as a term sees it. ``maps``: the term's maps between widths, by name."""

    student: Activations
    teacher: Activations
    labels: Mapping[str, Tensor]
    maps: Mapping[str, nn.Module]
    step: int
    pairs: LayerPairs


@dataclass(frozen=True, kw_only=True)
class DistillationTerm:
    """Base of the terms. ``weight`` counts the term in the sum."""

    weight: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()  # "attentions", "projected", "labels"
    name: ClassVar[str] = ""

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        """Check that the two models can be compared; -> the layers in pairs, and the maps that
        widths ask for.
        """
        return (), {}

    def losses(self, seen: Comparison) -> dict[str, tuple[float, Tensor]]:
        """By name: how much it counts, and the loss."""
        return {self.name: (self.weight, self.loss(seen))}

    def loss(self, seen: Comparison) -> Tensor:
        raise NotImplementedError


def pairs_of(layers: Layers, student: Profile, teacher: Profile) -> LayerPairs:
    return layer_pairs(layers, student.num_layers, teacher.num_layers)


@dataclass(frozen=True, kw_only=True)
class SoftTargets(DistillationTerm):
    """The teacher's softened distribution over classes, words or places; with ``hard_weight`` the
    task's own loss on labels too.

    form: "divergence" ``T² KL`` per example (Hinton), "averaged" the same over classes too
    (BERT-PKD's code), "cross-entropy" TinyBERT's, "squared" ``||t - s||²`` of the logits
    themselves. labelled_only: compare words only where there is a label.
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
        if not self.weight and not self.hard_weight:
            raise TaskError("every weight is 0, so there is nothing to learn; give weight or hard_weight")

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        for role, profile in (("student", student), ("teacher", teacher)):
            if not hasattr(profile.model, "task"):
                raise TaskError(f"soft targets compare logits, and the {role} has no head; create it with task=")
        labels = [profile.model.options.get("num_labels") for profile in (student, teacher)]
        if labels[0] != labels[1]:
            raise TaskError(
                f"the student has num_labels={labels[0]} and the teacher {labels[1]}; soft targets need the same "
                "classes"
            )
        return (), {}

    def losses(self, seen: Comparison) -> dict[str, tuple[float, Tensor]]:
        found = {}
        if self.weight:
            losses = [SOFT[self.form](*logits, self.temperature) for logits in self._logits(seen)]
            found[self.name] = (self.weight, torch.stack(losses).mean())
        if self.hard_weight:
            loss = seen.student.output.loss
            if loss is None:
                raise TaskError("hard_weight counts the task's own loss; pass the labels with the batch")
            found["hard_targets"] = (self.hard_weight, loss)
        return found

    def _logits(self, seen: Comparison) -> Iterator[tuple[Tensor, Tensor]]:
        outputs = (seen.student.output, seen.teacher.output)
        names = [name for name in LOGITS if all(getattr(output, name, None) is not None for output in outputs)]
        if {"logits", "prediction_logits"} <= set(names):
            names.remove("logits")
        if not names:
            kinds = " and ".join(type(output).__name__ for output in outputs)
            raise TaskError(f"{kinds} show no logits to compare")
        for name in names:
            student, teacher = (getattr(output, name) for output in outputs)
            if student.shape != teacher.shape:
                raise TaskError(
                    f"{name} are {tuple(student.shape)} of the student, {tuple(teacher.shape)} of the teacher"
                )
            if student.dim() == 3 and tuple(student.shape[:2]) == tuple(seen.student.real.shape):
                labelled = self.labelled_only and "labels" in seen.labels
                chosen = seen.labels["labels"] > -1 if labelled else seen.student.real
                student, teacher = student[chosen], teacher[chosen]
            yield student, teacher


@dataclass(frozen=True, kw_only=True)
class HiddenStates(DistillationTerm):
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

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        pairs, widths = pairs_of(self.layers, student, teacher), (student.width, teacher.width)
        if self.projection == "auto" and widths[0] == widths[1]:
            return pairs, {}
        return pairs, {self._map(*pair): nn.Linear(*widths) for pair in pairs}

    def _map(self, of_student: int, of_teacher: int) -> str:
        return "shared" if self.projection == "shared" else f"layer_{of_student}_to_{of_teacher}"

    def loss(self, seen: Comparison) -> Tensor:
        losses = []
        for pair in seen.pairs:
            student, teacher = seen.student.states[pair[0]], seen.teacher.states[pair[1]][seen.student.real]
            student = student[seen.student.real]
            if self._map(*pair) in seen.maps:
                student = seen.maps[self._map(*pair)](student)
            if self.form == "mse":
                losses.append(F.mse_loss(student, teacher))
            else:
                losses.append((1 - F.cosine_similarity(student, teacher, dim=-1)).mean())  # eq: cosine
        return torch.stack(losses).sum()


@dataclass(frozen=True, kw_only=True)
class Embeddings(HiddenStates):
    """What enters the first layer, compared as `HiddenStates` does."""

    layers: Layers = ((0, 0),)
    name = "embeddings"


@dataclass(frozen=True, kw_only=True)
class LastStates(HiddenStates):
    """What leaves the last layer of each."""

    name = "last_states"

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        last = ((student.num_layers, teacher.num_layers),)
        return HiddenStates(layers=last, form=self.form, projection=self.projection).prepare(student, teacher)


def attention_pairs(layers: Layers, student: Profile, teacher: Profile) -> LayerPairs:
    """As `pairs_of`, for what embeddings have not."""
    pairs = pairs_of(layers, student, teacher)
    if any(0 in pair for pair in pairs):
        raise TaskError("the embeddings (layer 0) have no attention; layers count from 1 here")
    return pairs


@dataclass(frozen=True, kw_only=True)
class _Attention(DistillationTerm):
    layers: Layers = "uniform"

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        pairs = attention_pairs(self.layers, student, teacher)
        for a, b in pairs:
            if student.heads[a - 1] != teacher.heads[b - 1]:
                raise TaskError(
                    f"layer {a} of the student has {student.heads[a - 1]} heads and layer {b} of the teacher "
                    f"{teacher.heads[b - 1]}; attention is compared head by head: use zoo.Relations, which splits them "
                    "anew"
                )
        return pairs, {}


@dataclass(frozen=True, kw_only=True)
class AttentionScores(_Attention):
    """TinyBERT's: mean squared differences of ``q kᵀ / sqrt(head size)`` before the softmax, summed
    over the pairs of layers.
    """

    name = "attention_scores"
    needs = frozenset({"projected"})

    def loss(self, seen: Comparison) -> Tensor:
        padding = ~(seen.student.real[:, None, :, None] & seen.student.real[:, None, None, :])
        losses = []
        for a, b in seen.pairs:
            student, teacher = (
                side.scores(layer - 1).masked_fill(padding, 0) for side, layer in ((seen.student, a), (seen.teacher, b))
            )
            losses.append(score_loss(student, teacher))
        return torch.stack(losses).sum()


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

    def loss(self, seen: Comparison) -> Tensor:
        losses = []
        for pair in seen.pairs:
            student, teacher = (
                side.encoded.attentions[layer - 1].transpose(1, 2)[seen.student.real]  # type: ignore[index]
                for side, layer in zip((seen.student, seen.teacher), pair, strict=True)
            )  # (tokens, heads, keys)
            if self.form == "mse":
                distance = (student - teacher).square()
            else:
                tiny = torch.finfo(student.dtype).tiny
                distance = teacher * (teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log())
            losses.append(distance.sum(-1).mean())
        return torch.stack(losses).sum()


@dataclass(frozen=True, kw_only=True)
class Relations(DistillationTerm):
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

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        own = student.num_layers if self.student_layer is None else self.student_layer
        other = teacher.num_layers if self.teacher_layer is None else self.teacher_layer
        pairs = attention_pairs(((own, other),), student, teacher)
        heads = student.heads[own - 1], teacher.heads[other - 1]
        if self.version == 1 and heads[0] != heads[1]:
            raise TaskError(
                f"MiniLM's first version needs equal head counts, got {heads[0]} and {heads[1]}; version=2 splits them "
                "anew"
            )
        return pairs, {}

    def loss(self, seen: Comparison) -> Tensor:
        (pair,) = seen.pairs
        heads = self.num_heads if self.version == 2 and self.num_heads else seen.teacher.num_heads[pair[1] - 1]
        student, teacher = (
            {name: layers[layer - 1] for name, layers in side.projected.items()}
            for side, layer in zip((seen.student, seen.teacher), pair, strict=True)
        )
        relations = RELATIONS_V2 if self.version == 2 else RELATIONS_V1
        return relation_loss(student, teacher, heads, seen.student.real, relations)


@dataclass(frozen=True, kw_only=True)
class Patience(DistillationTerm):
    """BERT-PKD's: the first token's states, scaled to length one, mean squared difference over
    layers. Widths must be the same.
    """

    layers: Layers = "skip"
    normalize: bool = True
    name = "patience"

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        if student.width != teacher.width:
            raise TaskError(
                f"patience compares states of one width, got {student.width} and {teacher.width}; use "
                "zoo.HiddenStates, which maps them"
            )
        return pairs_of(self.layers, student, teacher), {}

    def loss(self, seen: Comparison) -> Tensor:
        first = seen.student.real.int().argmax(1)
        rows = torch.arange(len(first), device=first.device)
        student, teacher = (
            torch.stack([side.states[layer][rows, first] for layer in layers], 1)  # (batch, layers, hidden)
            for side, layers in zip((seen.student, seen.teacher), zip(*seen.pairs, strict=True), strict=True)
        )
        return patience_loss(student, teacher, normalize=self.normalize)


@dataclass(frozen=True, kw_only=True)
class Transfer(DistillationTerm):
    """MobileBERT's feature maps, attention, means and variances; layer by layer over ``num_steps``
    steps, or, at 0, all at once.
    """

    num_steps: int = 0
    weights: TransferWeights = field(default_factory=TransferWeights)
    same_layer: bool = False
    name = "transfer"
    needs = frozenset({"projected"})

    def prepare(self, student: Profile, teacher: Profile) -> Prepared:
        for what, name in (("layers", "num_layers"), ("width of states", "width"), ("heads", "heads")):
            own, other = getattr(student, name), getattr(teacher, name)
            if own != other:
                raise TaskError(
                    f"MobileBERT's transfer compares layer with layer; the {what} must be the same, got {own} and "
                    f"{other}"
                )
        if self.num_steps and self.num_steps < student.num_layers:
            raise TaskError(f"num_steps={self.num_steps} leaves no step for some of the {student.num_layers} layers")
        return pairs_of("uniform", student, teacher), {}

    def losses(self, seen: Comparison) -> dict[str, tuple[float, Tensor]]:
        layers = len(seen.pairs)
        gates = transfer_gates(seen.step, layers, self.num_steps) if self.num_steps else (1.0,) * layers
        student, teacher = ([side.scores(layer) for layer in range(layers)] for side in (seen.student, seen.teacher))
        states = seen.student.states, seen.teacher.states
        _, terms = transfer_losses(*states, student, teacher, gates, self.weights, same_layer=self.same_layer)
        return {f"transfer_{name}": (self.weight, term) for name, term in terms.items()}
