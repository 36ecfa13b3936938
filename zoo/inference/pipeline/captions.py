"""Captions that a model writes for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zoo.data.images.reading import is_picture
from zoo.errors import TaskError
from zoo.inference.generate import generate
from zoo.inference.picture_regions import PictureRegions
from zoo.inference.pipeline.base import Result, RowPipeline
from zoo.inference.search.settings import Search
from zoo.tokenization import Tokenizer


class CaptionPipeline(RowPipeline):
    """A picture -> ``{"text", "score", "texts", "scores"}``: the best caption and its score, and all
    ``num_return_sequences`` of them, best first.

    ``regions``: from pictures to their regions, as the model was trained on them, see
    `zoo.inference.picture_regions`. Settings of the search are those beside the weights, changed by ``search`` and by
    keyword; a caption is as long as those that the family is trained on unless they say otherwise.
    """

    task = "image-captioning"
    head = "masked-lm"
    meanings = ("image",)
    row = "a picture (a path, the bytes of a file, a picture of Pillow, or a uint8 array)"
    longest_window = 1  # a window is one batch, so that no more than one batch of pictures is held

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        regions: PictureRegions,
        batch_size: int = 16,
        search: Search | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.require_writer(model)
        super().__init__(model, batch_size=batch_size)
        found = (search or getattr(model, "search", None) or Search()).replace(**settings)
        self.tokenizer: Tokenizer = tokenizer or model.need_tokenizer()
        self.regions = regions
        self.collator = model.model.captions.of(self.tokenizer, model.config)
        if found.max_length is None and found.max_new_tokens is None:
            found = found.replace(max_new_tokens=self.collator.longest + 1)
        self.search = found
        self.generator = torch.Generator(model.device).manual_seed(seed)

    @classmethod
    def require_writer(cls, model: Any) -> None:
        """Refuse a model that writes no captions."""
        bare = getattr(model, "model", None)
        if getattr(model, "task", None) != cls.head or getattr(bare, "captions", None) is None:
            raise TaskError(
                f"{type(bare or model).__name__} writes no captions from pictures alone; take a VLP or a UNIMO of the "
                f"task {cls.head!r}"
            )

    @classmethod
    def is_row(cls, value: Any) -> bool:
        return is_picture(value)

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        return values["image"]

    def _window(self, rows: Sequence[Any]) -> list[Result]:
        device, dtype = self.model.device, self.model.dtype
        seen = self.regions(rows).for_model(self.model.config)
        inputs = {**self.collator.beginning(len(rows), seen["visual_features"].shape[1]), **seen}
        inputs = {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in inputs.items()}
        drawing = self.generator if self.search.do_sample else None
        found = generate(self.model, inputs, search=self.search, generator=drawing)
        texts = [text.strip() for text in found.texts(self.tokenizer)]
        scores, times = found.scores.tolist(), self.search.num_return_sequences
        return [
            {"text": texts[first], "score": scores[first]}
            | {"texts": texts[first : first + times], "scores": scores[first : first + times]}
            for first in range(0, len(texts), times)
        ]
