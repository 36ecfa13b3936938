"""Texts with the names of the objects in their pictures (tags), as Oscar reads and writes them.

    reading  : [CLS] caption [SEP] tags [SEP], segments 0 and 1
    writing  : the same, with tags from a fixed place on; the caption has the ranks 1, 2, ..., tags have rank 0

Regions of the pictures are added by the caller (`Regions.for_model`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.data.collate import Batch, pad_examples, padded
from zoo.data.masking import IGNORED, Masked, prediction_budget, python_random
from zoo.data.vision_masking import mask_each_word
from zoo.errors import ConfigError, InputError

Tagged = tuple[Sequence[int], Sequence[int]]
"""The ids of a caption's words and of its tags, without special tokens."""


@dataclass(frozen=True, kw_only=True)
class TagCollator:
    """Batches for pre-training: some words and tags hidden, and with ``mix`` pairs that don't belong
    together, whose class is ``match_labels``.

    Called with a caption (or question) and its tags for each picture. random_ids: what stands in the
    place of a tenth of the hidden words. false_captions: of the pairs that don't belong together, the
    share in which the caption is another's (Oscar: 0, Oscar+: 0.5); in the others the tags are.
    classes: of the contrastive head. mask_unmatched: hide words also where tags are another's.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    random_ids: Sequence[int]
    pad_id: int = 0
    probability: float = 0.15  # of each word and tag
    mix: bool = True
    false_captions: float = 0.0
    classes: int = 2
    mask_unmatched: bool = True
    longest: int = 35  # tokens of a text with its tags; tags are cut first

    def __post_init__(self) -> None:
        if self.classes not in (2, 3):
            raise ConfigError(f"classes must be 2 (Oscar) or 3 (Oscar+), got {self.classes}")
        if not 0 <= self.false_captions <= 1:
            raise ConfigError(f"false_captions={self.false_captions} must lie in [0, 1]")
        if self.longest < 4:
            raise ConfigError(f"longest={self.longest} must leave a word beside [CLS] and two [SEP]: 4 or more")

    def __call__(self, pairs: Sequence[Tagged], generator: torch.Generator | None = None) -> Batch:
        check_captions(pairs)
        rng = python_random(generator)
        chosen = [(number, number, 0) for number in range(len(pairs))]
        if self.mix:
            chosen = mixed(len(pairs), rng, false_captions=self.false_captions, classes=self.classes)
        examples = []
        for caption, tags, label in chosen:
            ids, segments = self.framed(pairs[caption][0], pairs[tags][1])
            hide = self.mask_unmatched or label != 1
            masked, labels = self.hidden(ids, rng) if hide else (ids, [IGNORED] * len(ids))
            example = {"input_ids": masked, "token_type_ids": segments, "labels": labels}
            examples.append(example | ({"match_labels": label} if self.mix else {}))
        return batched(examples, self.pad_id)

    def framed(self, words: Sequence[int], tags: Sequence[int]) -> tuple[list[int], list[int]]:
        """[CLS] words [SEP] tags [SEP] and the segments; a text without tags ends with the first [SEP]."""
        words = list(words)[: self.longest - 3]
        first = [self.cls_id, *words, self.sep_id]
        tags = list(tags)[: self.longest - len(first) - 1]
        second = [*tags, self.sep_id] if tags else []
        return first + second, [0] * len(first) + [1] * len(second)

    def hidden(self, ids: Sequence[int], rng: random.Random) -> tuple[list[int], list[int]]:
        """Words and tags hidden, each by a draw of its own; special tokens never."""
        places = [place for place, token in enumerate(ids) if token not in (self.cls_id, self.sep_id)]
        masked, labels = mask_each_word(
            [ids[place] for place in places],
            (rng.random() for _ in places),
            lambda: rng.choice(self.random_ids),
            self.mask_id,
            probability=self.probability,
        )
        found, wanted = list(ids), [IGNORED] * len(ids)
        for place, token, label in zip(places, masked, labels, strict=True):
            found[place], wanted[place] = token, label
        return found, wanted


def mixed(
    number: int, rng: random.Random, *, false_captions: float = 0.0, classes: int = 2
) -> list[tuple[int, int, int]]:
    """Whose caption and whose tags stand beside each of ``number`` pictures, and the class of that: half of
    all as they belong (0); of the others a share has another's caption (the last class), the rest
    another's tags (1).
    """
    if number < 2:
        raise InputError("a batch of one pair has no other caption or tags to mix in; give more, or mix=False")
    found = []
    for own in range(number):
        if rng.random() > 0.5:
            found.append((own, own, 0))
            continue
        wrong_caption = rng.random() < false_captions
        other = (own + rng.randrange(1, number)) % number
        found.append((other, own, classes - 1) if wrong_caption else (own, other, 1))
    return found


@dataclass(frozen=True, kw_only=True)
class TaggedCaptionCollator:
    """Batches to learn to write captions from: some words hidden, the last [SEP] among them, since it ends a
    caption.

    Called with a caption and its tags for each picture. caption_length: tokens of the longest caption, special ones
    included, behind which tags stand; a model's ``tag_position``. random_ids as of `TagCollator`.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    random_ids: Sequence[int]
    pad_id: int = 0
    probability: float = 0.15  # of the words that are hidden
    most: int = 3  # hidden words of a caption
    caption_length: int = 40
    longest: int = 70  # tokens of a caption and its tags

    def __post_init__(self) -> None:
        if not 2 < self.caption_length <= self.longest:
            raise ConfigError(
                f"caption_length={self.caption_length} must be 3 or more and at most longest={self.longest}"
            )

    def __call__(self, pairs: Sequence[Tagged], generator: torch.Generator | None = None) -> Batch:
        check_captions(pairs)
        rng = python_random(generator)
        examples = []
        for words, tags in pairs:
            caption = self.caption(words)
            masked = self.hidden(caption, rng)
            labels = [IGNORED] * len(caption)
            for place, label in zip(masked.positions, masked.labels, strict=True):
                labels[place] = label
            named = self.tags(tags)
            ranks = [*range(1, len(caption) + 1), *[0] * len(named)]
            places = [*range(len(caption)), *range(self.caption_length, self.caption_length + len(named))]
            examples.append(
                {
                    "input_ids": [*masked.tokens, *named],
                    "token_type_ids": [0] * len(caption) + [1] * len(named),
                    "position_ids": places,
                    "labels": labels + [IGNORED] * len(named),
                    "ranks": ranks,
                }
            )
        return batched(examples, self.pad_id)

    def caption(self, words: Sequence[int]) -> list[int]:
        """[CLS] words [SEP], the words cut."""
        return [self.cls_id, *list(words)[: self.caption_length - 2], self.sep_id]

    def tags(self, tags: Sequence[int]) -> list[int]:
        """tags [SEP], the tags cut; nothing where there are none."""
        room = self.longest - self.caption_length - 1
        return [*list(tags)[:room], self.sep_id] if len(tags) and room >= 0 else []

    def hidden(self, caption: Sequence[int], rng: random.Random) -> Masked[int]:
        """Some of the tokens behind [CLS] hidden: 80 % behind the mask, 10 % behind a random word, 10 % as they
        are.
        """
        candidates = list(range(1, len(caption)))
        rng.shuffle(candidates)
        chosen = sorted(candidates[: prediction_budget(len(caption), self.probability, self.most)])
        tokens = list(caption)
        for place in chosen:
            if rng.random() <= 0.8:
                tokens[place] = self.mask_id
            elif rng.random() <= 0.5:
                tokens[place] = self.random_ids[rng.randint(0, len(self.random_ids) - 1)]
        return Masked(tokens, chosen, [caption[place] for place in chosen])

    def beginning(self, tags: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """What is read before a caption is written: tags and their [SEP], padded. Hand it to
        `zoo.generate` beside the pictures.
        """
        found = [self.tags(each) for each in tags]
        if not any(found):
            raise InputError("no picture has tags; leave them out, regions alone are read then")
        return {
            "input_ids": padded(found, self.pad_id),
            "attention_mask": padded([[1] * len(ids) for ids in found], 0),
        }


def check_captions(pairs: Sequence[Tagged]) -> None:
    """Refuse a picture without words: tags alone say nothing that could be matched or written."""
    if not pairs:
        raise InputError("a batch needs at least one caption")
    for number, (words, tags) in enumerate(pairs):
        if not len(words):
            given = f"{len(tags)} tags alone" if len(tags) else "neither words nor tags"
            raise InputError(f"a text with tags needs words before them; number {number} has {given}")


def batched(examples: Sequence[dict[str, Any]], pad_id: int) -> Batch:
    """Padded rows; labels are -100 and ranks 0 at padding."""
    labels: list[list[int]] = [example.pop("labels") for example in examples]
    batch = pad_examples(examples, pad_id)
    return batch | {"labels": padded(labels, IGNORED)}
