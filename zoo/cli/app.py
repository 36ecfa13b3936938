"""The `zoo` command. Exit code 0 = done, 1 = failed (with the reason), 2 = called wrongly.
``--json`` prints data instead of tables.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.checkpoints.load import load
from zoo.checkpoints.tokenizer import tokenizer
from zoo.cli import regions
from zoo.cli.bench import bench
from zoo.cli.distill import distill
from zoo.cli.export import export
from zoo.cli.prune import prune as prune_model
from zoo.cli.quantize import quantize
from zoo.errors import UnknownNameError, ZooError

app = typer.Typer(
    name="zoo", help=zoo.__doc__.splitlines()[0] if zoo.__doc__ else None, no_args_is_help=True, add_completion=False
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Override = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="A config field or task option, name=value. Repeatable.")
]
Task = Annotated[str | None, typer.Option(help="A task: its head is built or loaded too.")]


def main() -> None:
    """Run the command line; what goes wrong on purpose is one line on stderr, not a traceback."""
    try:
        app()
    except UnknownNameError as error:
        _fail(error, 2)
    except ZooError as error:
        _fail(error, 1)
    except BrokenPipeError:
        sys.stderr.close()


def _fail(error: ZooError, code: int) -> None:
    print(f"zoo: {error}", file=sys.stderr)
    raise SystemExit(code) from None


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _overrides(pairs: list[str] | None) -> dict[str, Any]:
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


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Shell wildcards, like '*bert*'.")] = "*",
    pillar: Annotated[
        str | None, typer.Option(help="foundation, lightweight, knowledge-enhanced, cross-modal or cross-lingual.")
    ] = None,
    streams: Annotated[int | None, typer.Option(help="1 or 2.")] = None,
    fusion: Annotated[str | None, typer.Option(help="How streams meet, e.g. co-attention.")] = None,
    family: Annotated[str | None, typer.Option()] = None,
    task: Annotated[str | None, typer.Option(help="Only models that this task fits.")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Names with the tag of each public checkpoint.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List registered models."""
    names = zoo.list_models(
        pattern, pillar=pillar, streams=streams, fusion=fusion, family=family, task=task, pretrained=pretrained
    )
    if as_json:
        _json(names)
        return
    print("\n".join(names)) if names else print("no model matches", file=sys.stderr)


@app.command()
def info(name: str, as_json: Json = False) -> None:
    """Show what is known of a model: sizes, parameters, inputs, tasks, checkpoints."""
    found = zoo.info(name)
    if as_json:
        _json(found)
        return
    print(f"{found['name']}: {found['title']}\n{found['paper']}")
    print(
        f"pillar {found['pillar']}, {found['streams']} stream(s), fusion {found['fusion']}"
        + (f"\n{found['notes']}" if found["notes"] else "")
    )
    parts = ", ".join(f"{part} {count:,}" for part, count in found["parameters_by_part"].items())
    print(f"parameters: {found['parameters']:,} ({parts})")
    print("inputs: " + ", ".join(found["inputs"]))
    print("tasks: " + ", ".join(found["tasks"]))
    if found["schedule"]:
        from zoo.layers.schedule import draw

        print(draw(zoo.config(name).schedule))
    for rule, reason in found["exceptions"].items():
        print(f"exception to {rule}: {reason}")
    _table("config", ["field", "value"], [[k, str(v)] for k, v in found["config"].items()])
    if found["checkpoints"]:
        rows = [
            [
                tag + (" (default)" if tag == found["default_tag"] else ""),
                "\n".join(c["sources"]),
                str(c["layout"]),
                str(c["licence"]),
                c["verified"],
            ]
            for tag, c in found["checkpoints"].items()
        ]
        _table("checkpoints", ["tag", "sources, in order", "layout", "licence", "proof"], rows)
        by_features: dict[str, list[str]] = {}
        for tag, c in found["checkpoints"].items():
            by_features.setdefault(c["features"], []).append(tag)
        for features, tags in by_features.items():
            if features:
                print(f"trained on features of {features}: {', '.join(tags)}")


@app.command()
def create(
    name: str,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Save the model into this folder.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="With the public checkpoint's weights.")] = False,
    source: Annotated[
        str | None, typer.Option("--from", help="Weights from this file, folder or hub:org/name.")
    ] = None,
    init_from: Annotated[str | None, typer.Option(help="Another family's checkpoint that starts what it can.")] = None,
    task: Task = None,
    override: Override = None,
    seed: Annotated[int, typer.Option(help="For random weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Build a model, with random or trained weights, and save it where asked."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    model = zoo.create(
        name,
        pretrained=source or pretrained,
        init_from=init_from,
        task=task,
        generator=generator,
        **_overrides(override),
    )
    result: dict[str, Any] = {
        "name": name,
        "task": task,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype),
    }
    if out is not None:
        tokenizer = None
        if pretrained or source:
            try:
                tokenizer = zoo.tokenizer(source or name)
            except ZooError as error:
                print(f"zoo: saved without a tokenizer: {error}", file=sys.stderr)
        result["saved"] = str(zoo.save(model, out, tokenizer))
    if as_json:
        _json(result)
        return
    print(f"{name}{f' for {task}' if task else ''}: {result['parameters']:,} parameters, {result['dtype']}")
    if model.load_report is not None:
        print(model.load_report)
    if out is not None:
        print(f"saved in {result['saved']}")


@app.command()
def matrix(as_json: Json = False) -> None:
    """Show which technique goes onto which family, and why not."""
    from zoo.techniques.matrix import cells, table

    found = cells()
    if as_json:
        _json({"cells": found})
    else:
        print(table(found))


@app.command()
def inspect(
    path: str,
    config: Annotated[Path | None, typer.Option(help="The foreign config, where none lies beside the file.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a checkpoint file or folder holds, from names and shapes alone."""
    found = zoo.inspect(path, config=config)
    if as_json:
        _json(found)
        return
    for key, value in found.items():
        print(f"{key}: {value}")


@app.command()
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
    _json(report.to_dict()) if as_json else print(report)


@app.command()
def verify(path: str, as_json: Json = False) -> None:
    """Climb the ladder of proofs for a file or folder and say how far it got."""
    report = zoo.verify(path)
    _json(report.to_dict()) if as_json else print(report)
    if not report.ok:
        raise SystemExit(1)


@app.command()
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
    _json({"path": str(path)}) if as_json else print(path)


cache_app = typer.Typer(help="What was fetched: list, verify, prune.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """List what lies in the cache."""
    from zoo.checkpoints.fetching.cache import Cache

    entries = Cache().entries()
    if as_json:
        _json(
            [
                {"source": e.source, "name": e.name, "revision": e.revision, "bytes": e.bytes, "folder": str(e.folder)}
                for e in entries
            ]
        )
        return
    _table(
        "cache",
        ["source", "name", "MB", "fetched"],
        [[e.source, e.name or "", f"{e.bytes / 1e6:.1f}", e.fetched] for e in entries],
    )


@cache_app.command("verify")
def cache_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; all if left out.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Remove what is damaged, so that it is fetched again.")] = False,
    as_json: Json = False,
) -> None:
    """Hash everything again and compare. Exit code 1 where something is damaged."""
    from zoo.checkpoints.fetching.cache import Cache

    found = Cache().verify(names or (), drop=drop)
    if as_json:
        _json([{"source": v.entry.source, "problems": list(v.problems)} for v in found])
    else:
        for v in found:
            print(
                f"{'damaged' if v.problems else 'ok     '} {v.entry.source}"
                + "".join(f"\n        {p}" for p in v.problems)
            )
    if any(v.problems for v in found):
        raise SystemExit(1)


@cache_app.command("prune")
def cache_prune(
    names: Annotated[list[str] | None, typer.Argument(help="Only these.")] = None,
    older_than_days: Annotated[float | None, typer.Option(help="Only what was fetched longer ago.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove left-overs, and of what was fetched only what you name."""
    from zoo.checkpoints.fetching.cache import Cache

    gone = Cache().prune(names or (), older_than_days=older_than_days, everything=everything, dry_run=dry_run)
    if as_json:
        _json([{"path": str(p.path), "bytes": p.bytes, "reason": p.reason} for p in gone])
        return
    for p in gone:
        print(f"{'would remove' if dry_run else 'removed'} {p.path} ({p.bytes / 1e6:.1f} MB): {p.reason}")
    print(f"{sum(p.bytes for p in gone) / 1e6:.1f} MB")


@app.command()
def embed(
    texts: Annotated[list[str], typer.Argument(help="Texts; or - to read lines from standard input.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A pretrained name, file or folder.")
    ] = "minilm-l6-h384.all-minilm-l6-v2",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    as_json: Json = False,
) -> None:
    """Print one vector for each text, or, without --json, how alike they are."""
    import torch

    pass

    lines = [line.rstrip("\n") for line in sys.stdin] if texts == ["-"] else texts
    encoder, tokenizer = open_pretrained(model, task="sentence-embedding")
    with torch.inference_mode():
        vectors = torch.cat(
            [encoder(**tokenizer(lines[i : i + batch_size])).embedding for i in range(0, len(lines), batch_size)]
        )
    if as_json:
        _json({"model": model, "embeddings": vectors.tolist()})
        return
    cosines = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    numbers = [str(i + 1) for i in range(len(lines))]
    _table(
        "cosine similarity",
        ["", "text", *numbers],
        [[n, t, *(f"{c:.3f}" for c in row)] for n, t, row in zip(numbers, lines, cosines.tolist(), strict=True)],
    )


@app.command("fill-mask")
def fill_mask(
    text: Annotated[str, typer.Argument(help="A text with the tokenizer's mask token, usually [MASK].")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A pretrained name, file or folder with a masked-lm head.")
    ] = "bert-base",
    top: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Fill the masks of a text."""
    pass
    from zoo.inference.fill_mask import fill_masks

    masked, tokenizer = open_pretrained(model, task="masked-lm")
    found = fill_masks(masked, tokenizer, text, top)
    if as_json:
        _json(found)
        return
    for place, guesses in enumerate(found, 1):
        _table(f"mask {place}", ["token", "probability"], [[g["token"], f"{g['probability']:.4f}"] for g in guesses])


app.add_typer(regions.app, name="regions")
app.command()(distill)
app.command()(quantize)
app.command()(export)
app.command()(bench)
app.command("prune")(prune_model)


if __name__ == "__main__":
    main()


def open_pretrained(name: str, task: str) -> tuple[Any, Any]:
    """A trained model for a task and its tokenizer, from a pretrained name, a file or a folder."""
    return load(name, task=task), tokenizer(name)
