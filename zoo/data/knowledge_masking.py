"""Masking that knows units: ERNIE's (Baidu) phrases and entities, SpanBERT's spans with their
boundaries.

    knowledge_masking   ERNIE 1.0: a unit is chosen by its first token's draw, each further token has a draw of its own
    unit_masking        ERNIE 2.0: a share of all the batch's units is chosen, each token of them has a draw of its own
    SpanBertMasking     SpanBERT: spans of whole words of geometric length, merged where they touch, one fate for a span

Labels of units along a text: -1 a special token, 0 the first token of a unit (a phrase, an entity,
a word), 1 inside one. Draws are arguments, so that the same draws give the reference's masks; left
out, they come from a ``torch.Generator``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.data.masking import IGNORED, SpanDraws, spans_of, word_units
from zoo.errors import ConfigError, InputError


def unit_labels(words: Iterable[Sequence[object]]) -> list[int]:
    """The labels of a text of words (each a sequence of tokens) between two special tokens: -1,
    then 0, 1, 1 for each word, then -1.
    """
    return [-1, *(label for word in words for label in [0] + [1] * (len(word) - 1) if word), -1]


def knowledge_masking(
    tokens: Sequence[int],
    labels: Sequence[int],
    draws: Sequence[float],
    replacements: Sequence[int],
    mask_id: int,
    *,
    whole_units: bool = True,
    special_ids: Sequence[int] = (),
    probability: float = 0.15,
) -> tuple[list[int], list[int]]:
    """ERNIE 1.0's masking of one text -> corrupted tokens and targets (-100 where nothing is to be
    guessed).

    ``draws`` in [0, 1) and ``replacements``, random ids, one for each token. With ``whole_units`` a
    unit is chosen where its first token's draw is at most ``probability``; that token becomes the
    mask above a fifth of it, a random id above a tenth, and stays below; the others are judged by
    their own draws against 0.2 and 0.1. Without, each token that is not among ``special_ids``
    stands for itself. A unit counts once the next one, or a special token, has begun: a text must
    end with one. At position 0 stands [CLS], never a unit.
    """
    if not len(tokens) == len(labels) == len(draws) == len(replacements):
        raise InputError(
            f"one label, draw and replacement for each token: got {len(tokens)}, {len(labels)}, {len(draws)}, "
            f"{len(replacements)}"
        )
    corrupted, targets = list(tokens), [IGNORED] * len(tokens)

    def mask(place: int, base: float) -> None:  # eq: fate
        targets[place] = tokens[place]
        if draws[place] > 0.2 * base:
            corrupted[place] = mask_id
        elif draws[place] > 0.1 * base:
            corrupted[place] = replacements[place]

    if not whole_units:
        for place, token in enumerate(tokens):
            if draws[place] <= probability and token not in special_ids:
                mask(place, probability)
        return corrupted, targets
    start = 0
    for place, label in enumerate(labels):
        if label == 1:
            continue
        if start and draws[start] <= probability:  # eq: units
            mask(start, probability)
            for inside in range(start + 1, place):
                mask(inside, 1.0)
        start = 0 if label == -1 else place
    return corrupted, targets


@dataclass(frozen=True)
class UnitDraws:
    """The random part of `unit_masking`: ``order``, which units come first, a permutation of their
    numbers; ``draws`` (batch, length) uniform; ``replacements`` (batch, length), random ids.
    """

    order: Sequence[int]
    draws: Tensor
    replacements: Tensor


def unit_masking(
    input_ids: Tensor,
    units: Tensor,
    mask_id: int,
    vocab_size: int,
    *,
    rate: float = 0.15,
    generator: torch.Generator | None = None,
    draws: UnitDraws | None = None,
) -> tuple[Tensor, Tensor]:
    """ERNIE 2.0's masking of a batch -> corrupted ids and labels (-100 where nothing is to be
    guessed), both (batch, length).

    ``units`` (batch, length): neighbors with one number are one unit, -1 for special tokens and
    padding. Of all units ``rate`` (at least one) is chosen; of their tokens a tenth stays, a tenth
    becomes a random id, the rest the mask. ``draws``: in place of the generator's.
    """
    if units.shape != input_ids.shape or input_ids.dim() != 2:
        raise InputError(
            f"input_ids and units must both be (batch, length), got {tuple(input_ids.shape)} and {tuple(units.shape)}"
        )
    flat = units.flatten()
    begins = torch.ones_like(flat, dtype=torch.bool)
    begins[1:] = flat[1:] != flat[:-1]
    begins.unflatten(0, units.shape)[:, 0] = True  # a unit ends with its row
    real = flat != -1
    number = (begins & real).cumsum(0) - 1  # of the unit that a token belongs to
    count = int((begins & real).sum())
    if not count:
        return input_ids.clone(), torch.full_like(input_ids, IGNORED)
    if draws is None:
        order = torch.randperm(count, generator=generator)
        uniform = torch.rand(input_ids.shape, generator=generator)
        replacements = torch.randint(1, vocab_size, input_ids.shape, generator=generator)
    else:
        order, uniform, replacements = torch.as_tensor(list(draws.order)), draws.draws, draws.replacements
        if sorted(order.tolist()) != list(range(count)):
            raise InputError(f"order must be a permutation of the {count} units")
    taken = torch.zeros(count, dtype=torch.bool)
    taken[order[: max(1, int(count * rate))]] = True  # eq: share
    chosen = (taken[number.clamp(min=0)] & real).unflatten(0, units.shape)
    chosen[:, 0] = False  # [CLS]
    corrupted = torch.where(chosen & (uniform > 0.2), mask_id, input_ids)  # eq: share
    corrupted = torch.where(chosen & (uniform > 0.1) & (uniform < 0.2), replacements, corrupted)  # eq: share
    return corrupted, input_ids.masked_fill(~chosen, IGNORED)


@dataclass(frozen=True)
class MaskedSpans:
    """A text after span masking: ``tokens``, ``targets`` (``ignored`` where not masked) and
    ``pairs``, one row for each span that has both outer neighbors: left boundary, right boundary,
    the span's tokens, filled up with ``ignored``.
    """

    tokens: list[int]
    targets: list[int]
    pairs: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class SpanBertMasking:
    """SpanBERT's corruption of a block without [CLS] and [SEP].

    Of ``ceil(ratio · length)`` tokens: draw a length in words, p(l) ~ p (1 - p)^(l - 1) from
    ``shortest`` to ``longest``; draw an anchor, and start over where it is masked already; mask
    from the start of its word until l words or the budget are used up. Spans that touch are one.
    ``per_span``: one draw decides for a span: 80 % mask, 10 % a token of the corpus, 10 %
    unchanged; else a draw for each token. ``outer``: a span's boundaries are the tokens beside it,
    and a span without both has no row; else its own first and last token. The defaults are those of
    the published models (0.2, one fate for a span, 15 targets), which are not the defaults of their
    code.
    """

    mask_id: int
    starts: Callable[[int], bool]  # does this token begin a word
    ratio: float = 0.15
    geometric_p: float = 0.2
    shortest: int = 1
    longest: int = 10
    per_span: bool = True
    outer: bool = True
    max_targets: int = 15
    ignored: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 or not 0 < self.geometric_p < 1:
            raise ConfigError(f"ratio={self.ratio} and geometric_p={self.geometric_p} must lie between 0 and 1")
        if not 1 <= self.shortest <= self.longest or self.max_targets < 1:
            raise ConfigError(
                f"1 <= shortest={self.shortest} <= longest={self.longest} and max_targets={self.max_targets} >= 1 must "
                "hold"
            )

    @property
    def weights(self) -> list[float]:
        """The probability of each length from ``shortest`` to ``longest``."""
        raw = [  # eq: span-length
            self.geometric_p * (1 - self.geometric_p) ** k for k in range(self.longest - self.shortest + 1)
        ]
        return [weight / sum(raw) for weight in raw]  # eq: span-length

    def spans(self, tokens: Sequence[int], draws: SpanDraws) -> list[tuple[int, int]]:
        """The spans (first, last) to mask, merged and in order."""
        units = word_units(tokens, (), self.starts)
        lengths = list(range(self.shortest, self.longest + 1))
        found = spans_of(units, math.ceil(len(tokens) * self.ratio), lengths, self.weights, draws)  # eq: spans
        return _merged([(span[0], span[-1]) for span in found])  # eq: spans

    def __call__(self, tokens: Sequence[int], corpus: Sequence[int], draws: SpanDraws) -> MaskedSpans:
        """Corrupt one block; random tokens are drawn from ``corpus``, a stream of tokens, so by
        their frequency.
        """
        corrupted, targets = list(tokens), [self.ignored] * len(tokens)
        pairs = []
        for first, last in self.spans(tokens, draws):
            if not self.outer or (first > 0 and last < len(tokens) - 1):
                row = [first - 1, last + 1] if self.outer else [first, last]
                row = (row + list(tokens[first : last + 1]))[: self.max_targets + 2]
                pairs.append(row + [self.ignored] * (self.max_targets + 2 - len(row)))
            fate = draws.fate()
            for place in range(first, last + 1):
                targets[place] = tokens[place]
                fate = fate if self.per_span else draws.fate()
                _replace(corrupted, place, fate, self.mask_id, corpus, draws)
        return MaskedSpans(corrupted, targets, pairs)

    def random_tokens(self, tokens: Sequence[int], corpus: Sequence[int], draws: SpanDraws) -> MaskedSpans:
        """BERT's way for comparison: the same number of single tokens, each with a fate of its own;
        no boundaries.
        """
        corrupted, targets = list(tokens), [self.ignored] * len(tokens)
        for place in sorted(draws.positions(len(tokens), math.ceil(len(tokens) * self.ratio))):
            targets[place] = tokens[place]
            _replace(corrupted, place, draws.fate(), self.mask_id, corpus, draws)
        return MaskedSpans(corrupted, targets, [])

    def batch(self, masked: Sequence[MaskedSpans], cls_id: int, sep_id: int, pad_id: int = 0) -> dict[str, Tensor]:
        """[CLS] block [SEP] for each -> input_ids, attention_mask, labels (-100 left out), pairs
        (batch, spans, 2) and pair_labels (batch, spans, max_targets), padded; boundaries count
        [CLS], a text without pairs has one of zeros whose labels are all -100.
        """
        if not masked:
            raise InputError("a batch needs at least one text")
        length = max(len(one.tokens) for one in masked) + 2
        most = max(1, *(len(one.pairs) for one in masked))
        input_ids = torch.full((len(masked), length), pad_id)
        labels = torch.full((len(masked), length), self.ignored)
        pairs = torch.zeros(len(masked), most, 2, dtype=torch.int64)
        pair_labels = torch.full((len(masked), most, self.max_targets), self.ignored)
        for row, one in enumerate(masked):
            size = len(one.tokens)
            input_ids[row, : size + 2] = torch.tensor([cls_id, *one.tokens, sep_id])
            labels[row, 1 : size + 1] = torch.tensor(one.targets)
            for number, pair in enumerate(one.pairs):
                pairs[row, number] = torch.tensor(pair[:2]) + 1
                pair_labels[row, number] = torch.tensor(pair[2:])
        real = torch.arange(length) < torch.tensor([len(one.tokens) + 2 for one in masked])[:, None]
        return {
            "input_ids": input_ids,
            "attention_mask": real.long(),
            "labels": labels.masked_fill(labels == self.ignored, IGNORED),
            "pairs": pairs,
            "pair_labels": pair_labels.masked_fill(pair_labels == self.ignored, IGNORED),
        }


def _replace(  # eq: fate
    tokens: list[int], place: int, fate: float, mask_id: int, corpus: Sequence[int], draws: SpanDraws
) -> None:
    if fate < 0.8:
        tokens[place] = mask_id
    elif fate < 0.9:
        tokens[place] = draws.token(corpus)


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that overlap or touch as one."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans, key=lambda span: span[0]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged
