"""Captions of pictures, for models that write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from zoo.data.tables import Columns, Row
from zoo.errors import InputError, TaskError
from zoo.training.supervision.base import Batch
from zoo.training.supervision.pictures import Pictured
from zoo.training.supervision.words import Guesses


class Captions(Guesses, Pictured):
    """``text``, a caption of the picture that ``image`` names in a dump of regions; a picture with several captions
    stands in several rows. The model learns as its family does: by hidden words (VLP) or the next word (UNIMO).
    """

    needed = ("text", "image")
    optional = ()

    def prepare(self, model: Any) -> None:
        if model.captions is None:
            raise TaskError(
                f"{type(model).__name__} learns masked words beside regions from batches, not from rows of a table; a "
                "VLP and a UNIMO learn captions from rows"
            )
        self.collator = model.captions.of(self.tokenizer, model.config)

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        return dict(options)

    def look(self, dump: Any, config: Any, rows: Sequence[Row]) -> Self:
        self.right: dict[str, list[str]] = {}  # all captions of a picture
        for row in rows:
            self.right.setdefault(self._name(row, "image"), []).append(self.columns.text(row, "text"))
        return super().look(dump, config, rows)

    def prompts(self, examples: Sequence[Row]) -> tuple[Batch, list[list[str]]]:
        seen = self.seen(examples)
        before = self.collator.beginning(len(examples), seen["visual_features"].shape[1])
        return {**before, **seen}, [self.right[self._name(row, "image")] for row in examples]

    def words(self, text: str) -> list[int]:
        """The ids of a caption's words."""
        (encoding,) = self.tokenizer.encodings(text)
        found = [i for i, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not special]
        if not found:
            raise InputError(f"a caption is empty: {text!r:.60}; give at least one word")
        return found if self.max_length is None else found[: self.max_length]

    def batch(self, examples: Sequence[Row]) -> Batch:
        seen = self.seen(examples)
        captions = [self.words(self.columns.text(row, "text")) for row in examples]
        return {**self.collator(captions, regions=seen["visual_features"].shape[1]), **seen}
