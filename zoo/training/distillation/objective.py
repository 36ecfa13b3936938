"""Distillation as one objective over any teacher and student: terms, each a loss between what
passes through the two.

    loss = Σ weight_i · term_i(student, teacher)

A term says which tensors it compares; where their widths differ, a linear map from the student's to
the teacher's is made from the two models and trained with the student. The teacher runs in eval
mode, without gradient. Layers are numbered 1, 2, ... as what leaves them; 0 is what enters the
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import TaskError
from zoo.training.distillation.activations import activations_of
from zoo.training.distillation.terms import Comparison, DistillationTerm, LayerPairs, Profile, SoftTargets


class Distillation(nn.Module):
    """``distillation(batch, **labels) -> (loss, parts)``. Its own parameters are the maps between
    widths; see `trained`.

    teacher, student: models or task models of the zoo; both stay the caller's. stream: of several,
    the one whose layers are compared. tokenizers: (teacher's, student's), compared token by token.
    Raises TaskError, before the first step, where vocabularies, classes, layers or heads do not
    agree.
    """

    teacher: Any
    student: Any

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        terms: Sequence[DistillationTerm],
        *,
        stream: str = "text",
        tokenizers: tuple[Any, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not terms:
            raise TaskError("a distillation needs at least one term, e.g. zoo.SoftTargets(temperature=2.0)")
        for term in terms:
            if not isinstance(term, DistillationTerm):
                raise TaskError(f"a term is an object like zoo.SoftTargets(temperature=2.0), got {term!r}")
        for role, model in (("teacher", teacher), ("student", student)):  # no parts of this module: their owners' own
            object.__setattr__(self, role, model)
        self.terms, self.stream = tuple(terms), stream
        same_vocabulary(teacher, student, tokenizers)
        self.projections = nn.ModuleDict()
        self.pairs: list[LayerPairs] = []
        like = next(student.parameters())
        for number, term in enumerate(self.terms):
            pairs, maps = term.prepare(Profile(student, stream), Profile(teacher, stream))
            self.pairs.append(pairs)
            for name, linear in maps.items():
                key = name if name == "shared" else f"{number}_{name}"
                if key not in self.projections:
                    with torch.no_grad():
                        linear.weight.normal_(0, linear.in_features**-0.5, generator=generator)
                        linear.bias.zero_()
                    self.projections[key] = linear.to(like.device, like.dtype)
        self.needs = frozenset(need for term in self.terms for need in term.needs)

    def trained(self) -> Iterator[nn.Parameter]:
        """What an optimizer should have: the student's parameters and the maps'."""
        yield from self.student.parameters()
        yield from self.parameters()

    def forward(
        self,
        batch: Mapping[str, Tensor],
        *,
        step: int = 0,
        for_student: Mapping[str, Tensor | None] | None = None,
        **labels: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: inputs by name; each model takes those that it reads, so that a student without
        segments gets none. for_student: inputs that are others for the student, None = left out;
        where layers are compared the tokens must stand at the same places. labels: the task's, by its names. step: for
        progressive terms.

        -> the loss, and each part before its weight, without gradient.
        """
        kept: dict[str, Any] = {name: name in self.needs for name in ("attentions", "projected")}
        was = self.teacher.training
        self.teacher.eval()
        try:
            with torch.no_grad():
                teacher = activations_of(self.teacher, batch, stream=self.stream, **kept)
        finally:
            self.teacher.train(was)
        own = {name: value for name, value in {**batch, **(for_student or {})}.items() if value is not None}
        student = activations_of(self.student, own, stream=self.stream, **kept, **labels)  # type: ignore[arg-type]
        read = [tuple(seen.encoded.last_hidden_state.shape[:2]) for seen in (student, teacher)]
        if read[0] != read[1] and not all(isinstance(term, SoftTargets) for term in self.terms):
            raise TaskError(
                f"the student reads {read[0]} tokens and the teacher {read[1]}; their layers are compared place by "
                "place, so for_student must have the batch's shape, except where SoftTargets stand alone"
            )
        total, parts = [], {}
        for number, (term, pairs) in enumerate(zip(self.terms, self.pairs, strict=True)):
            maps = {
                key.removeprefix(f"{number}_"): module
                for key, module in self.projections.items()
                if key == "shared" or key.startswith(f"{number}_")
            }
            for name, (weight, value) in term.losses(Comparison(student, teacher, labels, maps, step, pairs)).items():
                parts[name if name not in parts else f"{name}_{number}"] = value.detach()
                total.append(weight * value)
        return torch.stack(total).sum(), parts


def same_vocabulary(teacher: Any, student: Any, tokenizers: tuple[Any, Any] | None = None) -> None:
    """Refuse two models whose token ids do not mean the same."""
    sizes = [getattr(model.config, "vocab_size", None) for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise TaskError(
            f"the teacher's vocabulary has {sizes[0]} tokens and the student's {sizes[1]}: the same ids must mean the "
            "same tokens to both; give the student the teacher's vocab_size and tokenizer, or trim both alike by "
            "zoo.trim_vocabulary"
        )
    if tokenizers is not None:
        of_teacher, of_student = (tokenizer.backend.get_vocab() for tokenizer in tokenizers)
        if differing := [token for token in of_teacher if of_student.get(token) != of_teacher[token]]:
            token = differing[0]
            raise TaskError(
                f"{len(differing)} tokens have other ids in the two vocabularies, e.g. {token!r}: {of_teacher[token]} "
                f"for the teacher, {of_student.get(token)} for the student"
            )
