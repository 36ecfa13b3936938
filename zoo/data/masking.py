"""Which tokens a model must guess, and what stands in their place: the corruption of masked
language models and their kin.

    BERT     15 % of the tokens, one by one; whole words with ``whole_words``     Devlin et al., 2019; Cui et al., 2021
    ALBERT        n-grams of up to three words, p(n) ~ 1/n                                    Lan et al., 2020
    SpanBERT      spans of words, geometric length, one fate for a whole span                 Joshi et al., 2020
    XLM           every place for itself, or places in proportion to count^-alpha             Lample & Conneau, 2019
    ELECTRA       samples written over the text                                               Clark et al., 2020
    all but ELECTRA: of the chosen places 80 % become the mask, 10 % stay, 10 % become a random token

Two kinds of function. Those on *lists* take tokens of any type (strings or ids) and a
``random.Random``; the order of their draws is that of the reference code, so a seed gives the
reference's masks. Those on *tensors* take a ``torch.Generator``. ``python_random`` makes the first
from the second.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from zoo.errors import InputError

IGNORED = -100
"""The label of a place where nothing is to be predicted."""

Token = TypeVar("Token")
Shares = tuple[float, float, float]
BERT_SHARES: Shares = (0.8, 0.1, 0.1)
"""What becomes of a chosen token: mask, original, random."""


@dataclass(frozen=True)
class Masked(Generic[Token]):
    """A corrupted sequence: ``tokens`` as the model reads them, and at ``positions`` (ascending)
    the ``labels`` that stood there.
    """

    tokens: list[Token]
    positions: list[int]
    labels: list[Token]


def python_random(generator: torch.Generator | None) -> random.Random:
    """A Python generator, seeded by one draw from ``generator`` (``None``: torch's global one)."""
    device = "cpu" if generator is None else generator.device
    return random.Random(int(torch.randint(2**62, (1,), generator=generator, device=device)))


# --- units: what is masked together
# --------------------------------------------------------------------------------------------------


def wordpiece_start(piece: str) -> bool:
    """Does this WordPiece begin a word? Those that go on with one are written ``##piece``."""
    return not piece.startswith("##")


LATIN = frozenset("abcdefghijklmnopqrstuvwxyz")
MARKS = frozenset('!"#$%&()*+,-./:;?@[\\]^_`{|}~')  # ALBERT's list: without ' < = >, which count as foreign characters


def sentencepiece_start(piece: str) -> bool:
    """Does this SentencePiece begin a word, as ALBERT decides it?

    Yes for ``▁piece``, ``<special>``, one listed punctuation mark, and any piece with a character
    that is neither a Latin letter nor a listed mark: digits, accents and other scripts always stand
    for themselves.
    """
    return piece.startswith(("▁", "<")) or piece in MARKS or any(c.lower() not in LATIN | MARKS for c in piece)


def word_units(
    tokens: Sequence[Token], special: Collection[Token], starts: Callable[[Token], bool] | None = None
) -> list[list[int]]:
    """The positions that are masked together: words where ``starts`` says which token begins one,
    else single tokens.

    ``special`` tokens belong to no unit. As in BERT, a token that begins no word joins the unit
    before it even across a special token, and begins a unit where there is none.
    """
    units: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in special:
            continue
        if starts is not None and units and not starts(token):
            units[-1].append(position)
        else:
            units.append([position])
    return units


def prediction_budget(length: int, probability: float, maximum: int | None = None) -> int:
    """How many tokens to predict in a sequence of ``length``, specials counted: rounded, half to
    even, and at least one.
    """
    count = max(1, round(length * probability))
    return count if maximum is None else min(maximum, count)


# --- choosing positions, on lists
# ----------------------------------------------------------------------------------------------------


def choose_units(units: Sequence[Sequence[int]], budget: int, rng: random.Random) -> list[int]:
    """Units in random order until ``budget`` positions are found, in that order; a unit that would
    overshoot is passed over (BERT).
    """
    chosen: list[int] = []
    order = list(units)
    rng.shuffle(order)
    for unit in order:
        if len(chosen) >= budget:
            break
        if len(chosen) + len(unit) <= budget:
            chosen.extend(unit)
    return chosen


@dataclass(frozen=True)
class NGrams:
    """ALBERT's choice: n-grams of units with p(n) ~ 1/n for n up to ``max_n``; ``longer`` turns the
    probabilities round.

    An n-gram that would overshoot the budget is tried shorter; one that touches a chosen position
    is dropped. Since special tokens belong to no unit, an n-gram may reach across them.
    """

    max_n: int = 3
    longer: bool = False

    def __post_init__(self) -> None:
        if self.max_n < 1:
            raise InputError(f"max_n={self.max_n} must be at least 1")

    def length(self, uniform: float) -> int:
        """The n that a draw from [0, 1) stands for."""
        weights = [1 / n for n in range(1, self.max_n + 1)]
        cumulative = list(itertools.accumulate(reversed(weights) if self.longer else weights))
        return min(bisect.bisect_right([c / cumulative[-1] for c in cumulative], uniform), self.max_n - 1) + 1

    def starts(self, units: Sequence[Sequence[int]], rng: random.Random) -> list[int]:
        """Every unit as the start of an n-gram, in random order."""
        order = list(range(len(units)))
        rng.shuffle(order)
        return order

    def choose(
        self,
        units: Sequence[Sequence[int]],
        order: Sequence[int],
        budget: int,
        uniform: Callable[[], float],
        taken: Collection[int] = (),
    ) -> list[int]:
        """Up to ``budget`` positions, in the order chosen; ``uniform`` draws from [0, 1), once for
        each start that is tried.
        """
        chosen: list[int] = []
        closed = set(taken)
        for start in order:
            if len(chosen) >= budget:
                break
            for n in range(self.length(uniform()), 0, -1):
                positions = [p for unit in units[start : start + n] for p in unit]
                if len(chosen) + len(positions) <= budget:
                    if closed.isdisjoint(positions):
                        chosen.extend(positions)
                        closed.update(positions)
                    break
        return chosen


class SpanDraws(Protocol):
    """Where span masking gets its random numbers from; `RandomSpanDraws` is the usual one."""

    def length(self, lengths: Sequence[int], weights: Sequence[float]) -> int: ...
    def anchor(self, count: int) -> int: ...
    def positions(self, count: int, chosen: int) -> list[int]: ...
    def fate(self) -> float: ...
    def token(self, corpus: Sequence[int]) -> int: ...


@dataclass(frozen=True)
class RandomSpanDraws:
    """Draws from a ``random.Random``."""

    rng: random.Random

    def length(self, lengths: Sequence[int], weights: Sequence[float]) -> int:
        return self.rng.choices(lengths, weights)[0]

    def anchor(self, count: int) -> int:
        return self.rng.randrange(count)

    def positions(self, count: int, chosen: int) -> list[int]:
        return self.rng.sample(range(count), chosen)

    def fate(self) -> float:
        return self.rng.random()

    def token(self, corpus: Sequence[int]) -> int:
        return self.rng.choice(corpus)


def spans_of(
    units: Sequence[Sequence[int]], budget: int, lengths: Sequence[int], weights: Sequence[float], draws: SpanDraws
) -> list[list[int]]:
    """Spans of units that hold ``budget`` positions together, in the order chosen (SpanBERT).

    A length in units is drawn by ``weights``, then an anchor among all positions; its span begins
    with the unit it lies in, and one that is taken already costs a draw and no more. Spans may
    overlap; the last may end inside a word, where the budget is used up.
    """
    owner = [number for number, unit in enumerate(units) for _ in unit]
    places = [place for unit in units for place in unit]
    budget = min(budget, len(places))
    taken: set[int] = set()
    spans: list[list[int]] = []
    while len(taken) < budget:
        length, anchor = draws.length(lengths, weights), draws.anchor(len(places))
        if places[anchor] in taken:
            continue
        span: list[int] = []
        for place in (p for unit in units[owner[anchor] : owner[anchor] + length] for p in unit):
            if len(taken) == budget:
                break
            taken.add(place)
            span.append(place)
        spans.append(span)
    return spans


def choose_spans(
    units: Sequence[Sequence[int]], budget: int, rng: random.Random, decay: float = 0.2, max_words: int = 10
) -> list[int]:
    """``budget`` positions in spans of units whose length is geometric, p(l) ~ (1 - decay)^(l - 1),
    cut at ``max_words``: see `spans_of`.
    """
    if not 0 < decay < 1 or max_words < 1:
        raise InputError(f"decay={decay} must lie between 0 and 1, max_words={max_words} must be at least 1")
    lengths = range(1, max_words + 1)
    weights = [(1 - decay) ** (length - 1) for length in lengths]
    spans = spans_of(units, budget, lengths, weights, RandomSpanDraws(rng))
    return list(dict.fromkeys(place for span in spans for place in span))


def permute(tokens: Sequence[Token], positions: Collection[int], rng: random.Random) -> Masked[Token]:
    """Tokens at ``positions`` change places among themselves at random (an option of ALBERT's data
    code; the label is what stood there).
    """
    places = sorted(positions)
    sources = list(places)
    rng.shuffle(sources)
    mixed = list(tokens)
    for place, source in zip(places, sources, strict=True):
        mixed[place] = tokens[source]
    return Masked(mixed, places, [tokens[p] for p in places])


# --- replacing them, on lists
# --------------------------------------------------------------------------------------------------------


def replace_tokens(
    tokens: Sequence[Token], positions: Sequence[int], mask: Token, vocabulary: Sequence[Token], rng: random.Random
) -> Masked[Token]:
    """80 % mask, 10 % original, 10 % any word of ``vocabulary``, special ones too; drawn for each
    position on its own, in their order.
    """
    corrupted = list(tokens)
    for position in positions:
        if rng.random() < 0.8:
            corrupted[position] = mask
        elif rng.random() >= 0.5:
            corrupted[position] = vocabulary[rng.randint(0, len(vocabulary) - 1)]
    places = sorted(positions)
    return Masked(corrupted, places, [tokens[p] for p in places])


# --- on tensors
# ----------------------------------------------------------------------------------------------------------------------


def choose_each(candidates: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Each True of ``candidates`` (any shape, bool) stays True with ``probability``, on its own
    (XLM with alpha 0, RoBERTa).
    """
    return candidates & (torch.rand(candidates.shape, generator=generator, device=candidates.device) < probability)


def rarity_weights(counts: Tensor, alpha: float) -> Tensor:
    """``count^-alpha`` for each word of the vocabulary, zero where the count is zero: special
    tokens are never chosen (XLM).
    """
    weights = counts.double().clamp(min=1) ** -alpha
    return torch.where(counts > 0, weights, 0.0)


def choose_weighted(weights: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Exactly ``count`` places, without replacement, with probabilities in proportion to
    ``weights`` (any shape); bool of that shape.
    """
    possible = int((weights > 0).sum())
    if count > possible:
        raise InputError(f"{count} places are to be chosen, but only {possible} have a weight above zero")
    chosen = torch.zeros(weights.numel(), dtype=torch.bool, device=weights.device)
    if count:
        chosen[torch.multinomial(weights.flatten(), count, generator=generator)] = True
    return chosen.reshape(weights.shape)


def xlm_choice(
    input_ids: Tensor,
    attention_mask: Tensor,
    probability: float = 0.15,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """XLM's choice among (batch, length) ids, ``attention_mask`` 1 or True = real; a bool tensor.

    Without ``weights`` each place is taken on its own, sentence ends included, the first place
    never. With ``weights`` (vocabulary,) from ``rarity_weights`` exactly ``ceil(probability * batch
    * length)`` places of the batch are taken, padding counted in that product.
    """
    real = attention_mask.bool()
    if weights is None:
        inner = torch.arange(input_ids.shape[1], device=input_ids.device) > 0
        return choose_each(real & inner, probability, generator)
    return choose_weighted(weights[input_ids] * real, math.ceil(probability * input_ids.numel()), generator)


def replace_ids(
    input_ids: Tensor,
    chosen: Tensor,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    shares: Shares = BERT_SHARES,
    together: bool = False,
) -> tuple[Tensor, Tensor]:
    """Corrupt the ``chosen`` places (bool) of int64 ``input_ids``; returns new ids and labels, -100
    where nothing was chosen.

    A random token is any of ``vocab_size``, so it may be the original or the mask. ``together``
    gives a run of neighbours in the last dimension one fate (SpanBERT); its random tokens still
    differ.
    """
    if len(shares) != 3 or min(shares) < 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise InputError(f"shares={shares} must be three probabilities (mask, original, random) that sum to 1")
    fate = torch.rand(input_ids.shape, generator=generator, device=input_ids.device)
    if together:
        begins = chosen.clone()
        begins[..., 1:] &= ~chosen[..., :-1]
        place = torch.arange(input_ids.shape[-1], device=input_ids.device).expand_as(input_ids)
        fate = fate.gather(
            -1, torch.where(begins, place, 0).cummax(-1).values
        )  # that of the place where the run begins
    other = torch.randint(vocab_size, input_ids.shape, generator=generator, device=input_ids.device)
    corrupted = torch.where(chosen & (fate < shares[0]), mask_id, input_ids)
    corrupted = torch.where(chosen & (fate >= shares[0] + shares[1]), other, corrupted)
    return corrupted, torch.where(chosen, input_ids, IGNORED)


def write_samples(input_ids: Tensor, samples: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Write ``samples`` (batch, n) at ``positions`` (batch, n) of ``input_ids`` (batch, length), as
    ELECTRA does.

    Returns the new ids, and a bool tensor that is True where something was written.

    Position 0 is never written, so zero-padded positions do no harm. Where a position comes up more
    than once, the ids are summed and floor-divided by how often it came: two different samples make
    a third, unrelated id. ELECTRA's checkpoints were trained so.
    """
    total = torch.zeros_like(input_ids).scatter_add(1, positions, samples.to(input_ids.dtype))
    times = torch.zeros_like(input_ids).scatter_add(1, positions, torch.ones_like(samples, dtype=input_ids.dtype))
    written = (times > 0) & (torch.arange(input_ids.shape[1], device=input_ids.device) > 0)
    return torch.where(written, total.div(times.clamp(min=1), rounding_mode="floor"), input_ids), written


# --- noise for denoising auto-encoders (XLM's translation)
# -----------------------------------------------------------------------------
# A sentence is `</s> words </s>`; its two ends stay where they are. Draws: one for each token but the last.


def shuffle_words(sentence: Sequence[Token], offsets: Sequence[float]) -> list[Token]:
    """Sort the words by ``place + offset``; offsets from U(0, k) move no word by k places or more.
    The first token's is not used.
    """
    order = sorted(range(1, len(sentence) - 1), key=lambda place: place + offsets[place])
    return [sentence[0], *(sentence[place] for place in order), sentence[-1]]


def drop_words(
    sentence: Sequence[Token], uniforms: Sequence[float], probability: float, spare: Callable[[int], int] | None = None
) -> list[Token]:
    """Keep the words whose draw is at least ``probability``; if none is left, number ``spare(count
    of words)`` of them comes back.
    """
    kept = [place for place in range(1, len(sentence) - 1) if uniforms[place] >= probability]
    if not kept and len(sentence) > 2 and spare is not None:
        kept = [1 + spare(len(sentence) - 2)]
    return [sentence[0], *(sentence[place] for place in kept), sentence[-1]]


def blank_words(sentence: Sequence[Token], uniforms: Sequence[float], probability: float, mask: Token) -> list[Token]:
    """The mask instead of every word whose draw is below ``probability``."""
    words = (mask if uniforms[place] < probability else sentence[place] for place in range(1, len(sentence) - 1))
    return [sentence[0], *words, sentence[-1]]


def add_noise(
    sentence: Sequence[Token],
    mask: Token,
    rng: random.Random,
    shuffle: float = 3,
    drop: float = 0.1,
    blank: float = 0.1,
) -> list[Token]:
    """Shuffle, drop and blank words, as unsupervised translation corrupts what its auto-encoder
    must restore (Lample et al., 2018).
    """
    noised = list(sentence)
    if shuffle:
        noised = shuffle_words(noised, [rng.uniform(0, shuffle) for _ in noised])
    if drop:
        noised = drop_words(noised, [rng.random() for _ in noised], drop, rng.randrange)
    if blank:
        noised = blank_words(noised, [rng.random() for _ in noised], blank, mask)
    return noised
