"""Rows of a table, read for a task; a model's figures over them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from zoo.data.tables import Columns, Row, find_columns, read_rows
from zoo.errors import InputError
from zoo.models.base.model import VisionLanguageModel, bare_model, unwrapped
from zoo.tasks.base import spec_of_class
from zoo.training.supervision import Supervision, supervision_of
from zoo.training.supervision.pictures import Pictured

Table = str | os.PathLike[str] | Iterable[Row]


@dataclass(frozen=True)
class Examples:
    """Rows as a task reads them, all in memory; `batches` forms them by an order."""

    supervision: Supervision
    rows: Sequence[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, order: Sequence[int], size: int, share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """Examples and their batch, ``size`` at a time. ``share``: of every batch the part of this
        process, (its number, how many there are); one that would get nothing takes the first example.
        """
        number, count = share
        for start in range(0, len(order), size):
            batch = [self.rows[place] for place in order[start : start + size]]
            chosen = batch[number::count] or batch[:1]
            yield chosen, self.supervision.batch(chosen)

    def by_size(self) -> list[int]:
        """The longest first: what is padded together is of like length."""
        sizes = [self.supervision.size(row) for row in self.rows]
        return sorted(range(len(self.rows)), key=lambda place: -sizes[place])


@dataclass(frozen=True)
class TableReader:
    """How rows are read. ``columns``: {"text": "sentence"} where a column isn't called as public tables
    call it. ``max_length``: tokens. ``regions``: the dump that the rows' pictures stand in, or a
    mapping from their names to Regions.
    """

    tokenizer: Any = None
    columns: Mapping[str, str] | None = None
    max_length: int | None = None
    regions: Any = None

    def rows(self, table: Table, task: str, pictured: bool) -> tuple[list[Row], Columns]:
        """The rows of a file (or those given) and where they keep what the task needs."""
        where = os.fspath(table) if isinstance(table, str | os.PathLike) else "the table"
        rows: list[Row] = list(read_rows(where)) if isinstance(table, str | os.PathLike) else list(table)
        if not rows:
            raise InputError(f"{where} holds no rows")
        supervision = supervision_of(task, pictured)
        return rows, find_columns(rows[0], supervision.needed, supervision.optional, self.columns)

    def examples(self, table: Table, model: Any) -> Examples:
        """Rows as a task model reads them."""
        inner: Any = unwrapped(model)
        bare = bare_model(inner)
        task, pictured = getattr(inner, "task", ""), isinstance(bare, VisionLanguageModel)
        rows, found = self.rows(table, task, pictured)
        if self.tokenizer is None:
            raise InputError("rows of text need the model's tokenizer: pass tokenizer=zoo.tokenizer(NAME or FOLDER)")
        options = {**spec_of_class(task, type(bare)).options, **inner.options}
        supervision = supervision_of(task, pictured)(self.tokenizer, found, options, self.max_length)
        supervision.prepare(bare)
        if isinstance(supervision, Pictured):
            if self.regions is None:
                raise InputError("rows about pictures need their regions: pass regions=, a dump such as features.h5")
            supervision.look(self.regions, bare.config, rows)
        examples: list[Any] = []
        where = f"{os.fspath(table)}, " if isinstance(table, str | os.PathLike) else ""
        for number, row in enumerate(rows, 1):
            try:
                examples.extend(supervision.examples(row))
            except InputError as error:
                raise InputError(f"{where}row {number}: {error}") from error
        return Examples(supervision, examples)


def task_options(
    table: Table, task: str, columns: Mapping[str, str] | None = None, *, pictured: bool = False, **options: Any
) -> dict[str, Any]:
    """What the task's rows say of its options, beside those given: ``labels`` and ``num_labels``, the
    kind of problem. For ``zoo.create(name, task=task, **task_options("train.tsv", task))``.
    ``pictured``: the rows are about pictures.
    """
    rows, found = TableReader(columns=columns).rows(table, task, pictured)
    return supervision_of(task, pictured).options_of(rows, found, options)


def evaluate(
    model: Any,
    table: Table | Examples,
    *,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    regions: Any = None,
    batch_size: int = 64,
    max_length: int | None = None,
    precision: str = "float32",
) -> dict[str, float]:
    """The task's figures over rows: a file (csv, tsv, jsonl, parquet, txt) or dicts.

    columns, regions, max_length: see `TableReader`. What is drawn at random (masks) is the same each
    time. Returns metrics by name, ``loss`` among them: the mean over batches.
    """
    reader = TableReader(tokenizer, columns, max_length, regions)
    examples = table if isinstance(table, Examples) else reader.examples(table, model)
    was, device = model.training, next(model.parameters()).device
    model.eval()
    results: list[Any] = []
    losses: list[tuple[float, int]] = []
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]), autocast(device, precision):
            torch.manual_seed(0)
            for chosen, batch in examples.batches(examples.by_size(), batch_size):
                batch = moved(batch, device)
                loss, output = examples.supervision.run(model, batch)
                losses.append((float(loss), len(chosen)))
                results.extend(examples.supervision.results(output, batch, chosen))
    finally:
        model.train(was)
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    return {"loss": mean} | examples.supervision.figures(results)


def moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch's tensors on the model's device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def autocast(device: torch.device, precision: str) -> Any:
    """bfloat16 where it is asked for."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def grouped(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` batches; the last may be shorter."""
    source = iter(batches)
    while group := list(islice(source, size)):
        yield group
