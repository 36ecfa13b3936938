"""What is common: rows become examples, examples a batch with labels, results become figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.data.tables import Columns, Row
from zoo.errors import InputError, TaskError

Batch = dict[str, Any]


class Supervision:
    """A task's view of a table.

    ``columns``: where the table keeps what. ``options``: the task model's. ``max_length``: tokens
    of an example, None = what the tokenizer says. An example is whatever `examples` makes of a row
    and `batch` understands.
    """

    needed: ClassVar[tuple[str, ...]] = ("text", "label")
    optional: ClassVar[tuple[str, ...]] = ("pair",)
    least: ClassVar[bool] = False  # the lowest `measure` is the best

    def __init__(
        self, tokenizer: Any, columns: Columns, options: Mapping[str, Any], max_length: int | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.columns = columns
        self.options = dict(options)
        self.max_length = max_length

    def prepare(self, model: Any) -> None:
        """Take from the bare model what batches depend on besides the tokenizer; by default nothing."""

    @property
    def measure(self) -> str:
        """The figure by which the best model is chosen where nobody says."""
        return "accuracy"

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the task that the training rows show, beside those given: the labels."""
        return dict(options)

    def examples(self, row: Row) -> Iterable[Any]:
        """What is learned from one row."""
        return (row,)

    def size(self, example: Any) -> int:
        """How long an example is, in any unit: rows of like size stand together when scored."""
        return sum(len(self.columns.text(example, name)) for name in ("text", "pair") if name in self.columns)

    def batch(self, examples: Sequence[Any]) -> Batch:
        """Inputs and labels for ``model(**batch)``."""
        raise NotImplementedError

    def prompts(self, examples: Sequence[Any]) -> tuple[Batch, list[list[str]]]:
        """What `zoo.generate` takes to write for the examples, and the right texts of each."""
        raise TaskError(f"{type(self).__name__} has no texts that a model would write; see the tasks that write")

    def run(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        """The loss of a batch and the model's result."""
        output = model(**batch)
        return output.loss, output

    def results(self, output: Any, batch: Batch, examples: Sequence[Any]) -> list[Any]:
        """What `figures` needs of each example."""
        raise NotImplementedError

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        """The metrics over all results."""
        raise NotImplementedError

    def encoded(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, languages: Sequence[str] | None = None
    ) -> Batch:
        """The inputs for texts or pairs; ``languages``: of each."""
        batch: Batch = self.tokenizer(texts, pairs, max_length=self.max_length, return_lengths=True, language=languages)
        batch["lengths"] = tuple(batch["lengths"].tolist())
        return batch

    def padded(self, rows: Sequence[Any]) -> Batch:
        """The inputs for rows that have ``ids`` and ``type_ids``."""
        from zoo.data.collate import pad_examples

        segments = "token_type_ids" in self.tokenizer.inputs
        examples = [{"input_ids": row.ids, **({"token_type_ids": row.type_ids} if segments else {})} for row in rows]
        batch = pad_examples(examples, self.tokenizer.pad_token_id or 0)
        return {name: value for name, value in batch.items() if name in (*self.tokenizer.inputs, "lengths")}


def number_of(value: Any) -> int | float | None:
    """A cell as a number: whole where it is written so; None where it is none."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return value if value == value else None
    try:
        return int(value)
    except (TypeError, ValueError):
        pass
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if found == found and abs(found) != float("inf") else None


def label_names(values: Iterable[Any], what: str = "label") -> list[str]:
    """The names of labels, in the order of their numbers.

    Whole numbers from 0 name themselves, up to the largest; others stand in the order of their
    numbers, words in that of the alphabet.
    """
    distinct = set()
    for number, value in enumerate(values, 1):
        try:
            distinct.add(_named(value, what))
        except InputError as error:
            raise InputError(f"{what} {number}: {error}") from error
    numbers = [number_of(name) for name in distinct]
    if all(isinstance(number, int) for number in numbers):
        whole = sorted(int(number) for number in numbers if number is not None)
        if whole[0] == 0 and whole[-1] < MOST_LABELS:
            return [str(number) for number in range(whole[-1] + 1)]
        return [str(number) for number in whole]
    return sorted(distinct)


MOST_LABELS = 100_000


def _named(value: Any, what: str) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"a {what} must be a word or a whole number, got {value!r}")
    return value.strip()


def label_number(value: Any, names: Sequence[str] | None, count: int, what: str = "label") -> int:
    """The number of a label: its place among the names, else the number that it says."""
    name = _named(value, what)
    if names is not None and name in names:
        return names.index(name)
    number = number_of(name)
    if names is None and isinstance(number, int) and 0 <= number < count:
        return number
    known = f"{count} numbers from 0" if names is None else ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise InputError(f"the {what} {name!r} is none that the model knows: {known}")


def rows_of(values: Tensor) -> list[Any]:
    """The rows of a result on the CPU, in float32 where it is floating."""
    values = values.detach()
    return list((values.float() if values.is_floating_point() else values).cpu())


def stacked(values: Sequence[Any]) -> Tensor:
    """Back into one tensor."""
    return torch.stack([torch.as_tensor(value) for value in values])
