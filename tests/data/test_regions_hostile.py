"""Dumps of regions with odd values, damaged or cut, are read or refused by the zoo's own errors."""

from __future__ import annotations

import base64
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from zoo.data.regions.files import check_regions, convert_regions, read_regions
from zoo.errors import ZooError

FEATURES, BOXES = numpy.ones((2, 3), "f4"), numpy.array([[1, 1, 5, 5], [2, 2, 6, 6]], "f4")
WHOLE: dict[str, Any] = {
    **{"features": FEATURES, "boxes": BOXES, "image_w": 10, "image_h": 10, "num_boxes": 2},
    **{"objects_conf": numpy.ones(2, "f4"), "objects_id": numpy.ones(2, "i8"), "image_id": "a"},
}
ODD: dict[str, Any] = {
    **{"None": None, "a text": "x", "bytes": b"xyz", "an int": 3, "a negative": -3, "a huge int": 10**40},
    **{"infinity": float("inf"), "a list": [1, 2], "a dict": {"a": 1}, "empty": numpy.zeros((0, 3), "f4")},
    **{
        "NaN": numpy.full((2, 3), numpy.nan, "f4"),
        "complex": numpy.ones((2, 3), "c8"),
        "bool": numpy.ones((2, 3), bool),
    },
    **{"objects": numpy.array([{}, "x"], dtype=object), "texts": numpy.array([["a", "b", "c"]] * 2)},
    **{"a scalar": numpy.float32(3), "a vector": numpy.ones(3, "f4"), "three axes": numpy.ones((2, 3, 4), "f4")},
    **{"dates": numpy.array(["2020"], dtype="M8[Y]"), "records": numpy.zeros(2, dtype=[("a", "f4")])},
}


def npz(path: Path, values: dict[str, Any]) -> Path:
    numpy.savez(path / "x.npz", **values)
    return path / "x.npz"


def npy(path: Path, values: dict[str, Any]) -> Path:
    numpy.save(path / "a.npy", values["features"])
    numpy.save(path / "a_boxes.npy", values["boxes"])
    numpy.save(path / "a_size.npy", [values["image_w"], values["image_h"]])
    return path


def hdf5_groups(path: Path, values: dict[str, Any]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "g.h5", "w") as file:
        group = file.create_group("a")
        for key, value in values.items():
            group[key] = value
    return path / "g.h5"


def hdf5_columns(path: Path, values: dict[str, Any]) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "c.h5", "w") as file:
        for key, value in values.items():
            file[key] = numpy.array([value.encode()]) if isinstance(value, str) else numpy.asarray(value)[None]
    return path / "c.h5"


def lmdb(path: Path, values: dict[str, Any]) -> Path:
    library = pytest.importorskip("lmdb")
    with library.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", pickle.dumps(values))
    return path


def tsv(path: Path, values: dict[str, Any]) -> Path:
    def cell(value: Any) -> str:
        return base64.b64encode(value.tobytes()).decode() if isinstance(value, numpy.ndarray) else str(value)

    names = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
    (path / "x.tsv").write_text("\t".join(cell(values.get(name, "")) for name in names) + "\n", encoding="utf-8")
    return path / "x.tsv"


def safetensors(path: Path, values: dict[str, Any]) -> Path:
    convert_regions(npz(path, values), path / "x.safetensors")
    return path / "x.safetensors"


Write = Callable[[Path, dict[str, Any]], Path]
DUMPS: tuple[Write, ...] = (npz, npy, hdf5_groups, hdf5_columns, lmdb, tsv, safetensors)


def read(path: Path, out: Path) -> bool:
    """Every way to read a dump; whether it was taken."""
    taken = []
    for way in (lambda: [*read_regions(path)], lambda: check_regions(path), lambda: convert_regions(path, out)):
        try:
            way()
        except ZooError:
            continue
        taken.append(way)
    return len(taken) == 3


@pytest.mark.parametrize("write", DUMPS, ids=lambda write: write.__name__)
def test_odd_values_in_a_dump_are_read_or_refused(write, tmp_path):
    (tmp_path / "whole").mkdir()
    assert read(write(tmp_path / "whole", WHOLE), tmp_path / "out.safetensors")
    every = [(key, kind) for key in WHOLE for kind in ODD]
    for number, (key, kind) in enumerate(every[:: 1 if write in (npy, tsv) else 3]):
        folder = tmp_path / str(number)
        folder.mkdir()
        values = {name: value for name, value in {**WHOLE, key: ODD[kind]}.items() if value is not None}
        try:
            path = write(folder, values)
        except (TypeError, ValueError, OSError, KeyError, ZooError, pickle.PicklingError):
            continue  # the format can't say this
        taken = read(path, folder / "out.safetensors")
        if key in ("features", "boxes") and write is not tsv:
            assert not taken, (key, kind)


@pytest.mark.parametrize("write", DUMPS, ids=lambda write: write.__name__)
def test_a_damaged_dump_is_read_or_refused(write, tmp_path):
    """HDF5 and LMDB by their own libraries, whose errors are of many kinds."""
    path, draw = write(tmp_path, WHOLE), random.Random(write.__name__)
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if file.name == "data.mdb":
            continue  # which lmdb maps as it is
        whole = file.read_bytes()
        for round_ in range(24):
            changed = bytearray(whole[: draw.randrange(len(whole))] if round_ % 2 else whole)
            for _ in range(3 if changed else 0):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            file.write_bytes(changed)
            read(path, tmp_path / "out.safetensors")
        file.write_bytes(whole)


@pytest.mark.parametrize("cell", ["", "-1", "1e400", "nan", "x", "9" * 5000, "2.5", "inf", "1e18", "2"])
def test_a_line_of_a_tsv_with_an_odd_cell_is_read_or_refused(cell, tmp_path):
    for name in ("image_w", "image_h", "num_boxes", "boxes", "features"):
        taken = read(tsv(tmp_path, {**WHOLE, name: cell}), tmp_path / "out.safetensors")
        assert not taken or (cell, name) in {
            ("2.5", "image_w"),
            ("1e18", "image_w"),
            ("1e18", "image_h"),
            ("2", "num_boxes"),
        }
