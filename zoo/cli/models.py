"""`zoo list | info | create | matrix`: the registered models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, Task, overrides_of, print_json, print_table, say_left_heads, tokenizer_of


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
    names_there: Annotated[
        bool, typer.Option("--aliases", help="Each checkpoint with what the hub calls it, which is taken too.")
    ] = False,
    long: Annotated[
        bool,
        typer.Option("--long", help="With pillar, size, languages and licences; with --json also tasks and proof."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List registered models."""
    names = zoo.list_models(
        pattern,
        pillar=pillar,
        streams=streams,
        fusion=fusion,
        family=family,
        task=task,
        pretrained=pretrained or names_there,
    )
    if names_there:
        _print_aliases(names, as_json)
        return
    if long:
        _print_overviews(names, as_json)
        return
    if as_json:
        print_json(names)
        return
    print("\n".join(names)) if names else print("no model matches", file=sys.stderr)


def _print_aliases(names: list[str], as_json: bool) -> None:
    from zoo.registry.records import aliases

    found: dict[str, list[str]] = {name: [] for name in names}
    for alias, name in aliases().items():
        if name in found:
            found[name].append(alias)
    if as_json:
        print_json(found)
        return
    width = max((len(name) for name in names), default=0)
    for name, known in found.items():
        print(f"{name:{width}}  {', '.join(known)}".rstrip())


def _print_overviews(names: list[str], as_json: bool) -> None:
    from zoo.registry.listing import overview

    rows = [overview(name) for name in names]
    if as_json:
        print_json(rows)
        return
    columns = ("name", "pillar", "parameters", "languages", "licences")
    print_table("models", list(columns), [[_cell(row[column]) for column in columns] for row in rows])


def _cell(value: Any) -> str:
    """A value of an overview for a table."""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(value) if len(value) < 4 else f"{len(value)} languages"
    return str(value or "")


def info(name: str, as_json: Json = False) -> None:
    """Show what is known of a model: sizes, parameters, inputs, tasks, checkpoints."""
    found = zoo.info(name)
    if as_json:
        print_json(found)
        return
    print(f"{found['name']}: {found['title']}\n{found['paper']}")
    print(
        f"pillar {found['pillar']}, {found['streams']} stream(s), fusion {found['fusion']}"
        + (f"\n{found['notes']}" if found["notes"] else "")
    )
    parts = ", ".join(f"{part} {count:,}" for part, count in found["parameters_by_part"].items())
    print(f"parameters: {found['parameters']:,} ({parts})")
    print("inputs: " + ", ".join(found["inputs"]))
    if found["images"]:
        print("images: " + ", ".join(f"{field} {value}" for field, value in found["images"].items()))
    print("tasks: " + ", ".join(found["tasks"]))
    if found["schedule"]:
        from zoo.layers.schedule import draw

        print(draw(zoo.config(name).schedule))
    for rule, reason in found["exceptions"].items():
        print(f"exception to {rule}: {reason}")
    print_table("config", ["field", "value"], [[k, str(v)] for k, v in found["config"].items()])
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
        print_table("checkpoints", ["tag", "sources, in order", "layout", "licence", "proof"], rows)
        by_features: dict[str, list[str]] = {}
        for tag, c in found["checkpoints"].items():
            by_features.setdefault(c["features"], []).append(tag)
        for features, tags in by_features.items():
            if features:
                print(f"trained on features of {features}: {', '.join(tags)}")


def create(
    name: str,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Save the model into this folder.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="With the public checkpoint's weights.")] = False,
    source: Annotated[
        str | None, typer.Option("--from", help="Weights from this file, folder or hub:org/name.")
    ] = None,
    init_from: Annotated[str | None, typer.Option(help="Another family's checkpoint that starts what it can.")] = None,
    task: Task = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A config field or task option, name=value. Repeatable.")
    ] = None,
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
        **overrides_of(override),
    )
    result: dict[str, Any] = {
        "name": name,
        "task": task,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype),
    }
    if out is not None:
        say_left_heads(model, source or name)
        tokenizer = tokenizer_of(source or name) if pretrained or source else None
        result["saved"] = str(zoo.save(model, out, tokenizer))
    if as_json:
        print_json(result)
        return
    print(f"{name}{f' for {task}' if task else ''}: {result['parameters']:,} parameters, {result['dtype']}")
    if model.load_report is not None:
        print(model.load_report)
    if out is not None:
        print(f"saved in {result['saved']}")


def matrix(
    family: Annotated[str, typer.Option(help="Families by pattern, such as '*bert'.")] = "*",
    technique: Annotated[str, typer.Option(help="Techniques by pattern, such as '*pruning'.")] = "*",
    markdown: Annotated[bool, typer.Option("--markdown", help="The whole as a Markdown table.")] = False,
    as_json: Json = False,
) -> None:
    """Show which technique goes onto which family, and why not."""
    from zoo.techniques.matrix import cells, lines, matching, table

    found = cells(*matching(family, technique))
    if as_json:
        print_json({"cells": found})
    elif markdown:
        print(table(found))
    else:
        print("\n".join(lines(found)))


def diff(
    left: Annotated[str, typer.Argument(help="A name, a file or a folder.")],
    right: Annotated[str, typer.Argument(help="The same.")],
    as_json: Json = False,
) -> None:
    """Say what differs between two models or checkpoints: sizes, sharing, objective, parameters by
    part, values.
    """
    from dataclasses import asdict

    found = zoo.diff(left, right)
    if as_json:
        print_json({**asdict(found), "same": found.same})
    else:
        print(f"{left} | {right}")
        print(found)
