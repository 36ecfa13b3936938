"""What spans of a batch may mean (KnowBert): from words and their candidates to tensors, and how
they are hidden for masked words.

lexicon, table = EntityLexicon.read("priors.txt"), EntityTable(names, special=KNOWBERT_SPECIAL)
collate = CandidateCollator(table=table)
found = [candidate_mentions(words, lexicon) for words in texts]
model(ids, mask, entity_candidates={"wiki": collate(found, pieces)})
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.data.knowledge.lexicon import Candidate, EntityTable
from zoo.errors import ConfigError, InputError
from zoo.layers.padding import at_hand

KNOWBERT_SPECIAL = ("@@PADDING@@", "@@UNKNOWN@@", "@@MASK@@", "@@NULL@@")
"""The first rows of KnowBert's tables."""

Found = Sequence[tuple[tuple[int, int], Sequence[Candidate]]]
"""Of one text: spans of words (first, last), and what each may mean, as
`zoo.data.knowledge.lexicon.candidate_mentions` finds them.
"""


@dataclass(frozen=True, kw_only=True)
class CandidateCollator:
    """Texts' spans of words -> `Candidates` over their pieces. A text without mentions has one
    empty span.

    ``table``: which row an entity is; its first four are padding, unknown, mask and null.
    ``max_length``: pieces a text is cut to; a span that does not end before it is left out.
    ``masked`` and ``replaced``: for `hide`.
    """

    table: EntityTable
    max_length: int | None = None
    masked: float = 0.8
    replaced: float = 0.1

    def __post_init__(self) -> None:
        if len(self.table.special) < len(KNOWBERT_SPECIAL):
            given = f"the table's special rows are {self.table.special}"
            raise ConfigError(f"{given}; pass EntityTable(names, special=KNOWBERT_SPECIAL), whose first row is padding")
        if len(self.table) == len(self.table.special):
            raise ConfigError("the table holds no entity but the special ones")
        if self.masked < 0 or self.replaced < 0 or self.masked + self.replaced > 1:
            raise ConfigError(f"masked={self.masked} and replaced={self.replaced} must be shares that sum to at most 1")

    def __call__(self, found: Sequence[Found], pieces: Sequence[Sequence[int]]) -> Candidates:
        """found: each text's spans of words; pieces: into how many pieces each of its words is cut,
        [CLS] and [SEP] being words of one.

        Raises InputError for a span outside its text, UnknownNameError for an entity that the table
        does not hold.
        """
        if len(found) != len(pieces):
            raise InputError(f"there must be one row of pieces for each of the {len(found)} texts, got {len(pieces)}")
        rows = [self._placed(mentions, list(counts)) for mentions, counts in zip(found, pieces, strict=True)]
        most = max((len(row) for row in rows), default=0) or 1
        width = max((len(candidates) for row in rows for _, candidates in row), default=0) or 1
        spans = torch.full((len(rows), most, 2), -1)
        ids = torch.zeros(len(rows), most, width, dtype=torch.int64)
        priors = torch.zeros(len(rows), most, width)
        for number, row in enumerate(rows):
            for place, (span, candidates) in enumerate(row):
                spans[number, place] = torch.tensor(span)
                ids[number, place, : len(candidates)] = torch.tensor([self.table.row(c.entity) for c in candidates])
                priors[number, place, : len(candidates)] = torch.tensor([c.prior for c in candidates])
        return Candidates(spans, ids, priors)

    def _placed(self, mentions: Found, counts: list[int]) -> list[tuple[tuple[int, int], Sequence[Candidate]]]:
        """The spans in pieces, those that fit and may mean something."""
        starts = [0, *itertools.accumulate(counts)]
        placed = []
        for (first, last), candidates in mentions:
            if not 0 <= first <= last < len(counts):
                raise InputError(
                    f"the span of words ({first}, {last}) lies outside the text: 0 <= first <= last < {len(counts)} "
                    "must hold"
                )
            begin, end = starts[first], starts[last + 1] - 1
            if candidates and begin <= end and (self.max_length is None or end < self.max_length):
                placed.append(((begin, end), candidates))
        return placed

    def hide(self, candidates: Candidates, corrupted: Tensor, generator: torch.Generator | None = None) -> Candidates:
        """What a span means says which words were masked in it: of the spans that touch a position
        where ``corrupted`` (batch, length) is True, ``masked`` may mean the mask entity alone,
        ``replaced`` other entities of the table, the rest stay.
        """
        first, last = candidates.spans.unbind(2)
        if corrupted.dim() != 2 or len(corrupted) != len(first) or bool((last >= corrupted.shape[1]).any()):
            got = f"{tuple(corrupted.shape)} for spans {tuple(candidates.spans.shape)} up to {int(last.max())}"
            raise InputError(f"corrupted must be (batch, length) and reach as far as the spans do, got {got}")
        before = torch.nn.functional.pad(
            corrupted.long().cumsum(1), (1, 0)
        )  # (batch, length + 1): how many stand before each place
        touched = (first >= 0) & (before.gather(1, last.clamp(min=-1) + 1) > before.gather(1, first.clamp(min=0)))
        fate = torch.rand(first.shape, generator=generator)
        alone = torch.zeros_like(candidates.ids)
        alone[:, :, 0] = KNOWBERT_SPECIAL.index("@@MASK@@")
        others = torch.randint(len(self.table.special), len(self.table), candidates.ids.shape, generator=generator)
        to_mask = (touched & (fate < self.masked)).unsqueeze(2)
        to_replace = (touched & (fate >= self.masked) & (fate < self.masked + self.replaced)).unsqueeze(2) & (
            candidates.ids > 0
        )
        ids = torch.where(to_replace, others, candidates.ids)
        return Candidates(
            candidates.spans,
            torch.where(to_mask, alone, ids),
            torch.where(to_mask, (alone > 0).float(), candidates.priors),
        )


@dataclass(frozen=True)
class Candidates:
    """Spans of a batch that may be mentions, and the entities that each may mean (KnowBert).

    ``spans`` (batch, spans, 2) int: first and last token, the last included, -1 = no span. ``ids``
    (batch, spans, candidates) int, 0 = no candidate. ``priors`` (batch, spans, candidates): how
    probable each is before anything is read, summing to one.
    """

    spans: Tensor
    ids: Tensor
    priors: Tensor

    def check(self, grid: tuple[int, int], entities: int) -> None:
        """Raise InputError unless all fits a batch (rows, length) and a table of ``entities`` rows.
        Values are looked at on CPU only.
        """
        rows, length = grid
        if (
            self.spans.dim() != 3
            or self.spans.shape[0] != rows
            or self.spans.shape[2] != 2
            or self.spans.is_floating_point()
        ):
            got = f"{tuple(self.spans.shape)} of {self.spans.dtype}"
            raise InputError(f"the candidates' spans must be ({rows}, spans, 2) whole numbers, got {got}")
        if self.ids.shape[:2] != self.spans.shape[:2] or self.ids.dim() != 3 or self.priors.shape != self.ids.shape:
            got = f"ids {tuple(self.ids.shape)} and priors {tuple(self.priors.shape)}"
            raise InputError(
                f"ids and priors must be (batch, spans, candidates) for spans {tuple(self.spans.shape)}, got {got}"
            )
        if not at_hand(self.spans):
            return
        first, last = self.spans.unbind(2)
        wrong = (first >= 0) & ((last < first) | (last >= length))
        if bool(wrong.any()):
            span = self.spans[wrong][0].tolist()
            raise InputError(
                f"the span {span} lies outside the text: it must be first, last with 0 <= first <= last < {length}"
            )
        if self.ids.numel() and not (int(self.ids.min()) >= 0 and int(self.ids.max()) < entities):
            raise InputError(
                f"the candidates' ids must lie in 0..{entities - 1}, got {int(self.ids.min())}..{int(self.ids.max())}"
            )


torch.export.register_dataclass(Candidates, serialized_type_name="zoo.Candidates")  # it goes into an exported model
