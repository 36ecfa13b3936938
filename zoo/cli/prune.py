"""`zoo prune`: a smaller model from a saved or pretrained one, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, loaded, print_json, tokenizer_of
from zoo.errors import InputError


def prune(
    source: Annotated[str, typer.Argument(help="A pretrained name, file or folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    weights: Annotated[
        float | None, typer.Option(min=0, max=1, help="The share of the blocks' weights to set to zero.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="Rank weights in each matrix, or across all of them: matrix or across.")
    ] = "matrix",
    heads: Annotated[
        float | None, typer.Option(min=0, max=1, help="The share of each layer's attention heads to remove.")
    ] = None,
    units: Annotated[
        float | None, typer.Option(min=0, max=1, help="The share of each layer's feed-forward units to remove.")
    ] = None,
    hidden: Annotated[float | None, typer.Option(min=0, max=1, help="The share of the hidden width to remove.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers to remove, from 0, such as 3,4.")] = None,
    task: Annotated[str | None, typer.Option(help="The head to load, where the source has one.")] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Store zeros too, so that any reader of safetensors takes the file.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove weights, heads, units, width or layers, the smallest first, and write the smaller
    model; train it to regain what it lost.
    """
    if all(share is None for share in (weights, heads, units, hidden, layers)):
        raise InputError("say what to prune: --weights, --heads, --units, --hidden or --layers")
    gone = _numbers(layers)
    from zoo.models.base.model import bare_model
    from zoo.techniques.base import Technique

    techniques: list[Technique] = []
    if gone:
        techniques.append(zoo.LayerPruning(layers=gone))
    if heads is not None:
        techniques.append(zoo.HeadPruning(kept=1 - heads))
    if units is not None:
        techniques.append(zoo.FeedForwardPruning(kept=1 - units))
    if hidden is not None:
        techniques.append(zoo.WidthPruning(kept=1 - hidden))
    if weights is not None:
        techniques.append(zoo.WeightPruning(sparsity=weights, scope=scope))
    model: Any = loaded(source, task)
    zoo.apply(model, *techniques)
    folder = zoo.save(model, out, tokenizer_of(source), sparse=not dense)
    changes = bare_model(model).changes
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if as_json:
        steps = [{"technique": change.technique, "before": change.before, "after": change.after} for change in changes]  # type: ignore[union-attr]
        print_json({"folder": str(folder), "bytes": size, "steps": steps})
        return
    for change in changes:  # type: ignore[union-attr]
        print(change)
    print(f"wrote {folder} ({size / 1e6:.1f} MB)")


def _numbers(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--layers takes numbers with commas between, such as 3,4; got {text!r}") from error
