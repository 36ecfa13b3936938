"""`zoo inspect | convert | verify | fetch`: files of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, print_json, say


def inspect(
    path: str,
    config: Annotated[Path | None, typer.Option(help="The foreign config, where none lies beside the file.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint file or folder holds, from names and shapes alone."""
    found = zoo.inspect(path, config=config)
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        print(f"{key}: {value}")


def convert(
    source: str,
    out: Path,
    layout: Annotated[str | None, typer.Option(help="The source's layout; recognised if you leave it out.")] = None,
    config: Annotated[Path | None, typer.Option(help="The foreign config, where none lies beside the source.")] = None,
    to: Annotated[str | None, typer.Option(help="Write this foreign layout instead of ours: the way back.")] = None,
    map_file: Annotated[Path | None, typer.Option("--map", help="Your own map file.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    shard_size: Annotated[int | None, typer.Option(help="Bytes after which a new file begins.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Turn a public checkpoint into verified safetensors, or ours back into a public layout."""
    report = zoo.convert(
        source,
        out,
        layout=layout,
        config=config,
        to=to,
        map_file=map_file,
        dtype=dtype,
        shard_size=shard_size,
        dry_run=dry_run,
        progress=not as_json,
    )
    for note in report.notes:
        say(note)
    print_json(report.to_dict()) if as_json else print(report)


def verify(path: str, as_json: Json = False) -> None:
    """Check a file or folder: hash, keys, values, ties, contract, recorded outputs. Exit code 1 where a check fails."""
    report = zoo.verify(path)
    print_json(report.to_dict()) if as_json else print(report)
    if not report.ok:
        raise SystemExit(1)


def fetch(
    name: Annotated[str, typer.Argument(help="A model's tag, or a source like hub:org/name@revision.")],
    force: Annotated[bool, typer.Option("--force", help="Fetch again, and follow a revision that moved.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch a checkpoint into the cache."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from zoo.checkpoints.fetching.fetch import fetch as fetch_source
    from zoo.checkpoints.locate import is_remote, record_of

    source = name if is_remote(name) else record_of(name)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        transient=True,
        disable=as_json,
    ) as bars:
        shown: dict[str, Any] = {}

        def tell(what: str, done: int, total: int | None) -> None:
            task = shown.setdefault(what, None)
            if task is None:
                task = shown[what] = bars.add_task(what, total=total)
            bars.update(task, completed=done, total=total)

        path = fetch_source(source, progress=None if as_json else tell, force=force)
    print_json({"path": str(path)}) if as_json else print(path)


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that zoo wrote.")],
    repository: Annotated[str, typer.Argument(help="Where to: organization/name.")],
    private: Annotated[bool, typer.Option("--private", help="For you alone, where it is made.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch.")] = None,
    as_json: Json = False,
) -> None:
    """Put a saved model onto the hub, with a card that says what is known of it."""
    address = zoo.push_to_hub(folder, repository, private=private or None, revision=revision)
    if as_json:
        print_json({"folder": str(folder), "repository": repository, "commit": address})
    else:
        print(f"{folder} is hub:{repository} now ({address})")
