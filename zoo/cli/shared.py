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


def say(text: str) -> None:
    """A remark for whoever runs the command, beside what it prints."""
    print(f"zoo: {text}", file=sys.stderr)


def loaded(source: str, task: str | None = None) -> Any:
    """A model from which a command makes another; heads of the source that it lacks are told on
    stderr.
    """
    model = zoo.load(source, task=task)
    say_left_heads(model, source)
    return model


def say_left_heads(model: Any, source: str) -> None:
    """Tell which heads of a source a loaded model lacks, and which tasks have them."""
    from zoo.registry.tasks import TASKS

    report = model.load_report
    if report is None or not report.left_heads:
        return
    tasks = [name for head in report.left_heads if (name := head.replace("_", "-")) in TASKS]
    hint = f"; --task {' or '.join(tasks)} keeps it" if len(report.left_heads) == 1 and tasks else ""
    hint = f"; --task keeps what one task has of them: {', '.join(tasks)}, pretraining" if len(tasks) > 1 else hint
    say(f"left out of {source}: the head {' and '.join(report.left_heads)}{hint}")


def has_tokenizer(source: str) -> bool:
    """Whether there is a tokenizer to read."""
    try:
        return zoo.tokenizer(source) is not None
    except zoo.ZooError:
        return False


def tokenizer_of(source: str) -> Any:
    """The source's tokenizer; None, with a line on stderr, where it has none."""
    try:
        return zoo.tokenizer(source)
    except zoo.ZooError as error:
        say(f"saved without a tokenizer: {error}")
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
