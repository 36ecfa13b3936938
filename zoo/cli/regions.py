"""`zoo regions check | convert`: dumps of region features, read through and turned into
safetensors.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.shared import Json, print_json
from zoo.errors import InputError, counted

app = typer.Typer(help="Dumps of region features: check, convert.", no_args_is_help=True)

Dump = Annotated[
    Path, typer.Argument(help="A TSV, LMDB, HDF5, npz or safetensors file, or a folder of npz or npy files.")
]
Detector = Annotated[str | None, typer.Option(help="Whose features these are, e.g. bottom-up-attention.")]
Format = Annotated[
    str | None, typer.Option("--format", help="Of the boxes: xyxy, xywh or normalised, where the dump does not say.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many pictures.")]


@app.command()
def check(
    path: Dump,
    model: Annotated[str | None, typer.Option("--for", help="Hold the features' width against this model.")] = None,
    detector: Detector = None,
    format_: Format = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Read a dump through: how many pictures, how many regions, how wide, and which can't be meant.
    Exit code 1 where one can't.
    """
    wanted = None if model is None else _width(model)
    from zoo.data.regions.files import check_regions

    report = check_regions(path, limit=limit, **_options(detector, format_))
    unfit = [width for width in report.widths if wanted not in (None, width)]
    if as_json:
        passed = report.passed and not unfit
        print_json(asdict(report) | {"passed": passed, "model": model, "model_width": wanted})
    else:
        print(report)
        if unfit:
            print(f"  {model} reads features {wanted} wide, these are {' and '.join(map(str, unfit))} wide")
    if unfit or not report.passed:
        raise SystemExit(1)


@app.command()
def convert(
    source: Dump,
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    detector: Detector = None,
    format_: Format = None,
    limit: Limit = None,
    dtype: Annotated[str | None, typer.Option(help="Of the features: float32, float16 or bfloat16.")] = None,
    as_json: Json = False,
) -> None:
    """Write a dump as one safetensors file, which `zoo.data.regions.files.read_regions` reads
    back.
    """
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from zoo.data.regions.files import convert_regions
    from zoo.formats.archive import TORCH_DTYPES as DTYPES
    from zoo.formats.archive import dtype_name

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=as_json or not sys.stderr.isatty()) as bar:
        tasks = {stage: bar.add_task(f"{stage} pictures", total=limit) for stage in ("reading", "writing")}
        count = convert_regions(
            source,
            out,
            limit=limit,
            dtype=None if dtype is None else DTYPES[dtype_name(dtype)],
            progress=lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total or limit),
            **_options(detector, format_),
        )
    if as_json:
        print_json({"pictures": count, "path": str(out)})
    else:
        print(f"{counted(count, 'picture')} in {out}")


def _options(detector: str | None, format_: str | None) -> dict[str, Any]:
    return {name: value for name, value in (("detector", detector), ("format", format_)) if value is not None}


def _width(model: str) -> int:
    width = getattr(zoo.config(model), "visual_size", None)
    if width is None:
        raise InputError(
            f"{model} reads no regions; models that do: {', '.join(zoo.list_models(pillar='cross-modal')[:3])}, ..."
        )
    return int(width)
