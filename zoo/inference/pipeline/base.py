"""A task model with its tokenizer, from rows of text to rows of results: what all tasks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tokenizers
import torch

from zoo.data.batches import ROWS, like_lengths, windows
from zoo.errors import InputError, TaskError
from zoo.tokenization import Tokenizer

Result = dict[str, Any]


class RowPipeline(ABC):
    """From rows to results, one dict for each row, in their order.

    Called with one row it gives one dict, with a list a list, with an iterator an iterator, which is
    read a window at a time. A subclass says what a row is and what a window of them gives.
    """

    task: ClassVar[str]
    head: ClassVar[str | None] = None  # the task whose head the model needs
    meanings: ClassVar[tuple[str, ...]]  # of the columns that a table must have, see `find_columns`
    more_meanings: ClassVar[tuple[str, ...]] = ()  # of those that it may have
    row: ClassVar[str]
    longest_window: ClassVar[int] = ROWS

    def __init__(self, model: Any, *, batch_size: int = 32) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
        self.model = model.eval()
        self.batch_size = batch_size

    def __call__(self, rows: Any) -> Any:
        """One row -> its dict; a list of rows -> a list; any other iterable -> an iterator."""
        if self.is_row(rows):
            return next(self.stream([rows]))
        if isinstance(rows, list):
            return list(self.stream(rows))
        if isinstance(rows, Iterable) and not isinstance(rows, Mapping):
            return self.stream(rows)
        raise InputError(f"this pipeline takes {self.row}, a list of them or an iterator, got {type(rows).__name__}")

    def stream(self, rows: Iterable[Any]) -> Iterator[Result]:
        """The result of each row, in order, a window of rows at a time."""
        start = 0
        for window in windows(rows, self.batch_size, self.longest_window):
            for place, row in enumerate(window, start):
                if not self.is_row(row):
                    raise InputError(f"row {place} must be {self.row}, got {row!r:.80}")
            yield from self._window(window)
            start += len(window)

    @classmethod
    @abstractmethod
    def is_row(cls, value: Any) -> bool:
        """Whether a value is one row."""

    @classmethod
    @abstractmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        """A row from the cells of a table, by their `meanings`."""

    @abstractmethod
    def _window(self, rows: Sequence[Any]) -> list[Result]:
        """The results of a window of rows."""


class Pipeline(RowPipeline):
    """From texts to results: texts are put into batches of like length within a window, and the model
    packs what padding is left. A subclass says into which pieces a row is cut, what the model gives
    for a batch of pieces, and what that says of the row.
    """

    meanings: ClassVar[tuple[str, ...]] = ("text",)
    row = "a text (str)"

    def __init__(self, model: Any, tokenizer: Tokenizer | None = None, *, batch_size: int = 32) -> None:
        if getattr(model, "task", None) != self.task:
            found = getattr(model, "task", None) or "none"
            raise TaskError(f"this pipeline is for models of the task {self.task!r}, the model's task is {found!r}")
        super().__init__(model, batch_size=batch_size)
        self.tokenizer: Tokenizer = tokenizer or model.need_tokenizer()

    def _window(self, rows: Sequence[Any]) -> list[Result]:
        cut = self.pieces(rows)
        flat = [piece for pieces in cut for piece in pieces]
        found: list[Any] = [None] * len(flat)
        with torch.inference_mode():
            for places in like_lengths([len(piece.ids) for piece in flat], self.batch_size):
                batch = self.tokenizer.batch([flat[place] for place in places])
                made = self.run({name: tensor.to(self.model.device) for name, tensor in batch.items()})
                for place, one in zip(places, made, strict=True):
                    found[place] = one
        results, start = [], 0
        for row, pieces in zip(rows, cut, strict=True):
            results.append(self.result(row, pieces, found[start : start + len(pieces)]))
            start += len(pieces)
        return results

    @classmethod
    def is_row(cls, value: Any) -> bool:
        """Whether a value is one row."""
        return isinstance(value, str)

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        """A row from the cells of a table, by their `meanings`."""
        return values["text"]

    def pieces(self, rows: Sequence[Any]) -> list[list[tokenizers.Encoding]]:
        """What the model reads for each row: by default the row itself, cut to the model's length."""
        return [[encoding] for encoding in self.tokenizer.encodings(list(rows))]

    @abstractmethod
    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        """What the model gives for each piece of a batch."""

    @abstractmethod
    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        """A row's result from what the model gave for its pieces."""


def label_names(model: Any, count: int) -> list[str]:
    """The names of a head's labels: those that its task keeps, else their numbers."""
    names = model.options.get("labels")
    return [str(number) for number in range(count)] if names is None else list(names)
