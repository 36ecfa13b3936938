"""Dumps of region features that people have, read without running anything in them, and a
safetensors file to keep them in.

    for image_id, regions in read_regions("trainval_36.tsv"): ...
    convert_regions("trainval_36.tsv", "trainval_36.safetensors")

Known are bottom-up-attention's TSV (and LXMERT's, with classes and confidences), ViLBERT's and
MMF's LMDB, HDF5 files with one data set for each field or one group for each picture, folders of
npz or npy files, and our own safetensors.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy
import torch
from torch import Tensor

from zoo.data.regions.dumps import Said, find, kind_of, read_dump
from zoo.data.regions.regions import DETECTED, HEADER, PARTS, TOLD, Regions, described
from zoo.errors import CheckpointError, InputError, ZooError
from zoo.formats.archive import DTYPE_NAMES, Archive, Info
from zoo.formats.nodes import ArrayRef, LongBytes
from zoo.formats.opening import open_archive
from zoo.formats.plain_json import parse_json
from zoo.formats.writer import SafetensorsWriter

Item = tuple[str, Regions]


def read_regions(path: Path | str, **options: Any) -> Iterator[Item]:
    """Every picture of a dump with its regions, in the dump's order; the kind is seen from the
    file.

    ``options``: of `Regions`, e.g. detector. Raises CheckpointError for a file that is none of the
    known kinds or is broken, InputError for regions that can't be meant.
    """
    path = Path(path)
    for about, values in _raw(path):
        try:
            regions = _regions(values, options)
        except ZooError as error:
            raise type(error)(f"{path}: picture {about}: {error}") from error
        yield about, regions


@dataclass(frozen=True)
class Dump:
    """The pictures of a dump, at most ``limit``; each `iter` reads it anew. ``options``: of
    `read_regions`.
    """

    path: Path | str
    limit: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Item]:
        return islice(read_regions(self.path, **self.options), self.limit)


def _raw(path: Path) -> Iterator[Said]:
    kind = kind_of(path)
    items: Iterator[Said] = read_dump(path, kind) if kind != "safetensors" else _whole(path)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except (ZooError, MemoryError):
            raise
        except Exception as error:  # h5py's, lmdb's and numpy's readers have errors of many kinds
            raise CheckpointError(
                f"{path}: damaged, or no dump of regions ({type(error).__name__}: {error})"
            ) from error
        yield item


def _whole(path: Path) -> Iterator[Said]:
    return ((name, {"regions": regions}) for name, regions in read_safetensors(path))


# --- from what a dump says to Regions


def _regions(values: Mapping[str, Any], options: Mapping[str, Any]) -> Regions:
    if "regions" in values:
        whole: Regions = values["regions"]
        if options:
            raise InputError(f"our own files say what their regions are; leave {', '.join(options)} out")
        return whole
    features, boxes, shares = find(values, "features"), find(values, "boxes"), find(values, "normalised")
    if features is None or (boxes is None and shares is None):
        raise CheckpointError(f"no features or no boxes among {', '.join(map(str, values))}")
    found = find(values, "count")
    count = None if found is None else _one(found, "the number of boxes")
    if count is not None and not (count >= 0 and count == int(count)):
        raise CheckpointError(f"the number of boxes must be a whole number, got {count:g}")
    count = None if count is None else int(count)
    features = _matrix(features, count, None)
    given_boxes = boxes if boxes is not None else shares
    plain = isinstance(given_boxes, numpy.ndarray) and given_boxes.ndim == 2
    if count is None and plain and len(given_boxes) != len(features):
        raise CheckpointError(f"{len(features)} features and {len(given_boxes)} boxes, and nothing says how many count")
    count = len(features) if count is None else count
    width, height = find(values, "width"), find(values, "height")
    given = dict(options)
    if boxes is None or width is None or height is None:
        if shares is None:
            raise CheckpointError("the picture's width and height are missing, which the boxes are measured against")
        boxes, size = _matrix(shares, count, None)[:, :4], (1.0, 1.0)
        given.setdefault("format", "normalised")
    else:
        boxes = _matrix(boxes, count, 4)
        size = _one(width, "the picture's width"), _one(height, "the picture's height")
    kinds = {name: numpy.dtype("<f4" if name.endswith("confidence") else "<i8") for name in DETECTED}
    return Regions(
        torch.from_numpy(features.astype(numpy.float32)),
        torch.from_numpy(boxes.astype(numpy.float32)),
        size,
        **given,
        **cast(Any, {name: _vector(find(values, name), count, kind) for name, kind in kinds.items()}),
    )


def _bytes(value: Any) -> bytes | None:
    """The bytes of a base64 text, or of bytes; None for anything else."""
    if isinstance(value, LongBytes):
        value = bytes(value.open())
    if isinstance(value, str):
        value = value.encode("ascii", "replace")
    if not isinstance(value, bytes):
        return None
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise CheckpointError(f"a column should hold base64, got {value[:20]!r}") from error


def _array(value: Any) -> Any:
    """What unpickling left of a numpy array, as an array."""
    if isinstance(value, ArrayRef):
        if value.dtype is None:
            raise CheckpointError("an array of Python objects; only arrays of numbers are read")
        data = value.data.open() if isinstance(value.data, LongBytes) else value.data
        return numpy.frombuffer(data, value.dtype.resolve()).reshape(value.shape, order="F" if value.fortran else "C")
    return value


def _numbers(value: Any, what: str) -> numpy.ndarray[Any, Any]:
    """An array of real numbers; truth values, complex numbers, texts and objects are none."""
    found = _array(value)
    array = numpy.asarray(
        found if isinstance(found, numpy.ndarray | numpy.generic | int | float | list | tuple) else [None]
    )
    if array.dtype.kind not in "fiu":
        kind = type(found).__name__ if array.dtype.kind == "O" else str(array.dtype)
        raise CheckpointError(f"{what} must be numbers, got {kind}")
    return array


def _one(value: Any, what: str) -> float:
    if isinstance(value, str | bytes):  # ViLBERT's dumps write sizes as texts
        try:
            value = float(value)
        except ValueError:
            raise CheckpointError(f"{what} must be a number, got {value[:30]!r}") from None
    array = _numbers(value, what).reshape(-1)
    if not len(array) or not numpy.isfinite(array[0]):
        raise CheckpointError(f"{what} must be a number, got {array[:1].tolist()}")
    return float(array[0])


def _matrix(value: Any, rows: int | None, columns: int | None) -> numpy.ndarray[Any, Any]:
    """(rows, columns) from an array, or from base64 of float32 rows."""
    raw = _bytes(value)
    if raw is not None:
        if rows is None or rows < 1 or len(raw) % (4 * rows):
            raise CheckpointError(f"{len(raw)} bytes of float32 can't be {rows} rows")
        value = numpy.frombuffer(raw, "<f4").reshape(rows, -1)
    array = _numbers(value, "features and boxes")
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or not array.shape[1] or (columns is not None and array.shape[1] < columns):
        raise CheckpointError(
            f"expected a matrix{f' of {columns} columns' if columns else ''}, got shape {array.shape}"
        )
    if rows is not None and len(array) < rows:
        raise CheckpointError(f"the dump says {rows} boxes, but holds {len(array)} rows")
    array = array[:rows] if rows is not None else array
    return array[:, :columns] if columns is not None else array


def _vector(value: Any, count: int, dtype: numpy.dtype[Any]) -> Tensor | None:
    if value is None:
        return None
    raw = _bytes(value)
    if raw is not None:
        size = len(raw) // max(count, 1)
        stored = numpy.dtype({4: f"<{dtype.kind}4", 8: f"<{dtype.kind}8"}.get(size, dtype))
        if len(raw) % stored.itemsize:
            raise CheckpointError(f"{len(raw)} bytes can't be {count} numbers")
        value = numpy.frombuffer(raw, stored)
    array = _numbers(value, "labels and confidences").reshape(-1)[:count]
    if len(array) < count:
        raise CheckpointError(f"expected {count} numbers, got {len(array)}")
    if not numpy.isfinite(array).all():
        raise CheckpointError("labels and confidences must be finite; some are not")
    return torch.from_numpy(array.astype(dtype))


# --- our own file


Progress = Callable[[str, int, int | None], Any]
"""Called with "reading" or "writing", how many pictures are done, and how many there are once that
is known.
"""


def save_regions(
    path: Path | str,
    pictures: Mapping[str, Regions] | Iterable[Item],
    *,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> int:
    """Write pictures into one safetensors file -> how many. ``dtype``: of the features, None as
    they come.

    The file holds the rows of all pictures one after another: ``features`` (rows, width), ``boxes``
    (rows, 4), ..., and for the pictures ``image_size`` (pictures, 2), ``starts`` (pictures + 1),
    where each one's rows begin, and ``names``, a JSON list as bytes. So pictures must agree in what
    they hold. They are gone through twice, one in memory at a time, first for their sizes; a
    generator, which can be gone through once, is kept whole. The file appears when all of it is
    written.
    """
    items = pictures.items() if isinstance(pictures, Mapping) else pictures
    if iter(items) is items:
        items = list(items)
    shown: Progress = progress or (lambda stage, done, total: None)
    starts: dict[str, int] = {}
    rows, masked, first = 0, False, None
    for name, regions in items:
        if name in starts:
            raise InputError(f"picture {name!r} comes twice")
        if regions.batched:
            raise InputError(f"picture {name!r} is a batch of pictures; write single ones")
        made = regions.about, _columns(regions)
        first = first or made
        if made != first:
            raise InputError(
                f"the pictures of a file must agree in what they hold; the first has {first}, picture {name!r} has "
                f"{made}"
            )
        starts[name] = rows
        rows += len(regions)
        masked = masked or regions.mask is not None
        shown("reading", len(starts), None)
    if first is None:
        raise InputError("no pictures to write")
    about, columns = first
    names = torch.frombuffer(bytearray(json.dumps(list(starts)).encode()), dtype=torch.uint8)
    infos = {part: Info((rows, *shape), kind) for part, (shape, kind) in columns.items()}
    infos["image_size"] = Info((len(starts), 2), "F32")
    infos["starts"], infos["names"] = Info((len(starts) + 1,), "I64"), Info(tuple(names.shape), "U8")
    if masked:
        infos["mask"] = Info((rows,), "BOOL")
    if dtype is not None:
        infos["features"] = Info(infos["features"].shape, DTYPE_NAMES[dtype])
    header = {HEADER: json.dumps(about)}
    with SafetensorsWriter(path, infos, header) as writer:
        writer.write("starts", torch.tensor([*starts.values(), rows]))
        writer.write("names", names)
        for number, (known, (name, regions)) in enumerate(zip(starts, items, strict=False), 1):
            if name != known:
                raise InputError(f"the pictures changed while they were read: {known!r} became {name!r}")
            writer.append("image_size", regions.image_size[None])
            for part in columns:
                writer.append(part, getattr(regions, part))
            if masked:
                writer.append("mask", regions.real)
            shown("writing", number, len(starts))
        writer.finish(header)
    return len(starts)


def _columns(regions: Regions) -> dict[str, tuple[tuple[int, ...], str]]:
    """The columns of a file of such pictures: each one's shape behind the rows, and its dtype."""
    values = {part: getattr(regions, part) for part in ("features", "boxes", *TOLD)}
    return {part: (tuple(v.shape[1:]), DTYPE_NAMES[v.dtype]) for part, v in values.items() if v is not None}


def read_safetensors(path: Path | str) -> Iterator[Item]:
    """What `save_regions` wrote, in its order; what `Regions.save` wrote is one item without a
    name. The file is mapped while it is read, since it may be larger than memory; each picture is a
    copy.
    """
    with open_archive(Path(path), mmap=True) as archive:
        about = described(archive)
        if "starts" not in archive.tensors:
            yield "", Regions.load(path)
            return
        parts: dict[str, Any] = {part: archive.read(part) for part in PARTS if part in archive.tensors}
        starts, names = archive.read("starts").tolist(), _names(archive)
        rows = len(parts["features"])
        if len(starts) != len(names) + 1 or starts != sorted(starts) or starts[0] != 0 or starts[-1] != rows:
            raise CheckpointError(
                f"{path}: {len(names)} names, {len(starts)} starts and {rows} rows do not belong together"
            )
        sizes = parts.pop("image_size")
        for number, name in enumerate(names):
            cut = slice(starts[number], starts[number + 1])
            copies = {part: rows_of[cut].clone() for part, rows_of in parts.items()}
            yield name, Regions(**copies, image_size=sizes[number].clone(), **about)


def _names(archive: Archive) -> list[str]:
    names = parse_json(archive.read("names").numpy().tobytes(), f"the names in {archive.path}")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{archive.path}: the names of the pictures must be a list of texts")
    return names


# --- the command


@dataclass(frozen=True)
class RegionReport:
    """What a dump holds: ``pictures``, the least and most ``regions`` of one, the ``width`` of
    features, ``problems`` by picture.
    """

    path: str
    kind: str
    pictures: int = 0
    fewest: int = 0
    most: int = 0
    widths: tuple[int, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.pictures > 0 and not self.problems

    def __str__(self) -> str:
        widths = " and ".join(map(str, self.widths))
        lines = [
            f"{self.path}: {self.kind}, {self.pictures} pictures of {self.fewest} to {self.most} regions, {widths} wide"
        ]
        return "\n".join([*lines, *(f"  picture {name}: {problem}" for name, problem in self.problems.items())])


def check_regions(path: Path | str, *, limit: int | None = None, **options: Any) -> RegionReport:
    """Read a dump through and say what it holds and which pictures can't be meant as they are (at
    most 20 of them are shown).
    """
    path = Path(path)
    pictures, counts, widths = 0, set[int](), set[int]()
    problems: dict[str, str] = {}
    for name, values in islice(_raw(path), limit):
        pictures += 1
        try:
            regions = _regions(values, options)
        except ZooError as error:
            if len(problems) < 20:
                problems[name] = str(error)
            continue
        counts.add(len(regions))
        widths.add(regions.width)
    if not pictures:
        raise InputError(f"{path} holds no picture; a dump has a row, a file or an entry for each")
    fewest, most = min(counts, default=0), max(counts, default=0)
    return RegionReport(str(path), kind_of(path), pictures, fewest, most, tuple(sorted(widths)), problems)


def convert_regions(
    source: Path | str,
    target: Path | str,
    *,
    limit: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> int:
    """A dump as one safetensors file -> how many pictures; the options are those of `save_regions`
    and `read_regions`.

    The dump is read twice, one picture in memory at a time; what is wrong with a picture shows
    before anything is written.
    """
    return save_regions(target, Dump(source, limit, options), dtype=dtype, progress=progress)
