"""Captions beside the regions of a picture, as models that write them are trained: `CaptionCollator` (VLP) hides
words, `NextWordCollator` (UNIMO) asks for the next one.

VLP: [CLS] [SEP] words [SEP],

    reading    segments 0 (also of regions) and 1, every token attends to every token
    writing    segments 4 (also of regions) and 5, ranks 0 0 1 2 3 ...: the words and the last [SEP] are written

In both, words are hidden and predicted, the last [SEP] among them: it ends what is written.

UNIMO: <s> words, ranks 1 2 3 ...; the label of each place is the next word, at last </s>.

A family names its collator (`Model.captions`). Each is made by ``of(tokenizer, config)``, turns the words' ids of
captions into a batch, and says what stands before a caption that is yet to be written (``beginning``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.data.collate import Batch, pad_examples, padded
from zoo.data.masking import IGNORED, Masked, prediction_budget, python_random
from zoo.errors import InputError

Choose = Callable[[int, int], Iterable[int]]
READING, WRITING = (0, 1), (4, 5)
"""Segments of the picture with the first [SEP], and of the words."""


@dataclass(frozen=True, kw_only=True)
class CaptionCollator:
    """Batches of captions for VLP: ``[CLS] [SEP] words [SEP]`` with some words hidden, their segments and
    those of the regions, and ranks where the caption is written.

    Called with the words' ids of each caption, without special tokens. random_ids: what stands in the place of a
    tenth of the hidden words. writing: the share of batches whose captions are written; VLP pre-trains with 0.75. The
    pictures' regions are added by the caller (`Regions.for_model`).
    """

    cls_id: int
    sep_id: int
    mask_id: int
    random_ids: Sequence[int]
    pad_id: int = 0
    regions: int = 100  # of each picture
    writing: float = 0.75
    probability: float = 0.15  # of the words that are hidden
    most: int = 3  # hidden words of a caption
    longest: int = 20  # words of a caption that are kept

    @classmethod
    def of(cls, tokenizer: Any, config: Any) -> CaptionCollator:
        """For a tokenizer in BERT's manner and a model's config; all captions are written."""
        special = tokenizer.special
        ids = {role: getattr(special, role) for role in ("cls", "sep", "mask")}
        if lacking := [role for role, token in ids.items() if token is None]:
            raise InputError(
                f"captions are framed by [CLS], [SEP] and [MASK]; this tokenizer has no {lacking[0]} token"
            )
        cls_id, sep_id, mask_id = (int(tokenizer.token_to_id(token)) for token in ids.values())
        if (sep_id, mask_id) != (config.end_token_id, config.mask_token_id):
            raise InputError(
                f"the model ends captions by {config.end_token_id} and masks words by {config.mask_token_id}, the "
                f"tokenizer by {sep_id} and {mask_id}; build the model with end_token_id={sep_id}, "
                f"mask_token_id={mask_id}"
            )
        special_ids = set(tokenizer.special_token_ids)
        words = [i for i in range(min(tokenizer.vocab_size, config.vocab_size)) if i not in special_ids]
        return cls(
            cls_id=cls_id,
            sep_id=sep_id,
            mask_id=mask_id,
            random_ids=words,
            pad_id=config.pad_token_id or 0,
            regions=config.num_regions,
            writing=1.0,
            longest=min(cls.longest, config.longest - 3),
        )

    def __call__(
        self,
        captions: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
        *,
        regions: int | None = None,
    ) -> Batch:
        """regions: of each picture, where they are not as many as always."""
        if not captions:
            raise InputError("a batch needs at least one caption")
        rng = python_random(generator)
        written = rng.random() < self.writing
        examples = []
        for words in captions:
            ids, segments = self.framed(words, written)
            masked = self.hidden(ids, rng)
            labels = [IGNORED] * len(ids)
            for place, label in zip(masked.positions, masked.labels, strict=True):
                labels[place] = label
            examples.append({"input_ids": masked.tokens, "token_type_ids": segments, "labels": labels})
        return self.batch(examples, written, regions)

    def framed(self, words: Sequence[int], written: bool) -> tuple[list[int], list[int]]:
        """[CLS] [SEP] words [SEP], the words cut behind ``longest``, and their segments."""
        first, second = WRITING if written else READING
        words = list(words)[: self.longest]
        ids = [self.cls_id, self.sep_id, *words, self.sep_id]
        return ids, [first, first, *[second] * (len(words) + 1)]

    def hidden(self, ids: Sequence[int], rng: random.Random) -> Masked[int]:
        """Some of the words and of the last [SEP] hidden, in the order in which they were chosen: 80 %
        behind the mask, 10 % behind a random word, 10 % as they are.
        """
        candidates = list(range(2, len(ids)))
        rng.shuffle(candidates)
        chosen = candidates[: prediction_budget(len(candidates) - 1, self.probability, self.most)]
        tokens = list(ids)
        for place in chosen:
            if rng.random() < 0.8:
                tokens[place] = self.mask_id
            elif rng.random() < 0.5:
                tokens[place] = self.random_ids[rng.randint(0, len(self.random_ids) - 1)]
        return Masked(tokens, chosen, [ids[place] for place in chosen])

    def beginning(self, pictures: int, regions: int | None = None) -> dict[str, Tensor]:
        """What stands before captions that are yet to be written: [CLS] [SEP] and the segments."""
        segment = torch.full((pictures, 2), WRITING[0])
        return {
            "input_ids": torch.tensor([[self.cls_id, self.sep_id]]).expand(pictures, -1),
            "token_type_ids": segment,
            "visual_token_type_ids": segment[:, :1].expand(-1, self.regions if regions is None else regions),
        }

    def batch(self, examples: Sequence[dict[str, list[int]]], written: bool, regions: int | None = None) -> Batch:
        """Padded rows, with the segments of regions, and ranks where the captions are written."""
        labels = [example.pop("labels") for example in examples]
        batch = pad_examples(examples, self.pad_id)
        rows, length = batch["input_ids"].shape
        batch["labels"] = padded(labels, IGNORED)
        segment, count = (WRITING if written else READING)[0], self.regions if regions is None else regions
        batch["visual_token_type_ids"] = torch.full((rows, count), segment)
        if written:
            batch["ranks"] = (torch.arange(length) - 1).clamp(min=0).expand(rows, -1)
        return batch


@dataclass(frozen=True, kw_only=True)
class NextWordCollator:
    """Batches of captions for UNIMO: ``<s> words`` with ranks 1, 2, ..., and at each place the next word, or ``</s>``
    behind the last, as its label.

    Called with the words' ids of each caption, without special tokens.
    """

    start_id: int
    end_id: int
    pad_id: int
    longest: int = 50  # words of a caption that are kept

    @classmethod
    def of(cls, tokenizer: Any, config: Any) -> NextWordCollator:
        """For a model's config, whose ids of beginning and end the tokenizer must know."""
        ids = {"start_token_id": config.start_token_id, "end_token_id": config.end_token_id}
        for name, index in ids.items():
            if index is None or tokenizer.id_to_token(index) is None:
                raise InputError(f"the model's {name}={index} is no token of this tokenizer; build it with one that is")
        longest = min(cls.longest, config.longest - 2)  # with the beginning and the end
        return cls(
            start_id=config.start_token_id, end_id=config.end_token_id, pad_id=config.pad_token_id, longest=longest
        )

    def __call__(
        self,
        captions: Sequence[Sequence[int]],
        generator: torch.Generator | None = None,
        *,
        regions: int | None = None,
    ) -> Batch:
        """generator, regions: nothing is drawn here, and regions have no segments."""
        if not captions:
            raise InputError("a batch needs at least one caption")
        kept = [list(words)[: self.longest] for words in captions]
        batch = pad_examples([{"input_ids": [self.start_id, *words]} for words in kept], self.pad_id)
        rows, length = batch["input_ids"].shape
        batch["ranks"] = torch.arange(1, length + 1).expand(rows, -1)
        batch["labels"] = padded([[*words, self.end_id] for words in kept], IGNORED)
        return batch

    def beginning(self, pictures: int, regions: int | None = None) -> dict[str, Tensor]:
        """Nothing is read but the picture: a text begins with the config's ``start_token_id`` by itself."""
        return {}


def hidden_regions(number: int, share: float, choose: Choose) -> list[int]:
    """Which of a picture's ``number`` regions are hidden, an option of VLP that its releases leave off:
    ``choose(number, count)`` gives so many different ones, count being the share rounded down.
    """
    return [int(region) for region in choose(number, int(number * share))]
