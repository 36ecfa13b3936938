"""`zoo classify | tag | ask | embed | fill-mask`: from words, files and standard input to a terminal's
table, lines of JSON and files.
"""

from __future__ import annotations

import io
import json
import sys

import numpy
import pytest
import torch

import zoo
from tests.cli.test_cli import run
from zoo.inference.bulk import write_results
from zoo.tokenization.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "barks", "where", "?", "."]
TINY = {"vocab_size": len(WORDS), "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 12}
TEXTS = ["a dog barks", "cat", "", "where ? a cat", "dog"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model for each task, by the task."""
    tokenizer = wordpiece({word: number for number, word in enumerate(WORDS)}, max_length=16)
    found = {}
    for task, options in (
        ("sequence-classification", {"labels": ["no", "yes"]}),
        ("token-classification", {"labels": ["O", "B-X"]}),
        ("question-answering", {}),
        ("sentence-embedding", {}),
        ("masked-lm", {}),
    ):
        generator = torch.Generator().manual_seed(0)
        model = zoo.create("bert-base", task=task, generator=generator, max_positions=16, **TINY, **options)
        found[task] = str(zoo.save(model, tmp_path_factory.mktemp("models") / task, tokenizer))
    return found


@pytest.fixture
def command(monkeypatch, capsys, folders, tmp_path):
    """Run a command with the model of its task: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    tasks = {
        "classify": "sequence-classification",
        "tag": "token-classification",
        "ask": "question-answering",
        "embed": "sentence-embedding",
        "fill-mask": "masked-lm",
    }

    def call(name, *arguments, stdin=None, terminal=False, model=None):
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        if terminal:
            monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        return run(monkeypatch, capsys, name, *arguments, "--model", model or folders[tasks[name]])

    return call


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def vectors(folder, texts):
    model, tokenizer = zoo.load(folder), zoo.tokenizer(folder)
    return torch.cat([model(**tokenizer([text])).embedding for text in texts]).detach().numpy()


def test_a_text_file_gives_a_row_for_each_line_also_an_empty_one(command, folders, tmp_path):
    (tmp_path / "s.txt").write_bytes("\ufeff".encode() + "\r\n".join(TEXTS).encode())
    code, out, _ = command("embed", "s.txt")
    assert code == 0
    assert [row["text"] for row in lines(out)] == TEXTS
    wanted = vectors(folders["sentence-embedding"], TEXTS)
    assert numpy.allclose([row["embedding"] for row in lines(out)], wanted, atol=1e-5)
    assert command("embed", "s.txt", "--out", "v.npy")[:2] == (0, "5 rows in v.npy\n")
    assert numpy.allclose(numpy.load("v.npy"), wanted, atol=1e-5)


def test_standard_input_is_read_by_lines_and_an_empty_one_is_said(command):
    code, out, err = command("embed", "-", stdin=b"")
    assert (code, out, err) == (1, "", "zoo: standard input holds no rows; give a text on each line\n")
    code, out, _ = command("embed", "-", stdin="\n".join(TEXTS).encode() + b"\n")
    assert (code, [row["text"] for row in lines(out)]) == (0, TEXTS)
    code, _, err = command("classify", "-", stdin=b"a dog\n\xff\n")
    assert (code, "standard input can't be read as UTF-8 text" in err) == (1, True)


def test_rows_of_standard_input_are_printed_as_they_are_made(command, monkeypatch):
    printed = []
    monkeypatch.setattr("builtins.print", lambda *values, **options: printed.append(len(read)))
    read = []

    def slow():
        for number in range(40):
            read.append(number)
            yield "a dog"

    monkeypatch.setattr("zoo.cli.rows.stdin_lines", slow)
    assert command("embed", "-", "--batch-size", "4")[0] == 0
    assert len(printed) == 40
    assert printed[:4] == [4] * 4  # the first batch is out before the fifth line is read
    assert printed[4:12] == [12] * 8


def test_a_file_that_is_not_there_is_not_taken_for_words(command):
    code, _, err = command("embed", "s.txt")
    assert (code, "there is no file 's.txt'" in err) == (1, True)
    code, _, err = command("classify", "predict.py said so in a.txt", "b.jsonl", "--json")
    assert (code, "there is no file 'b.jsonl'" in err) == (1, True)
    assert command("classify", "predict.py said so in a.txt", "--json")[0] == 0


def test_files_and_words_are_not_mixed_and_files_follow_each_other(command, tmp_path):
    for name, text in (("a.txt", "dog"), ("b.txt", "cat\na cat")):
        (tmp_path / name).write_text(text)
    code, _, err = command("classify", "a.txt", "dog")
    assert (code, "'a.txt' is a file and 'dog' is none" in err) == (1, True)
    code, out, _ = command("classify", "a.txt", "b.txt")
    assert (code, [row["text"] for row in lines(out)]) == (0, ["dog", "cat", "a cat"])


def test_a_table_keeps_its_columns_and_the_labels_come_beside(command, tmp_path, folders):
    (tmp_path / "in.tsv").write_text("label\tsentence1\tsentence2\n1\ta dog\tbarks\n0\tcat\t\n")
    assert command("classify", "in.tsv", "-o", "out.csv")[:2] == (0, "2 rows in out.csv\n")
    pairs = zoo.pipeline("sequence-classification", folders["sequence-classification"])(
        [("a dog", "barks"), ("cat", "")]
    )
    rows = (tmp_path / "out.csv").read_text().splitlines()
    assert rows[0] == "label,sentence1,sentence2,predicted_label,score"
    for row, pair, start in zip(rows[1:], pairs, ("1,a dog,barks,", "0,cat,,"), strict=True):
        assert row.startswith(f"{start}{pair['label']},")
        assert float(row.rpartition(",")[2]) == pytest.approx(pair["score"], abs=1e-5)
    code, out, _ = command("classify", "in.tsv", "--column", "sentence2", "--scores")
    assert code == 0
    alone = zoo.pipeline("sequence-classification", folders["sequence-classification"])(["barks", ""])
    for row, one in zip(lines(out), alone, strict=True):
        assert row["scores"] == pytest.approx(one["scores"], abs=1e-5)
    code, _, err = command("classify", "in.tsv", "--column", "sentence3")
    assert (code, "unknown column 'sentence3'" in err) == (2, True)


def test_a_cell_that_is_no_text_is_named_by_its_row(command, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "dog"}\n{"text": null}\n')
    code, _, err = command("embed", "in.jsonl", "-o", "out.jsonl")
    assert (code, "row 2 must hold a text (str), got None" in err) == (1, True)
    (tmp_path / "in.jsonl").write_text('{"text": "dog"}\n{"title": "cat"}\n')
    code, _, err = command("embed", "in.jsonl")
    assert (code, "row 2: a row lacks the column 'text'" in err) == (1, True)


def test_words_and_texts_are_tagged(command, tmp_path, folders):
    (tmp_path / "in.jsonl").write_text('{"tokens": ["a", "dog."], "id": 7}\n')
    code, out, _ = command("tag", "in.jsonl")
    (row,) = lines(out)
    assert (code, row["id"], [word["word"] for word in row["words"]]) == (0, 7, ["a", "dog."])
    code, out, _ = command("tag", "a dog.", "--json")
    (found,) = json.loads(out)
    wanted = zoo.pipeline("token-classification", folders["token-classification"])("a dog.")
    assert [word["word"] for word in found["words"]] == ["a", "dog", "."]
    assert [word["label"] for word in found["words"]] == [word["label"] for word in wanted["words"]]
    (tmp_path / "odd.jsonl").write_text('{"body": "a dog"}\n')
    code, _, err = command("tag", "odd.jsonl")
    assert (code, "name one by --column" in err) == (1, True)


def test_one_question_or_one_in_each_row_is_asked(command, tmp_path):
    code, _, err = command("ask", "a dog barks")
    assert (code, "Give --question" in err) == (1, True)
    code, out, _ = command("ask", "a dog barks", "-q", "where ?", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert found["answer"] == "a dog barks"[found["start"] : found["end"]]
    (tmp_path / "in.jsonl").write_text('{"question": "where ?", "context": "a cat barks"}\n')
    code, out, _ = command("ask", "in.jsonl")
    assert (code, lines(out)[0]["answer"] in "a cat barks") == (0, True)


def test_a_few_words_on_a_terminal_make_a_table(command):
    code, out, _ = command("embed", "a dog", "cat", terminal=True)
    assert (code, "cosine similarity" in out, "1.000" in out) == (0, True, True)
    assert "labels" in command("classify", "a dog", terminal=True)[1]
    assert "answers" in command("ask", "a dog", "-q", "where ?", terminal=True)[1]
    assert "score" in command("tag", "a dog", terminal=True)[1]
    assert "mask 1" in command("fill-mask", "a [MASK]", terminal=True)[1]
    assert len(lines(command("embed", *["a dog"] * 21, terminal=True)[1])) == 21


def test_a_stopped_command_says_what_it_kept_and_goes_on(command, monkeypatch, tmp_path):
    (tmp_path / "s.txt").write_text("a dog\n" * 40)
    monkeypatch.setattr("zoo.inference.bulk.SECONDS", 0.0)

    def broken(out, rows, reading, engine, **options):
        def stopping(given):
            for number, result in enumerate(engine(given)):
                if number == 20:
                    raise zoo.ZooError("the lights went out")
                yield result

        return write_results(out, rows, reading, stopping, **options)

    monkeypatch.setattr("zoo.inference.bulk.write_results", broken)
    code, _, err = command("embed", "s.txt", "-o", "v.npy", "--batch-size", "4")
    assert (code, err) == (1, "zoo: 12 rows kept; the same command goes on from there\nzoo: the lights went out\n")
    monkeypatch.setattr("zoo.inference.bulk.write_results", write_results)
    assert command("embed", "s.txt", "-o", "v.npy", "--batch-size", "3")[:2] == (0, "40 rows in v.npy\n")
    assert numpy.load("v.npy").shape == (40, 8)


def test_an_engine_has_a_name_and_only_ray_an_address(command, tmp_path):
    assert command("embed", "dog", "--engine", "rya")[0] == 2
    code, _, err = command("embed", "dog", "--address", "host:6379")
    assert (code, "--address is for --engine ray" in err) == (1, True)
    (tmp_path / "d" / "e").mkdir(parents=True)
    code, _, err = command("embed", "d/e")
    assert (code, "d/e is a folder" in err) == (1, True)


def test_what_cant_be_written_is_said_before_anything_is_loaded(command, monkeypatch):
    monkeypatch.setattr("zoo.api.pipeline.load", lambda *_, **__: pytest.fail("it was loaded"))
    for arguments, words in (
        (("classify", "dog", "-o", "x.npy"), "npy holds vectors, which only embed makes"),
        (("embed", "dog", "-o", "x.pickle"), "must end in .jsonl, .csv, .tsv, .npy, .parquet"),
        (("tag", "dog", "-o", "nowhere/x.csv"), "there is no folder nowhere"),
    ):
        code, _, err = command(*arguments)
        assert (code, words in err) == (1, True)


def test_a_head_that_starts_at_random_is_refused(command, folders):
    code, out, err = command("classify", "dog", model=folders["masked-lm"])
    assert (code, out, "has no trained head for sequence-classification" in err) == (1, "", True)
