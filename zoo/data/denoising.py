"""What a denoising encoder-decoder must undo: sentences out of order, each span of words behind one
mask (Lewis et al., 2020; Liu et al., 2020).

    <s> a b c </s> d e </s> [lang]   ->   <s> d [mask] </s> a b [mask] [lang]

A text is a list of ids whose first and last token stay. Every random number comes from a
`NoiseDraws`, in the order in which fairseq draws.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoo.data.collate import padded
from zoo.errors import ConfigError, InputError

MASKINGS = ("subword", "word", "span-poisson")


class NoiseDraws(Protocol):
    """Where random numbers come from."""

    def permutation(self, count: int) -> list[int]:
        """0..count-1 in random order."""

    def lengths(self, probabilities: Sequence[float], count: int) -> list[int]:
        """``count`` indexes, each with its probability."""

    def uniform(self, count: int) -> list[float]:
        """``count`` numbers from [0, 1)."""

    def integers(self, low: int, high: int, count: int) -> list[int]:
        """``count`` whole numbers from low to high - 1."""


@dataclass(frozen=True)
class TorchDraws:
    """Draws from a generator; None is torch's own."""

    generator: torch.Generator | None = None

    def permutation(self, count: int) -> list[int]:
        return torch.randperm(count, generator=self.generator).tolist()

    def lengths(self, probabilities: Sequence[float], count: int) -> list[int]:
        return torch.multinomial(
            torch.tensor(probabilities), count, replacement=True, generator=self.generator
        ).tolist()

    def uniform(self, count: int) -> list[float]:
        return torch.rand(count, generator=self.generator).tolist()

    def integers(self, low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=self.generator).tolist()


def poisson_lengths(mean: float, least: float = 1e-7, most: int = 128) -> tuple[float, ...]:  # eq: span-lengths
    """Poisson's probabilities of 0, 1, 2, ... up to the first below ``least``, made to sum to
    one.
    """
    terms = [math.exp(-mean)]
    while terms[-1] >= least and len(terms) < most:
        terms.append(terms[-1] * mean / len(terms))
    return tuple(term / sum(terms) for term in terms)


def permute_sentences(tokens: Sequence[int], full_stop: int, draws: NoiseDraws, share: float = 1.0) -> list[int]:
    """Put a ``share`` of the sentences in another order. A sentence ends with a full stop (of
    several in a row, the first).
    """
    stops = [token == full_stop for token in tokens]
    stops[-2] = True  # what stands before the last token ends a sentence
    ends = [place + 1 for place in range(1, len(tokens)) if stops[place] and not stops[place - 1]]
    moved = draws.permutation(len(ends))[: math.ceil(len(ends) * share)]
    order = list(range(len(ends)))
    for place, source in zip(moved, draws.permutation(len(moved)), strict=True):
        order[place] = moved[source]
    starts = [1, *ends]
    mixed = [token for sentence in order for token in tokens[starts[sentence] : ends[sentence]]]
    return [tokens[0], *mixed, *tokens[1 + len(mixed) :]]


@dataclass(frozen=True, kw_only=True)
class DenoisingNoise:
    """mBART's noise (and BART's). Shares are of words; with the defaults 35 % of them go, in spans
    of Poisson(3.5) words.

    ``replace_length``: a span becomes 1 mask, 0 none, -1 as many as it has tokens. ``random_share``
    of the masks are random ids instead. ``word_starts``: the ids with which a word begins; None:
    every token is a word. ``masking``: "subword" and "word" mask single words.
    """

    mask_id: int
    vocab_size: int
    full_stop: int = 2
    mask_share: float = 0.35
    poisson_mean: float = 3.5
    random_share: float = 0.0
    replace_length: int = 1
    permute_share: float = 1.0
    insert_share: float = 0.0
    rotate_share: float = 0.0
    masking: str = "span-poisson"
    word_starts: Collection[int] | None = None

    def __post_init__(self) -> None:
        if self.masking not in MASKINGS:
            raise ConfigError(f"masking must be one of {', '.join(MASKINGS)}, got {self.masking!r}")
        if self.replace_length not in (-1, 0, 1):
            raise ConfigError(f"replace_length must be -1, 0 or 1, got {self.replace_length}")
        for name in ("mask_share", "random_share", "permute_share", "insert_share", "rotate_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} must lie in 0..1")

    def __call__(self, tokens: Sequence[int], draws: NoiseDraws | None = None) -> list[int]:
        """The noised text; ``tokens`` end with the language code."""
        if len(tokens) < 3:
            raise InputError(f"a text has a first and a last token and words between them, got {len(tokens)} tokens")
        draws = TorchDraws() if draws is None else draws
        noised = list(tokens)
        if self.permute_share:
            noised = permute_sentences(noised, self.full_stop, draws, self.permute_share)
        if self.mask_share:
            noised = self.infill(noised, draws)
        if self.insert_share:
            noised = self.insert(noised, math.ceil(len(noised) * self.insert_share), draws)
        if self.rotate_share and draws.uniform(1)[0] < self.rotate_share:
            offset = draws.integers(1, max(1, len(noised) - 1) + 1, 1)[0]
            noised = [noised[0], *noised[offset:-1], *noised[1:offset], noised[-1]]
        return noised

    def infill(self, tokens: Sequence[int], draws: NoiseDraws) -> list[int]:
        """Spans behind masks, and the spans of no words as masks put in afterwards. Spans may touch
        and overlap.
        """
        last = len(tokens) - 1
        words = [p for p in range(1, last) if self.word_starts is None or tokens[p] in self.word_starts]
        # in float32, as fairseq counts
        budget = math.ceil(float(torch.tensor(float(len(words))) * self.mask_share))  # eq: span-lengths
        if budget == 0:
            return list(tokens)
        spans = self._spans(budget, draws)
        lengths = [length for length in spans if length]
        inserts = len(spans) - len(lengths)
        if not lengths:
            return self.insert(tokens, math.ceil(len(tokens) * (inserts / len(tokens))), draws)
        numbers = draws.permutation(len(words))[: len(lengths)]
        chosen = [place < self.random_share for place in draws.uniform(len(lengths))]
        bounds = [*words, last]
        running = [
            (words[number], bounds[min(number + length, len(words))], is_random)
            for number, length, is_random in zip(numbers, lengths, chosen, strict=True)
        ]
        masks: dict[int, int] = {}
        gone: set[int] = set()
        self._write(masks, [(start, is_random) for start, _, is_random in running], draws)
        step = 1
        while alive := [(start + step, is_random) for start, end, is_random in running if start + step < end]:
            if self.replace_length == -1:
                self._write(masks, alive, draws)
            else:
                gone.update(place for place, _ in alive)
            step += 1
        if self.replace_length == 0:
            gone.update(start for start, _, _ in running)
        noised = [masks.get(place, token) for place, token in enumerate(tokens) if place not in gone]
        return self.insert(
            noised, math.ceil(len(noised) * (inserts / len(noised))), draws
        )  # fairseq passes a share, which may round up

    def _spans(self, budget: int, draws: NoiseDraws) -> list[int]:
        """Lengths in words that sum to the budget, spans of no words among them."""
        if self.masking != "span-poisson":
            return [1] * budget
        probabilities = poisson_lengths(self.poisson_mean)
        spans = draws.lengths(probabilities, budget)
        while sum(spans) < budget:
            spans += draws.lengths(probabilities, budget)
        kept: list[int] = []
        while sum(kept) < budget:  # eq: span-lengths
            kept.append(min(spans[len(kept)], budget - sum(kept)))
        return kept

    def _write(self, masks: dict[int, int], places: Sequence[tuple[int, bool]], draws: NoiseDraws) -> None:
        """The mask at each place, random ids at those that are to have one."""
        if self.replace_length == 0:
            return
        masks.update((place, self.mask_id) for place, _ in places)
        chosen = [place for place, is_random in places if is_random]
        masks.update(zip(chosen, draws.integers(1, self.vocab_size, len(chosen)), strict=True))

    def insert(self, tokens: Sequence[int], count: int, draws: NoiseDraws) -> list[int]:
        """``count`` masks at random places between the first and the last token, the
        ``random_share`` of them as random ids.
        """
        if count == 0:
            return list(tokens)
        places = [place + 1 for place in draws.permutation(len(tokens) + count - 2)[:count]]
        number = math.ceil(count * self.random_share)
        put = dict.fromkeys(places[number:], self.mask_id)
        put.update(zip(places[:number], draws.integers(1, self.vocab_size, number), strict=True))
        rest = iter(tokens)
        return [put[place] if place in put else next(rest) for place in range(len(tokens) + count)]


def collate(sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Noised and whole texts as a batch for `ConditionalGeneration`: right padding, labels -100
    there, decoder inputs with each text's last token moved to the front."""
    if len(sources) != len(targets):
        raise InputError(f"{len(sources)} sources do not go with {len(targets)} targets")
    input_ids, target_ids = (padded(texts, pad_token_id) for texts in (sources, targets))
    real, target_real = (padded([[1] * len(text) for text in texts], 0).bool() for texts in (sources, targets))
    return {
        "input_ids": input_ids,
        "attention_mask": real.long(),
        "decoder_input_ids": padded([[text[-1], *text[:-1]] for text in targets], pad_token_id),
        "decoder_attention_mask": target_real.long(),
        "labels": target_ids.masked_fill(~target_real, -100),
    }
