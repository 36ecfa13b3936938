"""Captions as VLP reads and writes them: [CLS] [SEP] words [SEP] beside the regions of a picture.

    reading    segments 0 (also of regions) and 1, every token attends to every token
    writing    segments 4 (also of regions) and 5, ranks 0 0 1 2 3 ...: the words and the last [SEP] are written

In both, words are hidden and predicted, the last [SEP] among them: it ends what is written.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.data.collate import Batch, pad_examples
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

    def __call__(self, captions: Sequence[Sequence[int]], generator: torch.Generator | None = None) -> Batch:
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
        return self.batch(examples, written)

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

    def beginning(self, pictures: int) -> dict[str, Tensor]:
        """What stands before captions that are yet to be written: [CLS] [SEP] and the segments."""
        segment = torch.full((pictures, 2), WRITING[0])
        return {
            "input_ids": torch.tensor([[self.cls_id, self.sep_id]]).expand(pictures, -1),
            "token_type_ids": segment,
            "visual_token_type_ids": segment[:, :1].expand(-1, self.regions),
        }

    def batch(self, examples: Sequence[dict[str, list[int]]], written: bool) -> Batch:
        """Padded rows, with the segments of regions, and ranks where the captions are written."""
        labels = [example.pop("labels") for example in examples]
        batch = pad_examples(examples, self.pad_id)
        rows, length = batch["input_ids"].shape
        batch["labels"] = torch.full((rows, length), IGNORED)
        for row, values in enumerate(labels):
            batch["labels"][row, : len(values)] = torch.tensor(values)
        batch["visual_token_type_ids"] = torch.full((rows, self.regions), (WRITING if written else READING)[0])
        if written:
            batch["ranks"] = (torch.arange(length) - 1).clamp(min=0).expand(rows, -1)
        return batch


def hidden_regions(number: int, share: float, choose: Choose) -> list[int]:
    """Which of a picture's ``number`` regions are hidden, an option of VLP that its releases leave off:
    ``choose(number, count)`` gives so many different ones, count being the share rounded down.
    """
    return [int(region) for region in choose(number, int(number * share))]
