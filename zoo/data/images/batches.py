"""Pictures with their texts, in batches for training."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.data.images.images import Images
from zoo.errors import InputError


@dataclass(frozen=True)
class PictureTexts:
    """Samples with a picture and a text, such as `zoo.data.images.shards.Shards`, as batches for
    ``model(**batch)``, in an order that is drawn anew for each epoch: `zoo.training.fit` takes it, and
    goes on at the batch where it was stopped.

    inputs: what the model reads (``model.inputs``); what the tokenizer makes besides is left out. image, text: the
    columns of a sample.
    """

    samples: Sequence[Mapping[str, Any]]
    images: Images
    tokenizer: Any
    inputs: Collection[str]
    batch_size: int = 32
    seed: int = 0
    image: str = "image"
    text: str = "text"

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def epoch(self, number: int, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch from batch ``start`` on; of each the part of this process, (its number,
        how many there are).
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.samples), generator=generator)
        for first in range(start * self.batch_size, len(order), self.batch_size):
            places: list[int] = order[first : first + self.batch_size].tolist()
            yield self.batch([self.samples[place] for place in places[share[0] :: share[1]] or places[:1]])

    def batch(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Samples as one batch."""
        for sample in samples:
            if lacking := [name for name in (self.image, self.text) if name not in sample]:
                raise InputError(
                    f"the sample {sample.get('key', '')!r} has no {lacking[0]!r}; it has {', '.join(map(repr, sample))}"
                )
        words = self.tokenizer([sample[self.text] for sample in samples])
        made = {**words, "pixel_values": self.images([sample[self.image] for sample in samples])}
        return {name: tensor for name, tensor in made.items() if name in self.inputs}
