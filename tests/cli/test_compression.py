"""`zoo distill` and `zoo quantize` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch

import zoo
from tests.cli.test_cli import run
from zoo.tokenization import SpecialTokens, Tokenizer

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["the", "cat", "dog", "sat", "ran", "on", "mat", "a", "under", "tree"],
]


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *map(str, arguments))


def saved(folder: Path, task: str | None, *, with_tokenizer: bool = True) -> Path:
    """A small teacher of four layers, with its tokenizer."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    roles = SpecialTokens(pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]", unk="[UNK]")
    sizes = {
        "hidden_size": 16,
        "num_layers": 4,
        "num_heads": 2,
        "intermediate_size": 24,
        "max_positions": 16,
        "vocab_size": len(WORDS),
    }
    generator = torch.Generator().manual_seed(0)
    model = zoo.create(
        "bert-base",
        task=task,
        generator=generator,
        **({"num_labels": 3} if task == "sequence-classification" else {}),
        **sizes,
    )
    zoo.save(model, folder, Tokenizer(backend, special=roles, max_length=16) if with_tokenizer else None)
    return folder


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "texts.tsv"
    path.write_text("the cat sat on a mat\t0\na dog ran\t1\n\nthe tree\t2\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("task", "recipe", "chosen"),
    [
        ("sequence-classification", None, "soft-targets"),
        ("sequence-classification", "tinybert", "tinybert"),
        ("masked-lm", None, "distilbert"),
        (None, None, "minilmv2"),
    ],
)
def test_a_student_of_some_layers_is_taught_saved_and_loads_again(command, lines, tmp_path, task, recipe, chosen):
    teacher = saved(tmp_path / "teacher", task)
    options = ("--recipe", recipe) if recipe else ()
    code, out, err = command(
        "distill", teacher, lines, tmp_path / "student", "--layers", "1,3", "--steps", 3, "--json", *options
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["recipe"] == chosen
    assert len(report["stages"]) == (2 if chosen == "tinybert" else 1)
    student = zoo.load(tmp_path / "student")
    assert getattr(student, "model", student).config.num_layers == 2
    assert report["parameters"] == {"teacher": zoo.load(teacher).num_parameters(), "student": student.num_parameters()}
    assert zoo.tokenizer(tmp_path / "student").encode("a dog").ids == zoo.tokenizer(teacher).encode("a dog").ids


def test_the_same_seed_teaches_the_same_and_more_steps_lower_the_loss(command, lines, tmp_path):
    teacher = saved(tmp_path / "teacher", "sequence-classification")
    for name in ("one", "two"):
        _, out, _ = command(
            "distill", teacher, lines, tmp_path / name, "--layers", "0,1", "--steps", 30, "--lr", "0.01", "--json"
        )
    first, second = (zoo.load(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    stage = json.loads(out)["stages"][0]
    assert stage["last"] < stage["first"]


def test_another_size_gets_the_teachers_vocabulary(command, lines, tmp_path):
    teacher = saved(tmp_path / "teacher", "sequence-classification")
    code, out, err = command(
        "distill", teacher, lines, tmp_path / "student", "--student", "bert-tiny", "--recipe", "pd", "--steps", 1
    )
    assert code == 0, err
    assert "pd: " in out
    assert zoo.load(tmp_path / "student").config.vocab_size == len(WORDS)


def test_a_student_folder_with_another_vocabulary_is_refused(command, lines, tmp_path):
    teacher = saved(tmp_path / "teacher", "sequence-classification")
    same = saved(tmp_path / "same", "sequence-classification")
    bare = saved(tmp_path / "bare", "sequence-classification", with_tokenizer=False)
    other = saved(tmp_path / "other", "sequence-classification")
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    assert '"cat"' in text
    swapped = text.replace('"cat"', '"?"').replace('"dog"', '"cat"').replace('"?"', '"dog"')
    (other / "tokenizer.json").write_text(swapped, encoding="utf-8")
    given = "distill", teacher, lines, tmp_path / "out", "--steps", 1, "--student"
    code, _, err = command(*given, other)
    assert code == 1
    assert "2 tokens have other ids in the two vocabularies" in err
    assert not (tmp_path / "out").exists()
    code, _, err = command(*given, bare)
    assert code == 0, err
    assert "no tokenizer was read from" in err
    code, _, err = command(*given, same)
    assert (code, err.strip()) == (0, "")


def test_a_student_folder_that_reads_texts_otherwise_is_refused(command, lines, tmp_path):
    teacher = saved(tmp_path / "teacher", "sequence-classification")
    other = saved(tmp_path / "other", "sequence-classification")
    described = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    described["normalizer"] = {"type": "Replace", "pattern": {"String": "cat"}, "content": "dog"}
    (other / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    code, _, err = command("distill", teacher, lines, tmp_path / "out", "--steps", 1, "--student", other)
    assert code == 1
    assert "have one vocabulary and read" in err
    assert not (tmp_path / "out").exists()


def test_a_head_at_random_is_told_and_teaches_nothing(command, lines, tmp_path):
    teacher = saved(tmp_path / "teacher", None)
    code, _, err = command("distill", teacher, lines, tmp_path / "out", "--layers", "0", "--task", "masked-lm")
    assert code == 1
    assert "has no trained head for masked-lm, so that it has nothing to teach" in err
    code, out, err = command("quantize", teacher, tmp_path / "out", "--task", "sequence-classification", "--json")
    assert code == 0
    assert "zoo: warning: " in err
    assert "it starts at random" in err
    assert json.loads(out)["path"]


def test_distill_says_what_is_missing(command, lines, tmp_path):
    teacher = saved(tmp_path / "teacher", "sequence-classification")
    assert command("distill", teacher, lines, tmp_path / "out")[0] == 2
    assert command("distill", teacher, lines, tmp_path / "out", "--layers", "0", "--recipe", "tinybrt")[0] == 2
    code, _, err = command("distill", teacher, lines, tmp_path / "out", "--layers", "0,x")
    assert (code, "'x'" in err) == (1, True)
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    code, _, err = command("distill", teacher, tmp_path / "empty.txt", tmp_path / "out", "--layers", "0")
    assert (code, "holds no text" in err) == (1, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_is_smaller_and_reloads_equal(command, tmp_path, bits):
    source = saved(tmp_path / "model", "sequence-classification", with_tokenizer=bits == 8)
    code, out, err = command("quantize", source, tmp_path / "small", "--bits", bits, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["bytes_after"] < report["bytes_before"] / 2
    assert report["tokenizer"] is (bits == 8)
    model = zoo.load(source).eval()
    zoo.apply(model, zoo.Int8() if bits == 8 else zoo.WeightOnly(bits=4, block=32, embeddings=True))
    batch = {
        "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    with torch.no_grad():
        assert torch.equal(zoo.load(tmp_path / "small").eval()(**batch).logits, model(**batch).logits)
