"""An index of pictures: a vector for each file, kept on disk and made anew only for files that are new
or changed.

    index = PictureIndex.read("pictures.index.safetensors", made_by={"model": "DIR"})
    index.update(list_pictures("pictures"), embed)
    index.search(vectors, top=5)  # [[("hats/purple.png", 0.31), ...]]
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from zoo.data.images.reading import SUFFIXES
from zoo.errors import InputError, missing_extra
from zoo.formats.opening import open_archive
from zoo.formats.writer import write_tensors

KINDS = (".safetensors", ".parquet")
FORMAT = "zoo.picture_index"  # what the header of an index says
BATCH = 1024  # rows that are written at once
Stamp = tuple[int, int]  # size in bytes and time of change in ns: what tells a file from what it was


@dataclass
class PictureIndex:
    """``folder``: where the names begin. ``made_by``: the model and its preprocessing, as plain values; an
    index of another is refused. ``unreadable``: names of files without a vector, with what is wrong.
    """

    folder: Path
    made_by: Mapping[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    vectors: Float[Tensor, "pictures size"] = field(default_factory=lambda: torch.zeros(0, 0))
    unreadable: dict[str, tuple[Stamp, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def update(
        self,
        names: Iterable[str],
        embed: Callable[[Sequence[Path]], Float[Tensor, "pictures size"]],
        *,
        batch_size: int = 32,
        progress: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Make the index one of these files: vectors of files that are new or changed are computed, those of
        files that are gone dropped. A file that can't be read is kept among the ``unreadable``. -> how
        many files were read. Where it is stopped, what is done so far is kept.
        """
        known = {name: (stamp, place) for place, (name, stamp) in enumerate(zip(self.names, self.stamps, strict=True))}
        rows: list[tuple[str, Stamp, Tensor]] = []
        unreadable: dict[str, tuple[Stamp, str]] = {}
        read, left = 0, set(known)
        try:
            for batch in _batches(names, BATCH):
                new: list[tuple[str, Stamp]] = []
                for name in batch:
                    stamp = stamp_of(self.folder / name)
                    left.discard(name)
                    if name in known and known[name][0] == stamp:
                        rows.append((name, stamp, self.vectors[known[name][1]]))
                    elif name in self.unreadable and self.unreadable[name][0] == stamp:
                        unreadable[name] = self.unreadable[name]
                    else:
                        new.append((name, stamp))
                for some in _batches(new, batch_size):
                    rows += self._embedded(some, embed, unreadable)
                    read += len(some)
                    progress(read)
            left.clear()  # all files were seen: what is left over is gone
        finally:
            rows += [(name, known[name][0], self.vectors[known[name][1]]) for name in sorted(left)]
            rows.sort(key=lambda row: row[0])
            self.names, self.stamps = [row[0] for row in rows], [row[1] for row in rows]
            self.vectors = torch.stack([row[2] for row in rows]) if rows else torch.zeros(0, 0)
            self.unreadable = unreadable
        return read

    def _embedded(
        self, some: Sequence[tuple[str, Stamp]], embed: Callable[..., Tensor], unreadable: dict[str, tuple[Stamp, str]]
    ) -> list[tuple[str, Stamp, Tensor]]:
        """The rows of a batch; where it can't be read, of each file alone."""
        try:
            vectors = embed([self.folder / name for name, _ in some]).detach().float().cpu()
            return [(name, stamp, vector) for (name, stamp), vector in zip(some, vectors, strict=True)]
        except InputError as error:
            if len(some) == 1:
                unreadable[some[0][0]] = (some[0][1], str(error))
                return []
            return [row for one in some for row in self._embedded([one], embed, unreadable)]

    def search(self, queries: Float[Tensor, "queries size"], top: int) -> list[list[tuple[str, float]]]:
        """For each query, a vector of unit length, the ``top`` names of highest cosine with it, highest first."""
        if top < 1:
            raise InputError(f"top must be at least 1, got {top}")
        if not self.names:
            return [[] for _ in queries]
        found = (queries.float().cpu() @ self.vectors.T).topk(min(top, len(self)), dim=1)
        return [
            [(self.names[place], score) for place, score in zip(places, scores, strict=True)]
            for places, scores in zip(found.indices.tolist(), found.values.tolist(), strict=True)
        ]

    # --- on disk

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], folder: str | os.PathLike[str], made_by: Mapping[str, Any]
    ) -> PictureIndex:
        """The index in a file, an empty one where there is none. Refused where another model made it."""
        path = check_index(path)
        if not path.exists():
            return cls(Path(folder), made_by)
        said, names, stamps, vectors = (_read_parquet if path.suffix == ".parquet" else _read_safetensors)(path)
        told = json.loads(json.dumps(made_by, default=str))
        if differing := [name for name in {*said["made_by"], *told} if said["made_by"].get(name) != told.get(name)]:
            name = sorted(differing)[0]
            raise InputError(
                f"{path} was made with {name} = {said['made_by'].get(name)!r:.200}, now it is {told.get(name)!r:.200}; "
                "remove the file, or keep another one by --index"
            )
        unreadable = {name: (tuple(stamp), why) for name, (stamp, why) in said["unreadable"].items()}
        return cls(Path(folder), made_by, names, stamps, vectors, unreadable)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Into a .safetensors or .parquet file, which is replaced when the new one is whole."""
        path = check_index(path)
        part = path.with_name(f"{path.stem}.part{path.suffix}")
        said = json.dumps({"made_by": dict(self.made_by), "unreadable": self.unreadable}, default=str)
        try:
            (_write_parquet if path.suffix == ".parquet" else _write_safetensors)(part, self, said)
            os.replace(part, path)
        except OSError as error:
            why = error.strerror or error
            raise InputError(f"{path} can't be written: {why}; keep it elsewhere by --index") from error
        finally:
            part.unlink(missing_ok=True)


def list_pictures(folder: Path) -> Iterator[str]:
    """The names of all files below a folder that end like pictures, sorted by folder; none that are hidden."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def stamp_of(path: Path) -> Stamp:
    """What tells a file from what it was."""
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    return state.st_size, state.st_mtime_ns


def check_index(path: str | os.PathLike[str]) -> Path:
    """The path of an index, by whose name its format is told."""
    path = Path(path)
    if path.suffix not in KINDS:
        raise InputError(f"an index ends in {' or '.join(KINDS)}, got {path}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError(f"{path} is {'a folder' if path.is_dir() else 'in a folder that is not there'}; name a file")
    return path


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _write_safetensors(path: Path, index: PictureIndex, said: str) -> None:
    names = "\0".join(index.names).encode("utf-8", "surrogateescape")
    tensors = {
        "names": torch.from_numpy(numpy.frombuffer(names, dtype=numpy.uint8).copy()),
        "stamps": torch.tensor(index.stamps, dtype=torch.int64).reshape(-1, 2),
        "vectors": index.vectors.contiguous(),
    }
    write_tensors(path, tensors, {"format": "pt", FORMAT: said})


def _read_safetensors(path: Path) -> tuple[dict[str, Any], list[str], list[Stamp], Tensor]:
    with open_archive(path) as archive:
        said = _header(archive.metadata, path)
        names, stamps, vectors = (archive.read(name) for name in ("names", "stamps", "vectors"))
    text = bytes(names.numpy()).decode("utf-8", "surrogateescape")
    return said, text.split("\0") if text else [], [tuple(row) for row in stamps.tolist()], vectors


def _write_parquet(path: Path, index: PictureIndex, said: str) -> None:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    size = index.vectors.shape[1]
    schema = pyarrow.schema(
        [
            ("image", pyarrow.string()),
            ("bytes", pyarrow.int64()),
            ("changed", pyarrow.int64()),
            ("embedding", pyarrow.list_(pyarrow.float32(), size)),
        ],
        metadata={FORMAT: said},
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(index), BATCH):
            where = slice(start, start + BATCH)
            flat = pyarrow.array(index.vectors[where].reshape(-1).numpy())
            columns = [index.names[where], *map(list, zip(*index.stamps[where], strict=True))]
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, size)
            writer.write_batch(pyarrow.record_batch([*columns, vectors], schema=schema))


def _read_parquet(path: Path) -> tuple[dict[str, Any], list[str], list[Stamp], Tensor]:
    pyarrow = _pyarrow()
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        header = _header({key.decode(): text.decode() for key, text in (table.schema.metadata or {}).items()}, path)
        vectors = table["embedding"].combine_chunks()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"{path} can't be read as an index: {error}") from error
    size = vectors.type.list_size
    stamps = list(zip(table["bytes"].to_pylist(), table["changed"].to_pylist(), strict=True))
    flat = torch.from_numpy(vectors.flatten().to_numpy(zero_copy_only=False).copy())
    return header, table["image"].to_pylist(), stamps, flat.reshape(len(stamps), size)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise missing_extra("an index as parquet", "pyarrow", "tables") from None
    return pyarrow


def _header(metadata: Mapping[str, object], path: Path) -> dict[str, Any]:
    if not isinstance(text := metadata.get(FORMAT), str):
        raise InputError(f"{path} is no index of pictures; give another name by --index")
    found: dict[str, Any] = json.loads(text)
    return found
