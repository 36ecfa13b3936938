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
from zoo.training.distillation.observe import observe
from zoo.training.distillation.terms import Call, Pairs, Sizes, Term


class Distillation(nn.Module):
    """``distillation(batch, **labels) -> (loss, parts)``. Its own parameters are the maps between
    widths; see `trained`.

    teacher, student: models or task models of the zoo; both stay the caller's. stream: of several,
    the one whose layers are compared. tokenizers: (teacher's, student's), compared token by token.
    Raises TaskError, before the first step, where vocabularies, classes, layers or heads do not
    agree.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        terms: Sequence[Term],
        *,
        stream: str = "text",
        tokenizers: tuple[Any, Any] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not terms:
            raise TaskError("a distillation needs at least one term, e.g. zoo.SoftTargets(temperature=2.0)")
        for term in terms:
            if not isinstance(term, Term):
                raise TaskError(f"a term is an object like zoo.SoftTargets(temperature=2.0), got {term!r}")
        object.__setattr__(
            self, "teacher", teacher
        )  # neither is a part of this module: each is saved and moved by its owner
        object.__setattr__(self, "student", student)
        self.terms, self.stream = tuple(terms), stream
        same_vocabulary(teacher, student, tokenizers)
        self.projections = nn.ModuleDict()
        self.pairs: list[Pairs] = []
        sizes = Sizes(student, teacher, stream)
        like = next(student.parameters())
        for number, term in enumerate(self.terms):
            pairs, maps = term.prepare(sizes)
            self.pairs.append(pairs)
            for name, module in maps.items():
                key = name if name == "shared" else f"{number}_{name}"
                if key not in self.projections:
                    _draw(module, generator)
                    self.projections[key] = module.to(like.device, like.dtype)
        self.needs = frozenset(need for term in self.terms for need in term.needs)

    def trained(self) -> Iterator[nn.Parameter]:
        """What an optimizer should have: the student's parameters and the maps'."""
        yield from self.student.parameters()  # type: ignore[union-attr, operator]
        yield from self.parameters()

    def forward(
        self, batch: Mapping[str, Tensor], *, step: int = 0, **labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: inputs by name; each model takes those that it reads. labels: the task's, by its
        names. step: for progressive terms.

        -> the loss, and each part before its weight, without gradient.
        """
        how: dict[str, Any] = {
            "stream": self.stream,
            "attentions": "attentions" in self.needs,
            "projected": "projected" in self.needs,
        }
        teacher: nn.Module = self.teacher  # type: ignore[assignment]
        was = teacher.training
        teacher.eval()
        try:
            with torch.no_grad():
                theirs = observe(teacher, batch, **how)
        finally:
            teacher.train(was)
        mine = observe(self.student, batch, **{**how, **labels})
        total, parts = [], {}
        for number, (term, pairs) in enumerate(zip(self.terms, self.pairs, strict=True)):
            maps = nn.ModuleDict()
            for key, module in self.projections.items():
                if key == "shared" or key.startswith(f"{number}_"):
                    maps[key.removeprefix(f"{number}_")] = module
            for name, (weight, value) in term.losses(Call(mine, theirs, labels, maps, step, pairs)).items():
                parts[name if name not in parts else f"{name}_{number}"] = value.detach()
                total.append(weight * value)
        return torch.stack(total).sum(), parts


def same_vocabulary(teacher: Any, student: Any, tokenizers: tuple[Any, Any] | None = None) -> None:
    """Refuse two models whose token ids do not mean the same."""
    sizes = [getattr(model.config, "vocab_size", None) for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise TaskError(
            f"the teacher's vocabulary has {sizes[0]} tokens and the student's {sizes[1]}: the same ids must mean the "
            "same tokens to both; "
            "give the student the teacher's vocab_size and tokenizer, or trim both alike by zoo.trim_vocabulary"
        )
    if tokenizers is not None:
        theirs, mine = (tokenizer.backend.get_vocab() for tokenizer in tokenizers)
        if differing := [token for token in theirs if mine.get(token) != theirs[token]]:
            token = differing[0]
            raise TaskError(
                f"{len(differing)} tokens have other ids in the two vocabularies, e.g. {token!r}: {theirs[token]} for "
                "the teacher, "
                f"{mine.get(token)} for the student"
            )


def _draw(module: nn.Module, generator: torch.Generator | None) -> None:
    assert isinstance(module, nn.Linear)
    with torch.no_grad():
        module.weight.normal_(0, module.in_features**-0.5, generator=generator)
        module.bias.zero_()


# --- recipes
# ------------------------------------------------------------------------------------------------------------------
