"""`zoo write | translate | caption`: texts that a model writes, from a source, a beginning, another language, or a
picture.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.pictures import picture_source
from zoo.cli.predict import deliver, kept, run_of
from zoo.cli.rows import (
    BatchSize,
    Column,
    Dtype,
    Making,
    ModelName,
    Out,
    Prediction,
    Reader,
    RowSource,
    Texts,
    target,
)
from zoo.cli.shared import Json, print_table
from zoo.errors import InputError, TaskError

Beams = Annotated[int | None, typer.Option(min=1, help="Hypotheses that are kept; 1: the likeliest word each time.")]
Returned = Annotated[int | None, typer.Option("--returns", "-n", min=1, help="Texts for each source.")]
MaxNew = Annotated[int | None, typer.Option(min=1, help="The longest text, in tokens.")]
MinNew = Annotated[int | None, typer.Option(min=0, help="The shortest text, in tokens.")]
Penalty = Annotated[float | None, typer.Option(help="Above 0 favors long texts; with beams.")]
NoRepeat = Annotated[int | None, typer.Option(min=0, help="No sequence of so many tokens is written twice.")]
Cut = Annotated[bool, typer.Option("--cut", help="Cut sources that are too long for the model, instead of refusing.")]
Stream = Annotated[bool, typer.Option("--stream", help="Print words as they are written; one text, one beam.")]


def write(
    texts: Texts,
    model: ModelName,
    beams: Beams = None,
    returns: Returned = None,
    max_new_tokens: MaxNew = None,
    min_new_tokens: MinNew = None,
    length_penalty: Penalty = None,
    no_repeat_ngram: NoRepeat = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw words instead of taking the likeliest.")] = False,
    temperature: Annotated[float | None, typer.Option(help="With --sample: below 1 is bolder on likely words.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="With --sample: among so many of the likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="With --sample: among those that reach this probability.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends a text; may be given again.")] = None,
    to: Annotated[str | None, typer.Option(help="The language to write in, where the model knows several.")] = None,
    language: Annotated[str | None, typer.Option(help="The language of the source.")] = None,
    cut: Cut = False,
    stream: Stream = False,
    out: Out = None,
    column: Column = None,
    batch_size: BatchSize = 8,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Write with a model: summaries or answers of texts, or how they go on."""
    settings = {
        "num_beams": beams,
        "num_return_sequences": returns,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "length_penalty": length_penalty,
        "no_repeat_ngram_size": no_repeat_ngram,
        "do_sample": sample or None,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop": tuple(stop) if stop else None,
    }
    options = {"language": language, "to": to, "cut": cut or None, "seed": seed, "dtype": dtype}
    _written(texts, model, settings, options, Delivery(out, column, batch_size, stream, as_json))


def translate(
    texts: Texts,
    to: Annotated[str, typer.Option(help="The language to write in: de_DE for mBART, de for XLM.")],
    model: ModelName,
    language: Annotated[str | None, typer.Option("--from", help="The language of the source.")] = None,
    beams: Beams = 5,
    returns: Returned = None,
    max_new_tokens: MaxNew = None,
    length_penalty: Penalty = None,
    cut: Cut = False,
    stream: Stream = False,
    out: Out = None,
    column: Column = None,
    batch_size: BatchSize = 8,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Translate texts."""
    settings = {
        "num_beams": 1 if stream else beams,
        "num_return_sequences": returns,
        "max_new_tokens": max_new_tokens,
        "length_penalty": length_penalty,
    }
    options = {"language": language, "to": to, "cut": cut or None, "dtype": dtype}
    _written(texts, model, settings, options, Delivery(out, column, batch_size, stream, as_json))


def caption(
    pictures: Annotated[list[str], typer.Argument(help="Pictures, folders of them, or shards (.tar).")],
    model: ModelName,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Whose regions the model was trained on: patch-grid, torchvision-grid, or an image tower such as "
            "efficientnet-lite0."
        ),
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Regions of the pictures by their names, where a detector made them.")
    ] = None,
    beams: Beams = None,
    returns: Returned = None,
    max_new_tokens: MaxNew = None,
    length_penalty: Penalty = None,
    no_repeat_ngram: NoRepeat = None,
    out: Out = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that the model reads at once.")] = 16,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Write captions for pictures."""
    target(out)
    if (source := picture_source(pictures)) is None:
        raise InputError(
            f"{pictures[0]!r} is no picture, folder of pictures or shard; captions are written for pictures"
        )
    options = {
        "detector": detector,
        "regions": None if regions is None else str(regions),
        "num_beams": beams,
        "num_return_sequences": returns,
        "max_new_tokens": max_new_tokens,
        "length_penalty": length_penalty,
        "no_repeat_ngram_size": no_repeat_ngram,
    }
    given = {name: value for name, value in options.items() if value is not None}
    making = Making("image-captioning", model, {**given, "dtype": dtype, "batch_size": batch_size})
    reader = Reader.of(making(), source.header, {})
    names = {"text": "caption", "texts": "captions"}
    shape = kept(lambda found: {names.get(name, name): found[name] for name in _told(found)})
    job = Prediction(source, reader, making, run_of(making, reader, **given), shape)
    deliver(job, out, as_json, lambda found: _table(found, "captions", ("image", "caption")))


def _told(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What is kept of a result: all texts only where there are several."""
    return ("text", "score", "texts", "scores") if len(result["texts"]) > 1 else ("text", "score")


class Delivery:
    """Where texts go."""

    def __init__(self, out: Any, column: str | None, batch_size: int, stream: bool, as_json: bool) -> None:
        self.out, self.column, self.batch_size, self.stream, self.as_json = out, column, batch_size, stream, as_json


def _written(texts: Sequence[str], model: str, settings: dict[str, Any], options: dict[str, Any], to: Delivery) -> None:
    target(to.out)
    if folders := [text for text in texts if "/" in text and Path(text).is_dir()]:
        raise InputError(f"{folders[0]} is a folder; this command takes texts or files of rows, not folders")
    source = RowSource.of(texts)
    given = {name: value for name, value in {**settings, **options}.items() if value is not None}
    making, pipeline = _made(model, {**given, "batch_size": to.batch_size})
    if to.stream:
        _stream(pipeline, source, to)
        return
    reader = Reader.of(pipeline, source.header, {"text": to.column})
    names = {"text": "written"}  # the source stands under "text"

    def shape(row: Any, result: Any) -> dict[str, Any]:
        return kept(lambda found: {names.get(name, name): found[name] for name in _told(found)})(row, result)

    said = {name: value for name, value in given.items() if name != "dtype"}
    job = Prediction(source, reader, making, run_of(making, reader, **said), shape)
    with _bar(pipeline, source, to):
        deliver(job, to.out, to.as_json, _table)


def _made(model: str, options: dict[str, Any]) -> tuple[Making, Any]:
    """The pipeline of an encoder-decoder, else that of a causal model."""
    making = Making("conditional-generation", model, options)
    try:
        return making, making()
    except TaskError as error:
        other = Making("causal-lm", model, options)
        try:
            return other, other()
        except TaskError:
            raise error from None


def _stream(pipeline: Any, source: RowSource, to: Delivery) -> None:
    """Words of one text as they come."""
    if to.out is not None or to.as_json or not source.spoken or source.total != 1:
        raise InputError("--stream is for one text in the command itself, without --out and --json")
    ids: list[int] = []
    shown = [0]

    def heard(_: int, token: int) -> None:
        ids.append(token)
        text = pipeline.tokenizer.decode(ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # a character is not whole yet
            print(text[shown[0] :], end="", flush=True)
            shown[0] = len(text)

    pipeline.streamer = heard
    pipeline(next(iter(source.rows))["text"])
    print()


def _bar(pipeline: Any, source: RowSource, to: Delivery) -> Any:
    """A bar of the tokens of each batch, on a terminal, for texts in the command itself."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    shown = source.spoken and to.out is None and sys.stderr.isatty()
    columns = (TextColumn("tokens"), BarColumn(), TextColumn("{task.completed}"), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)
    task = bar.add_task("tokens", total=None)
    pipeline.progress = lambda length, longest: bar.update(task, completed=length, total=longest)
    return bar


def _table(found: Sequence[Any], title: str = "written", head: tuple[str, str] = ("source", "text")) -> None:
    rows = [
        [str(next(iter(row.values()))), text, f"{score:.3f}"]
        for row, result in found
        for text, score in zip(result["texts"], result["scores"], strict=True)
    ]
    print_table(title, [*head, "score"], rows)
