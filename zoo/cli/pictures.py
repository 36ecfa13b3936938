"""Pictures on the command line: files, folders and shards of them as rows, and `zoo search`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.rows import BatchSize, Dtype, RowSource, stamp
from zoo.cli.shared import Json, print_json, print_table, say
from zoo.data.lines import numbered_lines
from zoo.errors import InputError, counted

SHARD = ".tar"


def picture_source(given: Sequence[str], engine: str = "local") -> RowSource | None:
    """Rows of the pictures that a command's arguments name: files, folders of them, and shards; None where
    they name none. ``engine``: where they will be read.
    """
    kinds = [_kind(Path(text)) for text in given]
    if not any(kinds):
        return None
    if not all(kinds):
        other = next(text for text, kind in zip(given, kinds, strict=True) if not kind)
        raise InputError(f"{other!r} is no picture, folder of pictures or shard, as the other arguments are")
    if "shard" in kinds and engine != "local":
        raise InputError(f"shards are read on this machine; unpack them for --engine {engine}, or leave it out")
    rows = chain.from_iterable(_rows(Path(text), kind) for text, kind in zip(given, kinds, strict=True))
    first = next(rows, None)
    if first is None:
        raise InputError(f"there is no sample in {', '.join(given)}")
    files = all(kind == "file" for kind in kinds)
    return RowSource(chain([first], rows), files, len(given) if files else None, tuple(first))


def _kind(path: Path) -> str | None:
    from zoo.data.images.reading import SUFFIXES

    if path.is_dir():
        from zoo.inference.picture_index import list_pictures

        return "folder" if next(list_pictures(path), None) is not None else None
    if not path.is_file():
        return None
    return "shard" if path.suffix == SHARD else "file" if path.name.lower().endswith(SUFFIXES) else None


def _rows(path: Path, kind: str | None) -> Iterator[Mapping[str, Any]]:
    if kind == "shard":
        from zoo.data.images.shards import Shards

        return iter(Shards(path))
    if kind == "folder":
        from zoo.inference.picture_index import list_pictures

        return ({"image": str(path / name)} for name in list_pictures(path))
    return iter([{"image": str(path)}])


def label_list(given: str) -> list[str]:
    """Labels with commas between them, or the lines of a file."""
    path = Path(given)
    found = lines_of(path) if path.is_file() else [label.strip() for label in given.split(",")]
    return [label for label in found if label]


def lines_of(path: Path) -> list[str]:
    """The lines of a file that are not empty."""
    return [line.strip() for _, line in numbered_lines(path) if line.strip()]


def search(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures; those in folders below it count too.")],
    queries: Annotated[list[str] | None, typer.Argument(help="What to look for, in words.")] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Two towers: a name, a file or a folder.")] = "",
    like: Annotated[list[Path] | None, typer.Option(help="A picture to find others like; may be repeated.")] = None,
    top: Annotated[int, typer.Option(min=1, help="So many pictures for each query.")] = 5,
    index: Annotated[
        Path | None,
        typer.Option(help="Where the index is kept (.safetensors or .parquet); beside the folder if you leave it out."),
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(help="A model for image-text-retrieval, which orders the first hits anew.")
    ] = None,
    first: Annotated[int, typer.Option(min=1, help="So many hits are ordered anew.")] = 20,
    detector: Annotated[
        str | None, typer.Option(help="Whose regions the model for --rerank reads: patch-grid or torchvision-grid.")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Regions of the pictures by their names, where a detector made them.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Write the hits as a contact sheet (.png).")] = None,
    batch_size: BatchSize = 32,
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Find pictures by words. The first call computes a vector for each picture and keeps them; later ones
    read files that are new or changed.
    """
    queries, like = queries or [], like or []
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; search looks through a folder of pictures")
    if not queries and not like:
        raise InputError("what is looked for? Give words behind the folder, or a picture with --like")
    if rerank is not None and not queries:
        raise InputError("--rerank compares words with pictures; give words to look for")
    if not model:
        raise InputError("give two towers with --model, such as a CLIP")
    place = index or folder.absolute().parent / f"{folder.absolute().name}.index.safetensors"
    from zoo.inference.picture_index import PictureIndex, check_index, list_pictures
    from zoo.inference.pipeline.pictures import need_towers, picture_vectors, text_vectors

    check_index(place)
    pipeline: Any = zoo.pipeline("image-embedding", model, dtype=dtype, batch_size=batch_size)
    towers, images = pipeline.model, pipeline.images
    if queries:
        need_towers(towers)
    made_by = {"model": model, "model files": stamp(model), "dtype": dtype, "images": images.to_dict()}
    found = PictureIndex.read(place, folder, made_by)
    try:
        with _progress() as progress:
            read = found.update(
                list_pictures(folder),
                lambda paths: picture_vectors(towers, images(paths)),
                batch_size=batch_size,
                progress=progress,
            )
    finally:
        found.write(place)
    if read:
        say(f"{counted(read, 'picture')} read, {len(found):,} in {place}")
    for name, (_, why) in sorted(found.unreadable.items()):
        say(f"left out: {why if name in why else f'{name}: {why}'}")
    if not len(found):
        raise InputError(f"{folder} holds no picture that can be read")
    vectors = [*text_vectors(towers, queries, batch_size=batch_size)] if queries else []
    if like:
        vectors.append(picture_vectors(towers, images([str(path) for path in like])))
    import torch

    hits = found.search(torch.cat(vectors), top if rerank is None else max(top, first))
    if rerank is not None:
        hits[: len(queries)] = _reranked(rerank, folder, queries, hits, detector, regions)
        hits = [some[:top] for some in hits]
    asked = [*queries, *map(str, like)]
    _tell(asked, folder, hits, as_json)
    if sheet is not None:
        _sheet(asked, folder, hits, sheet)


def _reranked(
    model: str,
    folder: Path,
    queries: Sequence[str],
    hits: Sequence[Sequence[tuple[str, float]]],
    detector: str | None,
    dump: Path | None,
) -> list[list[tuple[str, float]]]:
    """The hits of each query in the order of a model that reads words and regions together."""
    from zoo.api.rerank import Reranker

    wanted = sorted({name for some in hits for name, _ in some})
    reranker = Reranker.of(model, detector=detector, dump=dump, wanted=wanted)
    return [
        reranker.ordered(query, folder, [name for name, _ in some]) for query, some in zip(queries, hits, strict=False)
    ]


def _tell(asked: Sequence[str], folder: Path, hits: Sequence[Sequence[tuple[str, float]]], as_json: bool) -> None:
    from zoo.inference.results import json_of

    rows = [
        {"query": query, "rank": rank, "image": str(folder / name), "score": score}
        for query, some in zip(asked, hits, strict=True)
        for rank, (name, score) in enumerate(some, 1)
    ]
    if as_json:
        print_json(rows)
    elif sys.stdout.isatty():
        for query in asked:
            own = [row for row in rows if row["query"] == query]
            cells = [[str(row["rank"]), str(row["image"]), f"{row['score']:.4f}"] for row in own]
            print_table(query, ["", "image", "score"], cells)
    else:
        for row in rows:
            print(json_of(row), flush=True)


def _sheet(asked: Sequence[str], folder: Path, hits: Sequence[Sequence[tuple[str, float]]], out: Path) -> None:
    from zoo.data.images.sheet import contact_sheet

    pairs = [(folder / name, f"{name}  {score:.3f}") for some in hits for name, score in some]
    if not pairs:
        raise InputError("there are no hits to draw")
    paths, captions = zip(*pairs, strict=True)
    contact_sheet(paths, captions, out, columns=max(map(len, hits)), title=" | ".join(asked))
    say(f"{counted(len(pairs), 'picture')} in {out}")


class _progress:
    """A count of pictures on stderr while they are read."""

    def __enter__(self) -> Callable[[int], None]:
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("pictures"), MofNCompleteColumn(), TimeElapsedColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self.bar.start()
        shown = self.bar.add_task("pictures", total=None)
        return lambda done: self.bar.update(shown, completed=done)

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
