"""Extreme (Zhao et al., 2019): a student with a small vocabulary of its own, taught by a teacher
that reads both vocabularies mixed.

    teacher's input    each word cut by the student's vocabulary with probability p, else by the teacher's
    loss               MLM of the teacher on mixed text + MLM of the student on its own cut + ε · (L_down + L_up)
    L_down             Σ_w ||V w_t Vᵀ - w_s||²       V (h, d) takes the teacher's width d down to the student's h
    L_up               Σ_w ||w_t - U w_s Uᵀ||²       U (d, h) takes the student's up; one pair (U, V) for all weights

The joint vocabulary holds the teacher's ids first, then the pieces that only the student has. The
second version of the paper drops the projection losses (ε = 0) and starts the student's table from
the mixed-trained one, see `SharedProjections.start_table`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, InputError, TaskError
from zoo.techniques.trimming import with_vocabulary
from zoo.tokenization import Tokenizer


@dataclass(frozen=True)
class Cut:
    """A text as ids of the joint vocabulary, with [CLS] and [SEP]; ``words``: which word each
    belongs to, None for those two.
    """

    ids: list[int]
    words: list[int | None]


class MixedVocabulary:
    """Two WordPiece tokenizers that split text into the same words, and the joint vocabulary of
    both.
    """

    def __init__(self, teacher: Tokenizer, student: Tokenizer) -> None:
        for role, tokenizer in (("teacher", teacher), ("student", student)):
            if type(tokenizer.backend.model).__name__ != "WordPiece":
                raise ConfigError(
                    f"mixing word by word takes WordPiece tokenizers, the {role}'s is "
                    f"{type(tokenizer.backend.model).__name__}"
                )
            if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
                raise ConfigError(f"the {role}'s tokenizer has no cls or sep token to put around a text")
        self.teacher, self.student = teacher, student
        of_teacher, of_student = teacher.backend.get_vocab(), student.backend.get_vocab()
        own = sorted((piece for piece in of_student if piece not in of_teacher), key=of_student.__getitem__)
        self.size = teacher.vocab_size + len(own)
        self._joint = of_teacher | {piece: teacher.vocab_size + place for place, piece in enumerate(own)}
        self.of_student = torch.full((student.vocab_size,), -1)  # student id -> joint id; -1 where there is no piece
        for piece, index in of_student.items():
            self.of_student[index] = self._joint[piece]

    @property
    def starts(self) -> Tensor:
        """(size,) bool: pieces that begin a word, for `zoo.data.collate.WholeWordMasking`."""
        starts = torch.zeros(self.size, dtype=torch.bool)
        for piece, index in self._joint.items():
            starts[index] = not piece.startswith("##")
        return starts

    def words(self, text: str) -> list[str]:
        """The words of a text, as both must see them."""
        found = [_words(tokenizer, text) for tokenizer in (self.teacher, self.student)]
        if found[0] != found[1]:
            differing = next((a, b) for a, b in zip_longest(*found) if a != b)
            raise InputError(
                f"the two tokenizers split text differently: {differing[0]!r} and {differing[1]!r}; do both lower-case?"
            )
        return found[0]

    def cut(self, text: str, probability: float = 0.5, generator: torch.Generator | None = None) -> Cut:
        """The teacher's input: each word by the student's vocabulary with this probability, else by
        the teacher's.
        """
        if not 0 <= probability <= 1:
            raise ConfigError(f"probability={probability} must lie in [0, 1]; the paper's is 0.5")
        words = self.words(text)
        by_student = (torch.rand(len(words), generator=generator) < probability).tolist()
        ids: list[int] = [int(self.teacher.cls_token_id or 0)]
        places: list[int | None] = [None]
        for place, (word, chosen) in enumerate(zip(words, by_student, strict=True)):
            model = (self.student if chosen else self.teacher).backend.model
            pieces = [self._joint[token.value] for token in model.tokenize(word)]
            ids += pieces
            places += [place] * len(pieces)
        return Cut([*ids, int(self.teacher.sep_token_id or 0)], [*places, None])

    def widen(self, model: nn.Module) -> Any:
        """The teacher with rows for the pieces that only the student has; each starts as the mean
        of the teacher's pieces of that text.
        """
        bare: Any = getattr(model, "model", model)
        if bare.config.vocab_size < self.teacher.vocab_size:
            raise TaskError(
                f"the model has {bare.config.vocab_size} tokens and its tokenizer {self.teacher.vocab_size}"
            )
        mean = torch.zeros(self.size, bare.config.vocab_size, dtype=torch.float64)
        for piece, index in self._joint.items():
            if index < self.teacher.vocab_size:
                mean[index, index] = 1
                continue
            parts = [t.id for t in self.teacher.backend.model.tokenize(piece.removeprefix("##"))]
            for part in parts:
                mean[index, part] += 1 / len(parts)
        unused = (mean.sum(1) == 0).nonzero().flatten()
        mean[unused, unused.clamp(max=bare.config.vocab_size - 1)] = 1  # holes keep their rows

        def along(old: Tensor, axis: int) -> Tensor:
            return torch.tensordot(mean, old.double(), ([1], [axis])).movedim(0, axis)

        return with_vocabulary(model, bare.config.replace(vocab_size=self.size), along)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    backend = tokenizer.backend
    prepared = tokenizer.pre_step(text)
    normalized = prepared if backend.normalizer is None else backend.normalizer.normalize_str(prepared)
    if backend.pre_tokenizer is None:
        return normalized.split()
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]


class SharedProjections(nn.Module):
    """U (d, h) and V (h, d), one pair for every weight that teacher and student share by name, as
    many layers in both.

    An axis of the teacher's width d is projected to h; one of r · d (a feed-forward's) block by
    block where the student's is r · h; equal axes stay. Of token tables the rows of common pieces
    are compared. What fits in no such way is left out and named in ``left_out``.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        vocabulary: MixedVocabulary,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        models: list[Any] = [getattr(model, "model", model) for model in (teacher, student)]
        self.wide, self.narrow = (model.config.hidden_size for model in models)
        layers = [model.config.num_layers for model in models]
        if layers[0] != layers[1]:
            raise TaskError(
                f"shared projections compare layer with layer; the teacher has {layers[0]} and the student {layers[1]}"
            )
        like = next(student.parameters())
        self.up = nn.Parameter(torch.empty(self.wide, self.narrow, device=like.device, dtype=like.dtype))
        self.down = nn.Parameter(torch.empty(self.narrow, self.wide, device=like.device, dtype=like.dtype))
        with torch.no_grad():
            basis = torch.empty(self.wide, self.wide, dtype=torch.float64).normal_(generator=generator)
            rows = torch.linalg.qr(basis)[0][:, : min(self.wide, self.narrow)]
            self.up.zero_()
            self.up[:, : rows.shape[1]] = rows.to(self.up)
            self.down.copy_(self.up.T)
        common = vocabulary.of_student
        self.student_rows = (common >= 0).nonzero().flatten()
        self.teacher_rows = common[self.student_rows]
        teachers, students = (dict(model.named_parameters()) for model in models)
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self.left_out: list[str] = []
        for name, parameter in students.items():
            if name in teachers and not name.startswith("pooler.") and self._fits(name, teachers[name], parameter):
                self.pairs[name] = (teachers[name], parameter)
            else:
                self.left_out.append(name)
        if not self.pairs:
            raise TaskError("teacher and student share no parameter that could be projected; are they of one family?")

    def forward(self) -> tuple[Tensor, Tensor]:
        """L_down and L_up, summed over all weights."""
        down, up = [], []
        for name, (teacher, student) in self.pairs.items():
            if name.endswith("embeddings.token.weight"):
                teacher, student = teacher[self.teacher_rows], student[self.student_rows]
            down.append((_projected(teacher, self.down, student.shape) - student).square().sum())
            up.append((teacher - _projected(student, self.up, teacher.shape)).square().sum())
        return torch.stack(down).sum(), torch.stack(up).sum()

    @torch.no_grad()
    def start_table(self) -> None:
        """The student's token rows of common pieces become the teacher's, taken down (the paper's
        second version).
        """
        for name, (teacher, student) in self.pairs.items():
            if name.endswith("embeddings.token.weight"):
                size = (len(self.teacher_rows), student.shape[1])
                student[self.student_rows] = _projected(teacher[self.teacher_rows], self.down, size)

    def _fits(self, name: str, teacher: Tensor, student: Tensor) -> bool:
        """Whether each axis, of a token table all but its rows, is as long in both or projected."""
        if teacher.dim() != student.dim():
            return False
        first = int(name.endswith("embeddings.token.weight"))
        return all(
            wide == narrow or (wide % self.wide == 0 and wide // self.wide * self.narrow == narrow)
            for wide, narrow in zip(teacher.shape[first:], student.shape[first:], strict=True)
        )


def _projected(x: Tensor, matrix: Tensor, shape: Iterable[int]) -> Tensor:
    """``matrix`` (to, from) applied along every axis of ``x`` whose size differs from that of
    ``shape``, in blocks of its width.
    """
    to, source = matrix.shape
    for axis, size in enumerate(shape):
        if x.shape[axis] != size:
            blocks = x.movedim(axis, -1).unflatten(-1, (-1, source))  # (..., r, from)
            x = (blocks @ matrix.T).flatten(-2).movedim(-1, axis)
            assert x.shape[axis] == size == to * blocks.shape[-2]
    return x


class MixedTraining(nn.Module):
    """Dual training: ``loss = MLM(teacher, mixed) + MLM(student, own) + ε (L_down + L_up)``; both
    models learn, and the projections.

    ``epsilon`` 1 is the paper's first version, 0 its second.
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, projections: SharedProjections | None, epsilon: float = 1.0
    ) -> None:
        super().__init__()
        if epsilon and projections is None:
            raise ConfigError(f"epsilon={epsilon} weighs projection losses; give SharedProjections, or epsilon=0")
        self.teacher, self.student, self.projections, self.epsilon = teacher, student, projections, epsilon

    def forward(self, mixed: dict[str, Any], own: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Batches of a masked-LM collator, the teacher's in joint ids. -> the loss and its
        parts.
        """
        parts = {"teacher": self.teacher(**mixed).loss, "student": self.student(**own).loss}
        total = parts["teacher"] + parts["student"]
        if self.epsilon and self.projections is not None:
            parts["down"], parts["up"] = self.projections()
            total = total + self.epsilon * (parts["down"] + parts["up"])
        return total, {name: part.detach() for name, part in parts.items()}
