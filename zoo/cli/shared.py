"""What the commands share: options, and how a result is printed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

import zoo

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Task = Annotated[str | None, typer.Option(help="A task: its head is built or loaded too.")]


def print_json(value: Any) -> None:
    """Print JSON, which knows no NaN and no infinity: null stands for them."""
    print(json.dumps(_sayable(value), indent=2, default=str, allow_nan=False))


def _sayable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _sayable(part) for key, part in value.items()}
    return [_sayable(part) for part in value] if isinstance(value, list | tuple) else value


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def tokenizer_of(source: str) -> Any:
    """The source's tokenizer; None, with a line on stderr, where it has none."""
    try:
        return zoo.tokenizer(source)
    except zoo.ZooError as error:
        print(f"zoo: saved without a tokenizer: {error}", file=sys.stderr)
        return None
