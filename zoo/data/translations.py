"""Pairs of translations for contrastive learning, as InfoXLM reads them.

An example is a mapping with ``first`` and ``second``, the ids of a sentence and of its translation, each
``<s> words </s>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zoo.data.collate import Batch, MaskedLMCollator, pad_examples
from zoo.errors import InputError

Ids = Sequence[int]


def mixed_pair(first: tuple[Ids, Ids], second: tuple[Ids, Ids], mode: int) -> tuple[list[int], list[int]]:
    """InfoXLM's mixup contrast: two pairs of translations as one, the sentences of each side joined.

    mode, 0 to 7: bit 0 puts the second pair's sentence first on the one side, bit 1 on the other, bit 2 exchanges
    the sides. The second sentence of a side loses its <s>; both keep their </s>.
    """
    if not 0 <= mode < 8:
        raise InputError(f"mode must lie in 0..7, a bit for each of three choices, got {mode}")
    sides = []
    for side in (0, 1):
        one, other = (second, first) if mode >> side & 1 else (first, second)
        sides.append([*one[side], *other[side][1:]])
    return (sides[1], sides[0]) if mode & 4 else (sides[0], sides[1])


@dataclass(frozen=True)
class TranslationPairs:
    """A batch for the task cross-lingual-contrast: ``input_ids`` and ``attention_mask`` (batch, 2, length),
    ``lengths`` of all texts, row by row.

    mixup: examples are joined two by two (`mixed_pair`), which makes half as many rows; an odd one is left as it is.
    masked_lm: words of both sides are masked as it says; its labels are left out.
    """

    pad_id: int
    mixup: bool = False
    masked_lm: MaskedLMCollator | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]], generator: torch.Generator | None = None) -> Batch:
        for number, example in enumerate(examples):
            if set(example) != {"first", "second"} or len(example["first"]) < 2 or len(example["second"]) < 2:
                raise InputError(
                    f"example {number} needs exactly the entries 'first' and 'second', each sentence with both its ends"
                )
        pairs: list[tuple[Ids, Ids]] = [(example["first"], example["second"]) for example in examples]
        if self.mixup:
            joined: list[tuple[Ids, Ids]] = []
            for place in range(0, len(pairs) - 1, 2):
                mode = int(torch.randint(8, (), generator=generator))
                joined.append(mixed_pair(pairs[place], pairs[place + 1], mode))
            pairs = joined + pairs[len(joined) * 2 :]
        batch = pad_examples([{"input_ids": ids} for pair in pairs for ids in pair], self.pad_id)
        if self.masked_lm is not None:
            masked = self.masked_lm.corrupt(batch["input_ids"], batch["lengths"], generator)
            batch["input_ids"] = masked["input_ids"]
        views = {name: batch[name].unflatten(0, (-1, 2)) for name in ("input_ids", "attention_mask")}
        return {**views, "lengths": batch["lengths"]}
