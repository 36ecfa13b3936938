"""What is said of pictures, whose regions stand in a dump: answers, classes, truth of two pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from zoo.data.regions.files import read_regions
from zoo.data.regions.regions import Regions, stack
from zoo.data.tables import Columns, Row, cells
from zoo.errors import InputError, TaskError
from zoo.tasks.metrics.language import accuracy, class_scores
from zoo.tasks.metrics.vision import soft_scores, vqa_accuracy, vqa_vocabulary_form
from zoo.training.supervision.base import Batch, Supervision, label_names, label_number, rows_of, stacked


class Pictured(Supervision):
    """A text about the picture that ``image`` names in a dump of regions, and ``label``."""

    needed: ClassVar[tuple[str, ...]] = ("text", "image", "label")
    optional: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[tuple[str, ...]] = ("image",)

    def look(self, dump: Any, config: Any, rows: Sequence[Row]) -> Self:
        """Take the regions of the pictures that the rows name from a dump (`read_regions`'s, or a
        mapping from name to Regions), for a model of this config.
        """
        names = {self._name(row, column) for row in rows for column in self.images}
        found = dump if isinstance(dump, Mapping) else {n: r for n, r in read_regions(Path(dump)) if n in names}
        if missing := sorted(names - set(found)):
            raise InputError(f"{len(missing)} pictures are not in the dump of regions, {missing[0]!r} among them")
        self.pictures: dict[str, Regions] = {name: found[name] for name in names}
        self.config = config
        return self

    def _name(self, row: Row, column: str) -> str:
        value = self.columns.of(row, column)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise InputError(f"a picture's name must be text or a number, got {value!r}")
        return str(value)

    def seen(self, examples: Sequence[Row]) -> dict[str, Tensor]:
        """The visual inputs; with two pictures a row (batch, 2, regions, ...)."""
        chosen = [self.pictures[self._name(row, column)] for row in examples for column in self.images]
        inputs = stack(chosen).for_model(self.config)
        count = len(self.images)
        return inputs if count == 1 else {name: value.unflatten(0, (-1, count)) for name, value in inputs.items()}

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        if "labels" in options or "num_labels" in options:
            return dict(options)
        return {**options, "labels": label_names(columns.of(row, "label") for row in rows)}

    def size(self, example: Row) -> int:
        return len(self.columns.text(example, "text"))

    def batch(self, examples: Sequence[Row]) -> Batch:
        batch = self.encoded([self.columns.text(row, "text") for row in examples])
        return {**batch, **self.seen(examples), "labels": self.labelled(examples)}

    def labelled(self, examples: Sequence[Row]) -> Tensor:
        """(batch,) numbers of classes."""
        names, count = self.options.get("labels"), self.options["num_labels"]
        return torch.tensor([label_number(self.columns.of(row, "label"), names, count) for row in examples])

    def results(self, output: Any, batch: Batch, examples: Sequence[Row]) -> list[Any]:
        return list(zip(rows_of(output.logits.argmax(1)), rows_of(batch["labels"]), strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        found, wanted = (stacked(side) for side in zip(*results, strict=True))
        return {"accuracy": accuracy(found, wanted), "macro_f1": class_scores(found, wanted)["macro_f1"]}


class PairsOfPictures(Pictured):
    """Is a text true of two pictures, ``image`` and ``image2`` (NLVR2)?"""

    needed = ("text", "image", "image2", "label")
    images = ("image", "image2")

    def look(self, dump: Any, config: Any, rows: Sequence[Row]) -> Self:
        if not self.options.get("pairs"):
            raise TaskError(
                "this family reads both pictures in one sequence, which it learns from batches; with pairs=True each "
                "picture runs with the text on its own"
            )
        return super().look(dump, config, rows)


class Questions(Pictured):
    """A question, its picture, and ``answer``: one, or a list of what people answered, whose
    agreement makes soft scores as in VQA 2.0. The labels are the answers in their vocabulary form.
    """

    needed = ("text", "image", "answer")

    @classmethod
    def options_of(cls, rows: Sequence[Row], columns: Columns, options: Mapping[str, Any]) -> dict[str, Any]:
        if "labels" in options or "num_labels" in options:
            return dict(options)
        return {
            **options,
            "labels": sorted({form for row in rows for form in _forms(columns.of(row, "answer")) if form}),
        }

    def labelled(self, examples: Sequence[Row]) -> Tensor:
        """(batch, answers): how right each answer is."""
        names = self.options.get("labels")
        if names is None:
            raise TaskError("this model doesn't know its answers' names; build it with labels=[...]")
        place = {name: number for number, name in enumerate(names)}
        labels = torch.zeros(len(examples), len(names))
        for number, row in enumerate(examples):
            given = _forms(self.columns.of(row, "answer"))
            shares = soft_scores(given) if len(given) > 1 else dict.fromkeys(given, 1.0)
            for answer, share in shares.items():
                if answer in place:
                    labels[number, place[answer]] = share
        return labels

    def results(self, output: Any, batch: Batch, examples: Sequence[Row]) -> list[Any]:
        names = self.options["labels"]
        said = [names[number] for number in output.logits.argmax(1).tolist()]
        return list(zip(said, (_forms(self.columns.of(row, "answer")) for row in examples), strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        right = [vqa_accuracy(said, given) if len(given) > 1 else float(said in given) for said, given in results]
        return {"accuracy": sum(right) / len(right)}


def _forms(value: Any) -> list[str]:
    several: Iterable[Any] = [value] if isinstance(value, str) and not value.lstrip().startswith("[") else cells(value)
    return [vqa_vocabulary_form(str(answer)) for answer in several]
