"""Files of results: what they say, and that a stopped run goes on with every row exactly once."""

from __future__ import annotations

import csv
import importlib.util
import json

import numpy
import pytest

from zoo.data.tables import read_rows
from zoo.errors import InputError, MissingExtraError
from zoo.inference import bulk
from zoo.inference.bulk import joined, write_results
from zoo.inference.results import ResultFile, json_of, kept_rows

ARROW = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
FORMATS = ["jsonl", "csv", "tsv", "npy", pytest.param("parquet", marks=ARROW)]
ROWS = [{"text": f"text {number}", "n": number} for number in range(50)]


class Engine:
    """Turns a row's text into a vector and a label; counts its work, and breaks where it is told."""

    def __init__(self, stop=None, window=8):
        self.done, self.stop, self.window = 0, stop, window

    def __call__(self, rows):
        window = []
        for row in [*rows, None] if self.stop is None else rows:
            if row is not None:
                window.append(row)
            if len(window) == self.window or row is None:
                for number in window:
                    if self.done == self.stop:
                        raise KeyboardInterrupt
                    self.done += 1
                    yield {"label": f"l{number}", "embedding": numpy.array([number, 0.5], dtype=numpy.float32)}
                window = []


def write(out, engine, rows=ROWS, **run):
    shape = (lambda row, result: dict(result)) if out.suffix == ".npy" else joined
    return write_results(out, iter(rows), lambda row: row["n"], engine, run={"model": "m", **run}, shape=shape)


def numbers(out):
    """The vectors' first numbers, and the texts where the file has them."""
    if out.suffix == ".npy":
        return numpy.load(out)[:, 0].tolist(), [row["text"] for row in ROWS]
    read = list(read_rows(out))
    vectors = [v if isinstance(v, list) else json.loads(v) for v in (row["embedding"] for row in read)]
    return [vector[0] for vector in vectors], [row["text"] for row in read]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(bulk, "SECONDS", 0.0)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_each_row_in_order(kind, tmp_path):
    out = tmp_path / f"out.{kind}"
    assert write(out, Engine()) == 50
    assert numbers(out) == ([float(number) for number in range(50)], [row["text"] for row in ROWS])
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    if kind == "npy":
        assert numpy.load(out).dtype == numpy.float32
        assert numpy.load(out, mmap_mode="r").shape == (50, 2)
    else:
        assert next(iter(read_rows(out)))["label"] == "l0"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("torn", [b"", b'{"text": "half a ro'])
def test_a_stopped_run_goes_on_where_it_was_and_ends_the_same(kind, torn, tmp_path):
    whole, out = tmp_path / f"whole.{kind}", tmp_path / f"out.{kind}"
    write(whole, Engine())
    with pytest.raises(KeyboardInterrupt):
        write(out, Engine(stop=29))
    assert not out.exists()
    assert kept_rows(out) == 24  # three windows; the fourth was not done
    with (tmp_path / f"out.{kind}.part").open("ab") as part:
        part.write(torn)  # what a kill left half written
    with pytest.raises(KeyboardInterrupt):
        write(out, Engine(stop=11))
    assert kept_rows(out) == 32
    engine = Engine()
    assert write(out, engine) == 50
    assert engine.done == 18
    assert numbers(out) == numbers(whole)
    if kind != "parquet":  # whose groups of rows differ
        assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, whole.name])


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write(out, Engine(stop=20))
    assert out.read_text() == "old"
    write(out, Engine())
    assert len(out.read_text().splitlines()) == 50


def test_the_part_of_another_run_or_of_other_rows_is_not_gone_on_with(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(out, Engine(stop=20))
    with pytest.raises(InputError, match="holds 16 rows of another run, whose model is 'm' and not 'other'"):
        write(out, Engine(), model="other")
    with pytest.raises(InputError, match="the first 16 rows are not those"):
        write(out, Engine(), rows=[{**ROWS[0], "text": "changed"}, *ROWS[1:]])
    with pytest.raises(InputError, match="the input now ends after 9"):
        write(out, Engine(), rows=ROWS[:9])
    assert write(out, Engine()) == 50


@pytest.mark.parametrize("said", ["", "[]", '{"rows": 8, "bytes": "many"}', "\ud800".encode("utf-8", "surrogatepass")])
def test_a_damaged_record_is_named(said, tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(out, Engine(stop=20))
    (tmp_path / "out.jsonl.part.json").write_bytes(said if isinstance(said, bytes) else said.encode())
    with pytest.raises(InputError, match=r"out\.jsonl\.part\.json is damaged; remove it and out\.jsonl\.part"):
        write(out, Engine())


def test_a_record_without_its_part_is_of_no_account(tmp_path):
    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        write(out, Engine(stop=20))
    (tmp_path / "out.csv.part").unlink()
    engine = Engine()
    assert (write(out, engine), engine.done) == (50, 50)


def test_two_writers_of_one_file_are_kept_apart(tmp_path):
    out = tmp_path / "out.jsonl"
    with ResultFile(out, {}), pytest.raises(InputError, match="another process is writing"):
        ResultFile(out, {})
    assert list(tmp_path.iterdir()) == []


def test_no_rows_leave_no_file(tmp_path):
    assert write(tmp_path / "out.csv", Engine(), rows=[]) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_result_gives_way_to_a_column_of_its_name():
    assert joined({"label": "gold", "predicted_label": 1}, {"label": "x", "score": 2}) == {
        "label": "gold",
        "predicted_label": 1,
        "predicted_predicted_label": "x",
        "score": 2,
    }


def test_cells_that_a_format_cant_say_are_refused(tmp_path):
    def run(name, *results):
        rows = [{"n": number} for number in range(len(results))]
        write_results(tmp_path / name, rows, lambda row: row["n"], lambda rows: (results[n] for n in rows), run={})

    with pytest.raises(InputError, match="can't hold a tab or the end of a line: 'a"):
        run("out.tsv", {"word": "a\tb"})
    with pytest.raises(InputError, match="a row has the columns n, b, the first has n, a"):
        run("out.csv", {"a": "1"}, {"b": "2"})
    with pytest.raises(InputError, match=r"must end in \.jsonl, \.csv, \.tsv, \.npy, \.parquet"):
        run("out.txt", {"a": 1})
    with pytest.raises(InputError, match="there is no folder"):
        run("nowhere/out.csv", {"a": 1})
    run("more.csv", {"word": 'say "a,b"\nc', "none": None, "list": [1, 2]}, {"word": "", "none": None, "list": []})
    with (tmp_path / "more.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["n", "word", "none", "list"],
            ["0", 'say "a,b"\nc', "", "[1, 2]"],
            ["1", "", "", "[]"],
        ]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.inference.results.os.fsync", full)
    with pytest.raises(InputError, match="can't be written: No space left on device"):
        write(tmp_path / "out.csv", Engine())


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_names_the_extra_that_it_needs(tmp_path):
    with pytest.raises(MissingExtraError, match=r"extended-zoo\[tables\]"):
        write(tmp_path / "out.parquet", Engine())


@ARROW
def test_parquet_keeps_numbers_and_says_nested_results_in_json(tmp_path):
    results = [
        {"vector": [1.0, 2.0], "entities": [], "none": None},
        {"vector": [], "entities": [{"a": 1}], "none": "x"},
    ]
    out = tmp_path / "out.parquet"
    write_results(out, [{"n": 0}, {"n": 1}], lambda row: row["n"], lambda rows: (results[n] for n in rows), run={})
    assert list(read_rows(out)) == [
        {"n": 0, "vector": [1.0, 2.0], "entities": "[]", "none": None},
        {"n": 1, "vector": [], "entities": '[{"a": 1}]', "none": "x"},
    ]
    with pytest.raises(InputError, match="a column holds values of several kinds"):
        write_results(
            tmp_path / "b.parquet",
            [{"n": 0}, {"n": 1}],
            lambda row: row["n"],
            lambda rows: ({"x": [1, "a"][n]} for n in rows),
            run={},
        )


def test_json_lines_hold_what_no_file_could():
    assert json_of({"a": numpy.float32(0.5), "b": numpy.array([1, 2])}) == '{"a": 0.5, "b": [1, 2]}'
    assert json_of([float("nan"), {"x": float("-inf")}, 1.5]) == '[null, {"x": null}, 1.5]'
    assert json_of(["\ud800", "é"]) == '["\\ud800", "\\u00e9"]'
    assert json_of("é") == '"é"'


def test_half_a_surrogate_pair_goes_through_jsonl_alone(tmp_path):
    rows = [{"n": 0, "text": "\ud800"}]
    write_results(tmp_path / "out.jsonl", rows, lambda row: 0, lambda rows: ({"x": 1} for _ in rows), run={})
    assert list(read_rows(tmp_path / "out.jsonl")) == [{**rows[0], "x": 1}]
    with pytest.raises(InputError, match="half of a surrogate pair; write jsonl"):
        write_results(tmp_path / "out.csv", rows, lambda row: 0, lambda rows: ({"x": 1} for _ in rows), run={})
