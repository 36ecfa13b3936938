"""`zoo cache list | verify | prune`: what was fetched."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.shared import Json, print_json, print_table
from zoo.formats.limits import printable

app = typer.Typer(help="What was fetched: list, verify, prune.", no_args_is_help=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what lies in the cache."""
    from zoo.checkpoints.fetching.cache import Cache

    cache = Cache()
    entries, odd = cache.entries(), cache.odd()
    if as_json:
        print_json(
            [
                {"source": e.source, "name": e.name, "revision": e.revision, "bytes": e.bytes, "folder": str(e.folder)}
                for e in entries
            ]
            + [
                {"source": None, "name": None, "bytes": 0, "folder": None, "record": str(one.path), "problem": one.why}
                for one in odd
            ]
        )
        return
    print_table(
        "cache",
        ["source", "name", "MB", "fetched"],
        [[_plain(e.source), _plain(e.name or ""), f"{e.bytes / 1e6:.1f}", _plain(e.fetched)] for e in entries],
    )
    for one in odd:
        print(f"no record: {_shown(one.path)}: {_shown(one.why)}")


def _plain(text: str) -> str:
    """Words of a record, which anybody may have written, for a table."""
    from rich.markup import escape

    return escape(_shown(text))


def _shown(what: object) -> str:
    return printable(str(what), limit=4096)


@app.command("verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; all if left out.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove what is damaged, so that it is fetched again.")] = False,
    as_json: Json = False,
) -> None:
    """Hash everything again, what was converted too, and compare. Exit code 1 where something is damaged."""
    from zoo.checkpoints.fetching.cache import Cache

    found = Cache().verify(names or (), drop=drop)
    if as_json:
        print_json([{"source": v.shown, "problems": list(v.problems)} for v in found])
    else:
        for v in found:
            print(f"{'damaged' if v.problems else 'ok     '} {_shown(v.shown)}")
            for problem in v.problems:
                print(f"        {_shown(problem)}")
    if any(v.problems for v in found):
        raise SystemExit(1)


@app.command("prune")
def prune(
    names: Annotated[list[str] | None, typer.Argument(help="Only these.")] = None,
    older_than_days: Annotated[float | None, typer.Option(help="Only what was fetched longer ago.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove left-overs and damaged conversions, and of what was fetched only what you name."""
    from zoo.checkpoints.fetching.cache import Cache

    gone = Cache().prune(names or (), older_than_days=older_than_days, everything=everything, dry_run=dry_run)
    if as_json:
        print_json([{"path": str(p.path), "bytes": p.bytes, "reason": p.reason} for p in gone])
        return
    for p in gone:
        what = "would remove" if dry_run else "removed"
        print(f"{what} {_shown(p.path)} ({p.bytes / 1e6:.1f} MB): {_shown(p.reason)}")
    print(f"{sum(p.bytes for p in gone) / 1e6:.1f} MB")
