"""MASS's spans (Song et al., 2019): what the encoder's text loses, the decoder writes.

    a b c d e f   ->   source  a b _ _ _ f      decoder reads  b c d  at places 1, 2, 3,  writes  c d e

Three choices of the span: `segment_places` (unsupervised translation), `block_places` (summaries)
and `noised_interval` (the texts of one language in supervised translation). Every random number
comes from a ``random.Random``; `zoo.data.masking.python_random` makes one of a torch generator.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoo.data.collate import Batch, pad_examples, padded
from zoo.data.masking import IGNORED, python_random
from zoo.errors import ConfigError, InputError

AT_START, AT_END = 0.2, 0.2  # how often the span begins, or ends, the sentence
FATES = (0.8, 0.1, 0.1)  # mask, keep, random

Places = Callable[[int, float, random.Random], list[int]]  # length, share, draws -> places in order


def segment_places(length: int, share: float, rng: random.Random, span: int | None = None) -> list[int]:
    """Which of ``length`` tokens are masked: ``round(share · length)``, never the first.

    They are one span, which begins the sentence (behind its first token) in a fifth of all cases,
    ends it in another fifth and stands anywhere else, each place alike, in the rest. ``span``: its
    longest; then there are several spans of that length, and one of what is left over.
    """
    count = min(round(share * length), length - 1)
    longest = max(1, count if span is None else span)
    segments = [longest] * (count // longest) + ([count % longest] if count % longest else [])
    if not segments:
        return []
    draw, single = rng.random(), [0] * (length - 1 - count)  # 0: a token that stays
    first = segments[:1] if draw >= 1 - AT_START else []
    last = segments[-1:] if 1 - AT_START - AT_END <= draw < 1 - AT_START else []
    mixed = segments[len(first) : len(segments) - len(last)] + single
    rng.shuffle(mixed)
    places: list[int] = []
    place = 1
    for size in [*first, *mixed, *last]:
        places += range(place, place + size)
        place += max(size, 1)
    return places


def block_places(length: int, share: float, rng: random.Random, block: int = 64) -> list[int]:
    """A span of ``int(share · n)`` tokens in each block of n, the first token left out of the count;
    where it begins, all places alike.
    """
    places: list[int] = []
    for start in range(1, length, block):
        size = min(block, length - start)
        count = int(size * share)
        first = start + rng.randrange(size - count + 1)  # eq: block
        places += range(first, first + count)
    return places


def fate(
    token: int, mask_id: int, vocab_size: int, rng: random.Random, shares: Sequence[float] = FATES, first_word: int = 0
) -> int:
    """The mask, the token itself or any from ``first_word`` on, with these ``shares``."""
    kind = rng.choices(range(3), shares)[0]
    return (mask_id, token, rng.randrange(first_word, vocab_size) if kind == 2 else token)[kind]


@dataclass(frozen=True)
class MaskedText:
    """A text without its span: ``source``; what the decoder reads and writes, and ``places`` of
    what it reads.
    """

    source: list[int]
    reads: list[int]
    writes: list[int]
    places: list[int]


@dataclass(frozen=True, kw_only=True)
class SpanCollator:
    """A batch for `ConditionalGeneration` of whole texts: an example has ``input_ids`` and, where the
    model tells languages apart, ``language``.

    ``choose``: `segment_places` or `block_places`. ``shares``: how often a chosen token becomes
    ``mask_id``, stays, or becomes any id from ``first_word`` on.
    """

    mask_id: int
    vocab_size: int
    pad_id: int
    share: float = 0.5
    choose: Places = segment_places
    shares: tuple[float, float, float] = FATES
    first_word: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share={self.share} must lie between 0 and 1; the paper's is 0.5")
        if not 0 <= self.mask_id < self.vocab_size:
            raise ConfigError(f"mask_id={self.mask_id} must lie in 0..{self.vocab_size - 1}")

    def written(self, tokens: Sequence[int], rng: random.Random) -> MaskedText:
        """One text."""
        places = self.choose(len(tokens), self.share, rng)
        if not places:
            raise InputError(
                f"no token of a text of {len(tokens)} is masked at share={self.share}; leave out texts so short"
            )
        source = list(tokens)
        for place in places:
            source[place] = fate(tokens[place], self.mask_id, self.vocab_size, rng, self.shares, self.first_word)
        before = [place - 1 for place in places]
        return MaskedText(source, [tokens[p] for p in before], [tokens[p] for p in places], before)  # eq: span

    def __call__(self, examples: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None) -> Batch:
        rng = python_random(generator)
        texts = [self.written(example["input_ids"], rng) for example in examples]
        batch = target_batch(
            [t.source for t in texts], [t.reads for t in texts], [t.writes for t in texts], self.pad_id
        )
        batch["decoder_position_ids"] = padded([text.places for text in texts], 0)
        if any("language" in example for example in examples):
            batch |= languages_of(batch, [e["language"] for e in examples], [e["language"] for e in examples])
        return batch


def target_batch(
    sources: Sequence[Sequence[int]], reads: Sequence[Sequence[int]], writes: Sequence[Sequence[int]], pad_id: int
) -> Batch:
    """Padded sources, decoder inputs and labels."""
    source, target = (pad_examples([{"input_ids": row} for row in rows], pad_id) for rows in (sources, reads))
    return {
        "input_ids": source["input_ids"],
        "attention_mask": source["attention_mask"],
        "decoder_input_ids": target["input_ids"],
        "decoder_attention_mask": target["attention_mask"],
        "labels": padded(writes, IGNORED),
    }


def languages_of(batch: Batch, sources: Sequence[int], targets: Sequence[int]) -> Batch:
    """The languages of each text's tokens, by their ids."""
    found = {"language_ids": ("input_ids", sources), "decoder_language_ids": ("decoder_input_ids", targets)}
    return {
        name: torch.tensor(list(rows))[:, None].expand(batch[ids].shape).clone() for name, (ids, rows) in found.items()
    }


def pair_batch(examples: Sequence[Mapping[str, Any]], pad_id: int) -> Batch:
    """Translations to be learned: ``first`` and ``second`` with both their ends, ``first_language`` and
    ``second_language`` where the model tells them apart.
    """
    targets = [example["second"] for example in examples]
    sources = [example["first"] for example in examples]
    batch = target_batch(sources, [text[:-1] for text in targets], [text[1:] for text in targets], pad_id)
    if any("first_language" in example for example in examples):
        batch |= languages_of(batch, [e["first_language"] for e in examples], [e["second_language"] for e in examples])
    return batch


def interval(length: int, share: float, rng: random.Random) -> tuple[int, int]:
    """First place and length of the span of supervised MASS, in a text of ``length`` with both its ends:
    a fifth of all at place 1, a fifth at the last place that is possible, the rest anywhere before.
    """
    size = max(1, round(length * share))
    last, draw = length - size, rng.random()
    if draw >= 1 - AT_START or last <= 1:
        return 1, size
    return (last if draw >= 1 - AT_START - AT_END else rng.randrange(1, last)), size


@dataclass(frozen=True, kw_only=True)
class NoisedInterval:
    """Supervised MASS's way with the texts of one language (``</s> words </s>``). The source has no
    first </s>.

    The authors' code is kept: the source's noise lies one place behind what is predicted and is one
    word longer. Decoder inputs are noised too, by ``decoder_shares``. Both shares here are of mask,
    keep, random; the authors' option gives the random words before the kept ones.
    """

    mask_id: int
    vocab_size: int
    first_word: int = 0  # ids from here on are words
    share: float = 0.5
    shares: tuple[float, float, float] = FATES
    decoder_shares: tuple[float, float, float] = (0.1, 0.8, 0.1)

    def __call__(self, tokens: Sequence[int], rng: random.Random, span: tuple[int, int] | None = None) -> MaskedText:
        start, size = interval(len(tokens), self.share, rng) if span is None else span
        wide = self.vocab_size, rng

        source = [
            fate(token, self.mask_id, *wide, self.shares, self.first_word) if start <= place <= start + size else token
            for place, token in enumerate(tokens[1:])
        ]
        before = range(start - 1, start - 1 + size)
        reads = [fate(tokens[p], self.mask_id, *wide, self.decoder_shares, self.first_word) for p in before]
        return MaskedText(source, reads, [tokens[p + 1] for p in before], list(before))
