"""`zoo classify | tag | ask | embed | fill-mask`: what a trained model makes of texts, given as words,
as files of rows or on standard input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.pictures import label_list, lines_of, picture_source
from zoo.cli.rows import (
    Address,
    BatchSize,
    Column,
    Dtype,
    Engine,
    Making,
    ModelName,
    Out,
    Prediction,
    Reader,
    RowSource,
    Texts,
    counted,
    stamp,
    target,
)
from zoo.cli.shared import Json, print_json, print_table
from zoo.errors import InputError

TEXT_MODEL = "minilm-l6-h384.all-minilm-l6-v2"
SHOWN = 20  # texts in a table on a terminal

Shape = Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]


def classify(
    texts: Texts,
    model: ModelName,
    out: Out = None,
    column: Column = None,
    pair_column: Annotated[str | None, typer.Option(help="The column of a second text.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Keep the score of every label.")] = False,
    labels: Annotated[
        str | None, typer.Option(help="Labels of pictures, with commas between them, or a file with one on each line.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option(help="A file of sentences with {} where the label of a picture goes.")
    ] = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    engine: Engine = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Label texts, or pairs of texts; or pictures, with labels that you give (zero-shot)."""
    target(out)
    if (pictures := picture_source(texts, engine)) is not None:
        if not (names := label_list(labels or "")):
            raise InputError("the labels of pictures are yours to give: --labels 'dog,cat', or a file of them")
        more = {"labels": names} | ({} if templates is None else {"templates": lines_of(templates)})
        options = {"dtype": dtype, "batch_size": batch_size, **more}
        making = Making("zero-shot-image-classification", model, options, engine, address)
        reader = Reader.of(making(), pictures.header, {"image": column})
        shape = kept(lambda result: result if scores else _without(result, "scores"))
        job = Prediction(pictures, reader, making, run_of(making, reader, scores=scores, **more), shape)
        deliver(job, out, as_json, lambda found: _label_table([(row, shape({}, result)) for row, result in found]))
        return
    if labels is not None or templates is not None:
        raise InputError("--labels and --templates are for pictures; a model for texts has labels of its own")
    source = RowSource.of(texts)
    making = Making("sequence-classification", model, {"dtype": dtype, "batch_size": batch_size}, engine, address)
    pipeline = making()
    reader = Reader.of(pipeline, source.header, {"text": column, "pair": pair_column})
    shape = kept(lambda result: result if scores or result.keys() == {"scores"} else _without(result, "scores"))
    job = Prediction(source, reader, making, run_of(making, reader, scores=scores), shape)
    deliver(job, out, as_json, lambda found: _label_table([(row, shape({}, result)) for row, result in found]))


def tag(
    texts: Texts,
    model: ModelName,
    out: Out = None,
    column: Annotated[str | None, typer.Option(help="The column that holds the text.")] = None,
    words_column: Annotated[str | None, typer.Option(help="The column that holds lists of words.")] = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    engine: Engine = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Label the words of texts, and name the entities."""
    target(out)
    source = RowSource.of(texts)
    making = Making("token-classification", model, {"dtype": dtype, "batch_size": batch_size}, engine, address)
    pipeline = making()
    reader = Reader.of(pipeline, source.header, {"text": column, "words": words_column})
    if not reader.columns.names:
        raise InputError(f"no column of {', '.join(source.header)} holds texts or words; name one by --column")
    job = Prediction(source, reader, making, run_of(making, reader), kept())
    deliver(job, out, as_json, _tag_table)


def ask(
    texts: Texts,
    model: ModelName,
    question: Annotated[str | None, typer.Option("--question", "-q", help="One question for every text.")] = None,
    out: Out = None,
    column: Column = None,
    question_column: Annotated[str | None, typer.Option(help="The column that holds each text's question.")] = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    engine: Engine = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Find the words of a text that answer a question."""
    target(out)
    source = RowSource.of(texts)
    if question is None and source.header == ("text",) and question_column is None:
        raise InputError("what is asked of the texts? Give --question, or a file with a column of questions")
    making = Making("question-answering", model, {"dtype": dtype, "batch_size": batch_size}, engine, address)
    pipeline = making()
    named = {"context": column, "question": question_column}
    reader = Reader.of(pipeline, source.header, named, question=question)
    job = Prediction(source, reader, making, run_of(making, reader, question=question), kept())
    deliver(job, out, as_json, _answer_table)


def embed(
    texts: Annotated[
        list[str],
        typer.Argument(
            help="Texts; files of rows (.txt, .csv, .tsv, .jsonl, .parquet); pictures, folders of them or "
            "shards (.tar); or - for lines of standard input."
        ),
    ],
    model: ModelName = TEXT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write here: vectors alone (.npy), or rows with them (.parquet, .jsonl, .csv, .tsv)."
        ),
    ] = None,
    column: Column = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    engine: Engine = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Turn each text or picture into a vector; a few of them on a terminal are compared."""
    target(out, vectors=True)
    pictures = picture_source(texts, engine)
    if pictures is not None and model == TEXT_MODEL:
        raise InputError(f"{TEXT_MODEL} reads texts alone; name a model that reads pictures with --model")
    source = pictures or RowSource.of(texts)
    task, meaning = ("sentence-embedding", "text") if pictures is None else ("image-embedding", "image")
    making = Making(task, model, {"dtype": dtype, "batch_size": batch_size}, engine, address)
    reader = Reader.of(making(), source.header, {meaning: column})
    alone = out is not None and out.suffix.lower() == ".npy"
    shape: Shape = (lambda row, result: dict(result)) if alone else kept()
    job = Prediction(source, reader, making, run_of(making, reader), shape)
    if source.spoken and as_json and out is None:
        print_json({"model": model, "embeddings": [result["embedding"].tolist() for _, result in job.results()]})
        return
    deliver(job, out, as_json, _cosine_table)


def fill_mask(
    texts: Annotated[
        list[str],
        typer.Argument(help="Texts with the tokenizer's mask token, usually [MASK]; or files of them; or -."),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A pretrained name, file or folder with a masked-lm head.")
    ] = "bert-base",
    top: Annotated[int, typer.Option(min=1, help="So many words for each mask.")] = 5,
    out: Out = None,
    column: Column = None,
    batch_size: BatchSize = 8,
    dtype: Dtype = "float32",
    engine: Engine = "local",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Fill the masks of texts."""
    target(out)
    source = RowSource.of(texts)
    making = Making("fill-mask", model, {"dtype": dtype, "batch_size": batch_size, "top": top}, engine, address)
    reader = Reader.of(making(), source.header, {"text": column})
    job = Prediction(source, reader, making, run_of(making, reader, top=top), kept())
    if source.spoken and as_json and out is None:
        found = [result["masks"] for _, result in job.results()]
        print_json(found[0] if len(found) == 1 else found)
        return
    deliver(job, out, as_json, _mask_tables)


def run_of(making: Making, reader: Reader, **options: Any) -> dict[str, Any]:
    """What the results depend on besides the rows; neither the size of batches nor the engine."""
    return {
        "task": making.task,
        "model": making.model,
        "model files": stamp(making.model),
        "dtype": making.options["dtype"],
        "columns": reader.columns.names,
        **options,
    }


def kept(of: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda result: result) -> Shape:
    """A row's columns with what ``of`` keeps of its result."""
    from zoo.inference.bulk import joined

    return lambda row, result: joined(row, of(result))


def _without(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != name}


def deliver(job: Prediction, out: Path | None, as_json: bool, table: Callable[[Sequence[Any]], None]) -> None:
    """Into the file; else a few texts of the command itself as a table on a terminal, or as one JSON
    document; else a line of JSON for each row, as it is made.
    """
    if out is not None:
        rows = job.write(out)
        print_json({"rows": rows, "path": str(out)}) if as_json else print(f"{counted(rows, 'row')} in {out}")
    elif job.source.spoken and as_json:
        print_json([job.shape(row, result) for row, result in job.results()])
    elif job.source.spoken and (job.source.total or 0) <= SHOWN and sys.stdout.isatty():
        table(list(job.results()))
    else:
        job.print_rows()


def _label_table(found: Sequence[Any]) -> None:
    first = next(iter(found[0][0]))  # the column of the text or picture
    rows = [[str(row[first]), *(_cell(value) for value in result.values())] for row, result in found]
    print_table("labels", [first, *found[0][1]], rows)


def _tag_table(found: Sequence[Any]) -> None:
    for row, result in found:
        shown = result["entities"] or [{**word, "text": word["word"]} for word in result["words"]]
        print_table(
            row["text"], ["text", "label", "score"], [[e["text"], e["label"], _cell(e["score"])] for e in shown]
        )


def _answer_table(found: Sequence[Any]) -> None:
    rows = [[row["text"], result["answer"], _cell(result["score"])] for row, result in found]
    print_table("answers", ["text", "answer", "score"], rows)


def _cosine_table(found: Sequence[Any]) -> None:
    import torch

    vectors = torch.nn.functional.normalize(torch.stack([torch.tensor(r["embedding"]) for _, r in found]), dim=1)
    numbers, first = [str(number) for number in range(1, len(found) + 1)], next(iter(found[0][0]))
    rows = [
        [number, str(row[first]), *(f"{cosine:.3f}" for cosine in cosines)]
        for number, (row, _), cosines in zip(numbers, found, (vectors @ vectors.T).tolist(), strict=True)
    ]
    print_table("cosine similarity", ["", first, *numbers], rows)


def _mask_tables(found: Sequence[Any]) -> None:
    for row, result in found:
        for place, guesses in enumerate(result["masks"], 1):
            rows = [[guess["token"], f"{guess['probability']:.4f}"] for guess in guesses]
            title = f"mask {place}" if len(found) == 1 else f"{row['text']}, mask {place}"
            print_table(title, ["token", "probability"], rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(score)}" for name, score in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
