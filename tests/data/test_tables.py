"""Rows of tables, and which column holds what."""

import gzip
import json

import pytest

from zoo.data.tables import find_columns, format_of, read_rows
from zoo.errors import InputError, MissingExtraError, UnknownNameError


def rows(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_rows(path, **options))


def test_quotes_hold_commas_and_lines_in_csv(tmp_path):
    found = rows(tmp_path / "a.csv", 'text,label\n"a, b\nc",1\n"say ""hi""",0\n')
    assert found == [{"text": "a, b\nc", "label": "1"}, {"text": 'say "hi"', "label": "0"}]


def test_a_tsv_takes_quotes_as_they_stand(tmp_path):
    found = rows(tmp_path / "a.tsv", 'sentence\tlabel\n"unclosed quote\t1\nit\'s "so"\t0\n')
    assert [row["sentence"] for row in found] == ['"unclosed quote', 'it\'s "so"']


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_any_end_of_line(tmp_path, end):
    text = "\ufefftext\tlabel" + end + "one\u2028two\t0" + end
    assert rows(tmp_path / "a.tsv", text) == [{"text": "one\u2028two", "label": "0"}]


def test_jsonl_keeps_what_json_holds_and_gzip_is_read_through(tmp_path):
    lines = "\n".join(json.dumps(row) for row in ({"words": ["a"], "tags": ["O"]}, {"words": [], "tags": None}))
    assert rows(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode())) == [
        {"words": ["a"], "tags": ["O"]},
        {"words": [], "tags": None},
    ]


def test_lines_of_text_are_rows_of_one_column(tmp_path):
    assert rows(tmp_path / "a.txt", "one\n\ntwo, three\n") == [{"text": "one"}, {"text": "two, three"}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,text\na,b\n", "twice"),
        ("a.csv", "text,label\na\n", "line 2 of .* has 1 cells where the header names 2"),
        ("a.csv", 'text,label\n"a,b\n', "can't be read"),
        ("a.tsv", b"text\n\xff\xfe\n", "UTF-8"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2 .* must be an object"),
        ("a.jsonl", '{"a": 1\n', "line 1 .* is not JSON"),
        ("a.csv.gz", b"not gzip", "can't be read"),
        ("a.xls", "x", "name one of csv"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name, text, said):
    with pytest.raises(InputError, match=said):
        rows(tmp_path / name, text)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError, match="give a file of rows"):
            list(read_rows(path))
    with pytest.raises(UnknownNameError, match="jsonl"):
        rows(tmp_path / "a.json", "{}", format="json")


def test_parquet_without_pyarrow_names_the_extra(tmp_path):
    pytest.importorskip("sys")
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"extended-zoo\[tables\]"):
            rows(tmp_path / "a.parquet", "x")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 0]}), tmp_path / "b.parquet")
    assert list(read_rows(tmp_path / "b.parquet")) == [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


def test_formats_by_name():
    assert format_of("a.b.TSV.gz") == "tsv"
    assert format_of("a.ndjson") == "jsonl"
    assert format_of("README") is None


def test_columns_are_found_by_the_names_of_public_tables():
    found = find_columns(["idx", "Premise", "hypothesis", "gold_label"], ("text", "label"), ("pair",))
    assert found.names == {"text": "Premise", "label": "gold_label", "pair": "hypothesis"}


def test_a_column_is_taken_once_and_a_name_wins():
    found = find_columns(["text", "summary", "label"], ("source", "target"), (), {"source": "label"})
    assert found.names == {"source": "label", "target": "summary"}
    assert "pair" not in find_columns(["text", "label"], ("text", "label"), ("pair",))


def test_a_missing_column_says_what_it_may_be_called():
    with pytest.raises(InputError, match=r"no column for 'label' .*call it one of label, .*label=COLUMN"):
        find_columns(["text", "y"], ("text", "label"))
    with pytest.raises(UnknownNameError, match="'y'"):
        find_columns(["text", "y"], ("text", "label"), (), {"label": "yy"})
