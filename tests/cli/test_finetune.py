"""`zoo finetune` and `zoo evaluate`, from a table to a folder and its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import zoo
from tests.cli.test_cli import SETS, zoo_command  # noqa: F401
from tests.training.test_loop import SIZES, rows, tokenizer  # noqa: F401


@pytest.fixture
def base(tokenizer, tmp_path):  # noqa: F811
    model = zoo.create("bert-base", task="masked-lm", generator=torch.Generator().manual_seed(0), **SIZES)
    return str(zoo.save(model, tmp_path / "base", tokenizer))


@pytest.fixture
def tables(tmp_path):
    found = []
    for name, seed in (("train.tsv", 0), ("dev.csv", 1)):
        comma = name.endswith("csv")
        lines = [f"sentence{',' if comma else chr(9)}gold"]
        lines += [f"{row['text']}{',' if comma else chr(9)}{row['label']}" for row in rows(48, seed)]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        found.append(str(tmp_path / name))
    return found


TASK = ("--task", "sequence-classification")


def test_a_folder_is_fine_tuned_and_scored(zoo_command, base, tables, tmp_path):  # noqa: F811
    train, dev = tables
    out = str(tmp_path / "out")
    options = (*TASK, "--train", train, "--eval", dev, "--out", out, "--epochs", "2", "--lr", "0.005")
    code, text, _ = zoo_command("finetune", base, *options, "--technique", "lora:rank=2,alpha=4", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["task"] == "sequence-classification"
    assert 0 < found["parameters"]["trained"] < found["parameters"]["all"]
    assert {"eval_accuracy", "eval_macro_f1", "eval_f1"} <= set(found["best"])
    model = zoo.load(out)
    assert model.options["labels"] == ["high", "low"]
    assert any("lora" in name for name, _ in model.named_parameters())
    code, text, _ = zoo_command("evaluate", out, dev, "--json")
    assert code == 0
    assert json.loads(text)["figures"]["accuracy"] == pytest.approx(found["best"]["eval_accuracy"])
    code, text, _ = zoo_command("finetune", base, *options, "--technique", "LoRA:rank=2,alpha=4", "--resume")
    assert code == 0  # it was finished: nothing is trained again
    assert "accuracy" in text
    assert "saved in" in text


def test_training_is_adversarial_where_it_is_said(zoo_command, base, tables, tmp_path):  # noqa: F811
    train, _ = tables
    history = []
    for number, more in enumerate(([], ["--adversarial", "text_lr=0.5", "--adversarial", "steps=2"])):
        out = ("--train", train, "--out", str(tmp_path / str(number)), "--steps", "3")
        code, text, _ = zoo_command("finetune", base, *TASK, *out, *more, "--json")
        assert code == 0
        history.append(json.loads(text)["history"])
    assert history[0] != history[1]
    out = ("--train", train, "--out", str(tmp_path / "out"), "--steps", "3")
    code, _, err = zoo_command("finetune", base, *TASK, *out, "--adversarial", "text_rate=0.5")
    assert code != 0
    assert "text_lr" in err


def test_a_name_begins_at_random_only_where_it_is_said(zoo_command, base, tables, tmp_path):  # noqa: F811
    train, _ = tables
    out = ("--train", train, "--out", str(tmp_path / "out"), "--steps", "2")
    code, text, _ = zoo_command(
        "finetune", "bert-base", *TASK, *out, *SETS, "--set", "vocab_size=45", "--random", "--tokenizer", base
    )
    assert code == 0, text
    assert zoo.load(tmp_path / "out").config.hidden_size == 8
    code, _, err = zoo_command("finetune", base, *TASK, *out, "--random")
    assert code == 1
    assert "--random builds a registered name" in err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--task", "sequence-classificatoin"), 2, "did you mean 'sequence-classification'"),
        ((), 1, "masked-lm"),
        ((*TASK, "--technique", "lorra:rank=2"), 2, "did you mean 'lora'"),
        ((*TASK, "--technique", "lora:rnk=2"), 2, "did you mean 'rank'"),
        ((*TASK, "--column", "txt=sentence"), 2, "did you mean 'text'"),
        ((*TASK, "--column", "text=sentense"), 2, "did you mean 'sentence'"),
        ((*TASK, "--metric", "f5", "--patience", "2"), 1, "give rows to evaluate on"),
        ((*TASK, "--lr", "0"), 1, "lr=0.0 must be a number above zero"),
        ((*TASK, "--set", "hidden_size=3"), 1, "hidden_size"),
        (("--task", "visual-question-answering"), 1, "learns from pictures; give the dump"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(zoo_command, base, tables, tmp_path, options, code, said):  # noqa: F811
    found = zoo_command("finetune", base, "--train", tables[0], "--out", str(tmp_path / "out"), *options)
    if options == ():  # the folder says what it is for
        assert found[0] == 0
        assert zoo.load(tmp_path / "out").task == said
        return
    assert found[0] == code, found
    assert said in found[2]
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_needs_one_named(zoo_command, tables, tmp_path):  # noqa: F811
    model = zoo.create("bert-base", task="masked-lm", generator=torch.Generator().manual_seed(0), **SIZES)
    bare = str(zoo.save(model, tmp_path / "bare"))
    code, _, said = zoo_command("finetune", bare, *TASK, "--train", tables[0], "--out", str(tmp_path / "out"))
    assert code == 1
    assert "holds no tokenizer; name one by --tokenizer" in said
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_trained_over_itself(zoo_command, base, tables):  # noqa: F811
    before = {path: path.read_bytes() for path in Path(base).iterdir()}
    code, _, said = zoo_command("finetune", base, *TASK, "--train", tables[0], "--out", f"{base}/")
    assert code == 1
    assert "is the folder of the model to train" in said
    assert {path: path.read_bytes() for path in Path(base).iterdir()} == before
