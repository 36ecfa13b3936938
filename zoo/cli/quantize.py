"""`zoo quantize`: a model with weights of 8 bits, which are multiplied as such, or of 4, which only
take less room.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, loaded, print_json, tokenizer_of


def quantize(
    source: Annotated[str, typer.Argument(help="A pretrained name, a file or a folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    bits: Annotated[
        int, typer.Option(help="8: int8 arithmetic. Fewer: packed weights, unpacked for each use.", min=2, max=8)
    ] = 8,
    block: Annotated[int, typer.Option(min=1, help="Below 8 bits: how many weights share a range.")] = 32,
    embeddings: Annotated[bool, typer.Option(help="The tables too.")] = True,
    task: Annotated[str | None, typer.Option(help="A task: its head is loaded too.")] = None,
    as_json: Json = False,
) -> None:
    """Store a model's weights in few bits. The result loads like any other model."""
    from zoo.techniques.quantization.technique import stored_bytes

    model: Any = loaded(source, task)
    before = stored_bytes(model)
    technique = (
        zoo.Int8(embeddings=embeddings) if bits == 8 else zoo.WeightOnly(bits=bits, block=block, embeddings=embeddings)
    )
    zoo.apply(model, technique)
    tokenizer = tokenizer_of(source)
    zoo.save(model, out, tokenizer)
    after = stored_bytes(model)
    found = {
        "technique": str(technique),
        "bytes_before": before,
        "bytes_after": after,
        "ratio": before / after,
        "path": str(out),
    }
    if as_json:
        print_json(found | {"tokenizer": tokenizer is not None})
    else:
        print(
            f"{technique}: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after (1/{before / after:.2f}), in {out}"
        )
