"""What the commands share: options, and how a result is printed."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

import zoo

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Task = Annotated[str | None, typer.Option(help="A task: its head is built or loaded too.")]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


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


def overrides_of(pairs: list[str] | None) -> dict[str, Any]:
    """What --set says: name=value, the value JSON where it reads as such, else text."""
    values: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not name=value")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    return values
