"""`zoo embed | fill-mask`: what a trained model makes of a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import zoo
from zoo.cli.shared import Json, print_json, print_table


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

    lines = [line.rstrip("\r\n").removeprefix("\ufeff") for line in sys.stdin] if texts == ["-"] else texts
    encoder, tokenizer = zoo.load(model, task="sentence-embedding"), zoo.tokenizer(model)
    with torch.inference_mode():
        vectors = torch.cat(
            [encoder(**tokenizer(lines[i : i + batch_size])).embedding for i in range(0, len(lines), batch_size)]
        )
    if as_json:
        print_json({"model": model, "embeddings": vectors.tolist()})
        return
    cosines = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    numbers = [str(i + 1) for i in range(len(lines))]
    print_table(
        "cosine similarity",
        ["", "text", *numbers],
        [[n, t, *(f"{c:.3f}" for c in row)] for n, t, row in zip(numbers, lines, cosines.tolist(), strict=True)],
    )


def fill_mask(
    text: Annotated[str, typer.Argument(help="A text with the tokenizer's mask token, usually [MASK].")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A pretrained name, file or folder with a masked-lm head.")
    ] = "bert-base",
    top: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Fill the masks of a text."""
    from zoo.inference.fill_mask import fill_masks

    masked, tokenizer = zoo.load(model, task="masked-lm"), zoo.tokenizer(model)
    found = fill_masks(masked, tokenizer, text, top)
    if as_json:
        print_json(found)
        return
    for place, guesses in enumerate(found, 1):
        print_table(
            f"mask {place}", ["token", "probability"], [[g["token"], f"{g['probability']:.4f}"] for g in guesses]
        )
