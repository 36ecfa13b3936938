"""`zoo export`: a saved or trained model as one file that runs without zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, has_tokenizer, loaded, print_json, say


def export(
    source: Annotated[str, typer.Argument(help="A pretrained name, file or folder.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .pt2 (torch.export) or .onnx.")],
    task: Annotated[str | None, typer.Option(help="The head to load, where the source has one.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Fix the number of texts in a batch; any if you leave it out.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Fix the length of a text; any if you leave it out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as one file for torch.export or ONNX, once it gives what the model gives."""
    model: Any = loaded(source, task)
    made = zoo.export(model, out, rows=rows, length=length)
    if has_tokenizer(source):
        say(f"the file holds no tokenizer; zoo.tokenizer({source!r}).save(FOLDER) writes the source's beside it")
    if as_json:
        print_json(made)
        return
    print(f"wrote {made['path']} ({made['bytes'] / 1e6:.1f} MB)")
    print("  inputs, in order: " + ", ".join(made["inputs"]))
    print("  outputs: " + ", ".join(made["outputs"]))
    if made["ran_in"] is None:
        print("  checked by onnx, not run: onnxruntime is not installed")
    else:
        print(f"  ran in {made['ran_in']}, {made['difference']:.0e} of the largest value from the model at most")
