"""The dumps of region features that people have, read picture by picture: what each says, under its
own words.

Nothing in them is run: pickles go through ``zoo.formats.pickles``.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy

from zoo.data.lines import LONGEST_LINE
from zoo.errors import CheckpointError
from zoo.formats import lmdb_files
from zoo.formats.disk import open_regular
from zoo.formats.hdf5_files import DataSet, Group, open_hdf5
from zoo.formats.lmdb_files import is_lmdb
from zoo.formats.opening import open_archive
from zoo.formats.pickles import unpickle

Said = tuple[str, Mapping[str, Any]]  # a picture's name, and what the dump says of it

BUTD_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_COLUMNS = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
NAMES = {
    "features": ("features", "image_features", "x", "feature", "feat"),
    "boxes": ("boxes", "bbox", "image_bb", "bboxes"),
    "width": ("image_w", "img_w", "image_width", "width"),
    "height": ("image_h", "img_h", "image_height", "height"),
    "count": ("num_boxes", "num_bbox", "max_features"),
    "confidence": ("objects_conf", "conf", "confidence", "max_conf"),
    "labels": ("objects_id", "labels", "objects"),
    "attributes": ("attrs_id", "attributes"),
    "attribute_confidence": ("attrs_conf",),
    "image_id": ("image_id", "img_id", "image_ids", "ids"),
    "normalised": ("norm_bb", "normalized_boxes"),
}
"""The words under which the dumps keep each thing."""


def find(values: Mapping[str, Any], what: str) -> Any:
    """What a dump says under one of the words for a thing, or None."""
    return next((values[name] for name in NAMES[what] if name in values), None)


def kind_of(path: Path | str) -> str:
    """What kind of dump a file or folder is: tsv, lmdb, hdf5, npz, npy or safetensors."""
    path = Path(path)
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return "lmdb"
        for kind in ("npz", "npy"):
            if next(path.glob(f"*.{kind}"), None) is not None:
                return kind
        raise CheckpointError(f"{path} holds no data.mdb, no npz and no npy files: no known dump of regions")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    with open_regular(path) as file:
        start = file.read(64)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if start.startswith(b"PK\x03\x04"):
        return "npz"
    if path.suffix == ".mdb" or is_lmdb(start):
        return "lmdb"
    if path.suffix == ".safetensors":
        return "safetensors"
    if path.suffix in (".tsv", ".csv", ".txt"):
        return "tsv"
    raise CheckpointError(
        f"{path} is no known dump of regions; known are TSV, LMDB, HDF5, npz and npy folders, and safetensors"
    )


def read_dump(path: Path, kind: str) -> Iterator[Said]:
    """What the dump says of each picture."""
    return {"tsv": _tsv, "lmdb": _lmdb, "hdf5": _hdf5, "npz": _npz, "npy": _npy}[kind](path)


def _tsv(path: Path) -> Iterator[Said]:
    """Tab-separated lines with base64 columns, 6 (bottom-up attention) or 10 (LXMERT)."""
    with open_regular(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise CheckpointError(f"{path}: line {number} has more than {LONGEST_LINE:,} bytes")
            line = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").rstrip(b" \r\n")
            if not line:
                continue
            cells = line.split(b"\t")
            columns = {len(c): c for c in (BUTD_COLUMNS, LXMERT_COLUMNS)}.get(len(cells))
            if columns is None:
                raise CheckpointError(
                    f"{path}: line {number} has {len(cells)} columns; known are 6 (bottom-up attention) and 10 (LXMERT)"
                )
            values: dict[str, Any] = dict(zip(columns, cells, strict=True))
            for name in ("image_w", "image_h", "img_w", "img_h", "num_boxes"):
                if name in values:
                    values[name] = _number(values[name], f"{path}: line {number}: {name}")
            yield values[columns[0]].decode("utf-8", "replace"), values


def _number(cell: bytes, what: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise CheckpointError(f"{what} should be a number, got {cell[:30]!r}") from None


def _lmdb(path: Path) -> Iterator[Said]:
    """Values are pickles of plain dicts; they are read by our interpreter, which calls nothing."""
    for key, value in lmdb_files.read(path):
        name = key.decode("utf-8", "replace")
        if name in ("keys", "__keys__", "__len__"):
            continue
        made = unpickle(memoryview(value), what=f"{path}: {name}").value
        if not isinstance(made, dict):
            raise CheckpointError(f"{path}: the value of {name} is no dict")
        shown = find(made, "image_id")
        yield _text(shown, name), made


def _hdf5(path: Path) -> Iterator[Said]:
    """One data set for each field with a row for each picture, or one group for each picture."""
    with open_hdf5(path) as file:
        found = {name: member for name in file if not isinstance(member := file[name], Group)}
        if len(found) < len(file):
            if found:
                raise CheckpointError(f"{path} holds data sets beside groups; one group for each picture was expected")
            for name in file:
                group = cast(Group, file[name])
                members = {key: group[key] for key in group}
                if any(isinstance(member, Group) for member in members.values()):
                    raise CheckpointError(f"{path}: {name} holds groups; a picture's group holds its data sets")
                values = {key: cast(DataSet, member)[()] for key, member in members.items()} | group.attributes
                yield _text(find(values, "image_id"), name), values
            return
        fields = {name: values for name, values in found.items() if values.ndim > 0}
        limits = fields.pop("pos_boxes", None)  # adaptive numbers of boxes, stored one after another
        if not fields:
            raise CheckpointError(f"{path} holds no data sets with a row for each picture")
        ids = find(fields, "image_id")
        count = len(limits) if limits is not None else min(len(values) for values in fields.values())
        for row in range(count):
            cut = slice(*map(int, limits[row])) if limits is not None else row
            per_picture = {
                name: values[cut] if limits is None or len(values) != count else values[row]
                for name, values in fields.items()
            }
            yield _text(None if ids is None else ids[row], str(row)), per_picture


def _npz(path: Path) -> Iterator[Said]:
    for file in [path] if path.is_file() else sorted(path.glob("*.npz")):
        with open_archive(file) as archive:
            values = {name: archive.read(name).numpy() for name in archive.tensors if name != "info"}
        yield file.stem, values


def _npy(path: Path) -> Iterator[Said]:
    """``name.npy`` holds the features; boxes and size stand in ``name_boxes.npy`` and
    ``name_size.npy`` (width, height).
    """
    for file in sorted(path.glob("*.npy")):
        if file.stem.endswith(("_info", "_boxes", "_size")):
            continue
        boxes, size = (file.with_name(f"{file.stem}_{part}.npy") for part in ("boxes", "size"))
        if not boxes.is_file() or not size.is_file():
            info = file.with_name(f"{file.stem}_info.npy").is_file()
            hint = (
                f"; {file.stem}_info.npy holds Python objects, which are not read: save its boxes and size apart"
                if info
                else ""
            )
            raise CheckpointError(f"{file} has no {boxes.name} and {size.name} beside it{hint}")
        values = {"features": _array(file), "boxes": _array(boxes)}
        about = _array(size).reshape(-1)
        if len(about) < 2:
            raise CheckpointError(f"{size} should hold a width and a height, it holds {len(about)} numbers")
        yield file.stem, {**values, "image_w": about[0], "image_h": about[1]}


def _array(file: Path) -> numpy.ndarray[Any, Any]:
    with open_archive(file) as archive:
        if "array" not in archive.tensors:
            raise CheckpointError(
                f"{file} holds {', '.join(archive.refused) or archive.format}; an array of numbers was expected"
            )
        found: numpy.ndarray[Any, Any] = archive.read("array").numpy()
    return found


def _text(value: Any, otherwise: str) -> str:
    if value is None or isinstance(value, numpy.ndarray):
        return otherwise
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
