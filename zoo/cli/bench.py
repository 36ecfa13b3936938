"""`zoo bench`: how fast a model is here, as it is loaded and as `zoo.optimize` prepares it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, print_json

FORMS = ("as loaded", "padded", "float32", "bfloat16", "int8")


def bench(
    source: Annotated[str, typer.Argument(help="A model's name (random weights serve), a file or a folder.")],
    rows: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Tokens of the longest text.")] = 128,
    real: Annotated[float, typer.Option(min=0, max=1, help="The share of real tokens; the rest is padding.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="The median of so many rounds.")] = 5,
    task: Annotated[str | None, typer.Option(help="With this task's head.")] = None,
    as_json: Json = False,
) -> None:
    """Time a model's forms in turn: as loaded, padded, and prepared in float32, bfloat16 and int8,
    with the cosine of their results.
    """
    import torch

    from zoo.inference.export import example_inputs, flat
    from zoo.inference.timing import interleaved

    model: Any = (zoo.load(source, task=task) if Path(source).exists() else zoo.create(source, task=task)).eval()
    batch = example_inputs(model, rows, length)
    shortest, longest = (2 * real - 1, 1.0) if real > 0.5 else (0.0, 2 * real)
    lengths = torch.linspace(shortest * length, longest * length, rows).round().long().clamp(1, length)
    lengths[-1] = length
    batch["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
    share = float(batch["attention_mask"].float().mean())

    def form(name: str) -> Callable[[], Any]:
        if name == "as loaded":
            return lambda: model(**batch)
        if name == "padded":

            def padded() -> Any:
                with zoo.packing(False):
                    return model(**batch)

            return padded
        prepared = zoo.optimize(model, name)
        kind = prepared.prepared.dtype
        cast = {key: value.to(kind) if value.is_floating_point() else value for key, value in batch.items()}
        return lambda: prepared(**cast)

    with torch.inference_mode():
        sides = {name: form(name) for name in FORMS if name != "padded" or share < 1}
        first = {name: next(iter(flat(side()).values())) for name, side in sides.items()}
        times = interleaved(sides, rounds, warmup=0)  # each has run once
    wanted = first["as loaded"].float().flatten()
    found = [
        {
            "form": name,
            "milliseconds": times[name],
            "cosine": float(torch.nn.functional.cosine_similarity(first[name].float().flatten(), wanted, dim=0)),
        }
        for name in sides
    ]
    if as_json:
        print_json({"model": source, "rows": rows, "length": length, "real": share, "forms": found})
        return
    print(f"{source}, {rows} x {length}, {share:.0%} real, {torch.get_num_threads()} threads, median of {rounds}")
    for row in found:
        times_faster = found[0]["milliseconds"] / row["milliseconds"]  # type: ignore[operator]
        print(f"  {row['form']:10} {row['milliseconds']:9.1f} ms  {times_faster:5.2f} x  cosine {row['cosine']:.5f}")
