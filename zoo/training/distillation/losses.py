"""Losses by which a student learns from a teacher. Teachers get no gradient.

softened    T² KL(softmax(t / T) || softmax(s / T))       Hinton et al.; mean over positions
MobileBERT  feature maps, attention maps, means and variances, layer by layer
MiniLM      KL(R_teacher || R_student) of relations R = softmax(A Aᵀ / sqrt(d_r)) between
            queries, keys and values of one layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import TaskError


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T² KL(softmax(teacher / T) || softmax(student / T))``, summed over classes, mean over all
    else: logits (..., classes).
    """
    _same_shape(student, teacher, "logits")
    log_student = (student / temperature).log_softmax(-1).flatten(0, -2)  # eq: softened
    log_teacher = (teacher.detach() / temperature).log_softmax(-1).flatten(0, -2)  # eq: softened
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2  # eq: softened


def squared_distance(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``||teacher - student||²`` of the logits themselves, summed over classes, mean over all else:
    DistilBERT's. The temperature plays no part.
    """
    _same_shape(student, teacher, "logits")
    return (student - teacher.detach()).square().sum(-1).mean()


# --- MobileBERT


@dataclass(frozen=True)
class TransferWeights:
    """How much each kind of knowledge counts (the repository's command)."""

    feature_map: float = 100.0
    attention: float = 1.0
    mean: float = 5000.0
    variance: float = 5.0


def transfer_gates(step: int, num_layers: int, num_steps: int) -> tuple[float, ...]:
    """Which layer learns at ``step`` of progressive knowledge transfer: 1 for it, 0 for the others.

    Layer l has the steps l·n < step <= (l + 1)·n with n = num_steps // num_layers: at step 0, and
    past the last phase, nobody learns.
    """
    phase = num_steps // num_layers
    return tuple(float(layer * phase < step <= (layer + 1) * phase) for layer in range(num_layers))


def transfer_rate(step: int, layer: int, num_layers: int, num_steps: int) -> float:
    """The factor on a layer's learning rate: 0 before its phase, 3 in it, 0.3 after."""
    phase = num_steps // num_layers
    return 0.0 if step <= layer * phase else 3.0 if step <= (layer + 1) * phase else 0.3


def transfer_losses(
    student_hidden: Sequence[Tensor],
    teacher_hidden: Sequence[Tensor],
    student_scores: Sequence[Tensor],
    teacher_scores: Sequence[Tensor],
    gates: Sequence[float],
    weights: TransferWeights = TransferWeights(),
    *,
    same_layer: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """MobileBERT's knowledge transfer and its weighted terms by the names of `TransferWeights`.

    Hidden states (batch, length, hidden): what enters the first block, then each block's result.
    Scores (batch, heads, query, key): each block's attention before the softmax, its mask added.
    ``same_layer``: hold a layer's mean and variance against the same layer of the teacher, as the
    paper says; the code that trained the published model holds them against all its layers at once.
    """
    layers = len(gates)
    for name, kept, wanted in (
        ("student_hidden", student_hidden, layers + 1),
        ("teacher_hidden", teacher_hidden, layers + 1),
        ("student_scores", student_scores, layers),
        ("teacher_scores", teacher_scores, layers),
    ):
        if len(kept) != wanted:
            raise TaskError(f"{name} must hold {wanted} tensors for {layers} gates, got {len(kept)}")
    everywhere = torch.stack([h.detach() for h in teacher_hidden])  # (layers + 1, batch, length, hidden)
    sums: dict[str, list[Tensor]] = {"feature_map": [], "attention": [], "mean": [], "variance": []}
    for layer, gate in enumerate(gates):
        student, teacher = student_hidden[layer + 1], teacher_hidden[layer + 1].detach()
        _same_shape(student, teacher, f"hidden states of layer {layer}")
        shape = student.shape[-1:]
        difference = F.layer_norm(student, shape, eps=1e-12) - F.layer_norm(teacher, shape, eps=1e-12)  # eq: transfer
        sums["feature_map"].append(gate * difference.square().mean())  # eq: transfer
        maps = teacher_scores[layer].detach().softmax(-1) * student_scores[layer].log_softmax(-1)  # eq: transfer
        sums["attention"].append(gate * -maps.sum(-1).mean())  # eq: transfer
        held = teacher if same_layer else everywhere
        sums["mean"].append(gate * (held.mean(-1) - student.mean(-1)).square().mean())  # eq: transfer
        variances = held.var(-1, correction=0), student.var(-1, correction=0)  # eq: transfer
        sums["variance"].append(gate * (variances[0] - variances[1]).abs().mean())  # eq: transfer
    weighed = {name: getattr(weights, name) / layers for name in sums}
    terms = {name: torch.stack(values).sum() * weighed[name] for name, values in sums.items()}  # eq: transfer
    return torch.stack(list(terms.values())).sum(), terms


def soft_word_labels(labels: Tensor, teacher_logits: Tensor, truth: float = 0.5) -> Tensor:
    """``truth · one-hot + (1 - truth) · softmax(teacher)``: MobileBERT's targets at masked places,
    (..., vocabulary).
    """
    one_hot = F.one_hot(labels, teacher_logits.shape[-1]).to(teacher_logits.dtype)
    return truth * one_hot + (1 - truth) * teacher_logits.detach().softmax(-1)


def _same_shape(student: Tensor, teacher: Tensor, what: str) -> None:
    if student.shape != teacher.shape:
        raise TaskError(
            f"{what} of student and teacher must have one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )


# --- MiniLM

RELATIONS_V2 = {("query", "query"): 1 / 3, ("key", "key"): 1 / 3, ("value", "value"): 1 / 3}  # eq: pairs
RELATIONS_V1 = {("query", "key"): 1.0, ("value", "value"): 1.0}  # in as many heads as the models have  # eq: pairs


def projections(block: nn.Module, layer_input: Tensor) -> dict[str, Tensor]:
    """Query, key and value of a block for what enters it, (batch, length, hidden) -> the same each,
    biases included.

    ``hidden_states[i]`` of an `Encoded` enters block i of a post-norm encoder.
    """
    attention: Any = block.attention
    return {name: getattr(attention, name)(layer_input) for name in ("query", "key", "value")}


def relation_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    num_heads: int,
    real: Tensor | None = None,
    relations: Mapping[tuple[str, str], float] = RELATIONS_V2,
) -> Tensor:
    """MiniLMv2's transfer of self-attention relations: ``Σ α_ij KL(R_teacher || R_student)`` with
    ``R_ij = softmax(A_i A_jᵀ / sqrt(d_r))``.

    student, teacher: query, key and value (batch, length, their own hidden size), split anew into
    ``num_heads`` relation heads each. real (batch, length) bool, True = a token: padding neither
    relates nor is related to. The divergence is summed over a sequence, divided by heads and
    length, and averaged over the batch. `RELATIONS_V1` with the models' own number of heads is
    MiniLM's first version.
    """
    batch, length = next(iter(student.values())).shape[:2]
    if real is None:
        real = torch.ones(batch, length, dtype=torch.bool, device=next(iter(student.values())).device)
    counts = real.sum(1).clamp(min=1)
    total = torch.zeros((), device=real.device, dtype=next(iter(student.values())).dtype)
    for (first, second), weight in relations.items():
        log_teacher = _relations(teacher[first].detach(), teacher[second].detach(), num_heads, real)
        log_student = _relations(student[first], student[second], num_heads, real)
        both = (real[:, None, :, None] & real[:, None, None, :]).expand_as(log_teacher)
        divergence = (  # eq: relation-loss
            (log_teacher.exp() * (log_teacher - log_student)).masked_fill(~both, 0).sum((1, 2, 3))
        )  # (batch,)
        total = total + weight * (divergence / (num_heads * counts)).mean()  # eq: relation-loss
    return total


def _relations(a: Tensor, b: Tensor, num_heads: int, real: Tensor) -> Tensor:
    """Log relations (batch, heads, length, length); those to padding hold the smallest number."""
    if a.shape[2] % num_heads:
        raise TaskError(f"{num_heads} relation heads do not divide the hidden size {a.shape[2]}")
    a, b = (rearrange(x, "batch length (heads size) -> batch heads length size", heads=num_heads) for x in (a, b))
    scores = a @ b.transpose(2, 3) / a.shape[3] ** 0.5  # eq: relations
    return scores.masked_fill(~real[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)  # eq: relations


# --- TinyBERT


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``-mean softmax(teacher / T) · log softmax(student / T)`` over batch *and* classes:
    TinyBERT's prediction loss. No factor T².
    """
    _same_shape(student, teacher, "logits")
    return -((teacher.detach() / temperature).softmax(-1) * (student / temperature).log_softmax(-1)).mean()


def score_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of attention scores (batch, heads, query, key) before the
    softmax, masks added.

    Scores of -100 and less count as zero on their own side, as TinyBERT has it: what is masked on
    both sides adds nothing, but is counted.
    """
    _same_shape(student, teacher, "attention scores")
    student, teacher = (scores.masked_fill(scores <= -100, 0) for scores in (student, teacher.detach()))
    return F.mse_loss(student, teacher)


def uniform_layers(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer for each of the student's layers 1, 2, ...: the last of equal shares."""
    if teacher % student:
        raise TaskError(
            f"{student} student layers do not divide {teacher} teacher layers; give the layers as pairs (student, "
            "teacher)"
        )
    return tuple(layer * (teacher // student) for layer in range(1, student + 1))


# --- patient knowledge distillation


def patience_loss(student: Tensor, teacher: Tensor, *, normalize: bool = True) -> Tensor:
    """The mean squared difference of first-token states (batch, layers, hidden), each scaled to
    length one where ``normalize``.
    """
    _same_shape(student, teacher, "first-token states")
    teacher = teacher.detach()
    if normalize:
        student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return F.mse_loss(student, teacher)


def averaged_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T² KL`` averaged over batch and classes: the soft loss of BERT-PKD's code."""
    return softened_divergence(student, teacher, temperature) / student.shape[-1]
