"""Commands that write a model keep its heads and its tokenizer, or say on standard error what is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.api.test_create import tiny
from tests.checkpoints.test_ways_out import word_pieces
from tests.cli.test_cli import run


@pytest.fixture
def command(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *map(str, arguments))


def foreign(folder: Path, task: str, tokenizer: Any = None) -> Path:
    """A model as transformers saves it."""
    zoo.save(tiny(task), folder / "ours", tokenizer)
    zoo.convert(folder / "ours", folder / "theirs", to="hf-bert")
    return folder / "theirs"


def commands(source: Path, folder: Path) -> dict[str, list[Any]]:
    """A call of each command that makes a model of another."""
    (folder / "texts").write_text("a dog\nthe cat\n")
    return {
        "prune": ["prune", source, folder / "out", "--weights", "0.5"],
        "quantize": ["quantize", source, folder / "out"],
        "distill": ["distill", source, folder / "texts", folder / "out", "--layers", "0", "--steps", "1"],
        "create": ["create", "bert-base", "--from", source, "--out", folder / "out"],
        "export": ["export", source, folder / "out.pt2", "--length", "8"],
    }


@pytest.mark.parametrize(
    ("name", "as_json"),
    [("prune", []), ("quantize", ["--json"]), ("distill", ["--json"]), ("create", []), ("export", ["--json"])],
)
def test_a_head_that_is_left_out_is_told(name, as_json, command, tmp_path):
    source = foreign(tmp_path, "pretraining", word_pieces())
    call = commands(source, tmp_path)[name]
    code, out, err = command(*call, *as_json)
    assert code == 0
    told = f"zoo: left out of {source}: the head masked_lm and next_sentence; --task keeps what one task has of them"
    assert told in err
    if as_json:
        json.loads(out)
    if name != "export":
        assert zoo.tokenizer(tmp_path / "out")("a dog")["input_ids"].shape == (1, 4)
        code, _, err = command(*call, "--task", "pretraining", *as_json)
        assert (code, "left out of" in err) == (0, False)
        assert zoo.load(tmp_path / "out").task == "pretraining"
    else:
        assert f"holds no tokenizer; zoo.tokenizer({str(source)!r})" in err


@pytest.mark.parametrize("name", ["prune", "distill", "create", "export"])
def test_the_head_of_a_classifier_is_kept(name, command, tmp_path):
    source = foreign(tmp_path, "sequence-classification", word_pieces())
    call = commands(source, tmp_path)[name]
    if name == "create":
        call += ["--task", "sequence-classification"]
    code, out, err = command(*call)
    assert code == 0
    assert "left out of" not in err
    if name == "export":
        assert "logits" in out
    else:
        assert zoo.load(tmp_path / "out").task == "sequence-classification"


@pytest.mark.parametrize("name", ["prune", "quantize", "create"])
def test_a_tokenizer_that_is_missing_is_told(name, command, tmp_path):
    code, _, err = command(*commands(foreign(tmp_path, "masked-lm"), tmp_path)[name])
    assert code == 0
    assert "zoo: saved without a tokenizer: " in err
    assert "the head masked_lm; --task masked-lm keeps it" in err


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    ("tokenizer", "how", "says"),
    [
        (False, ["theirs", "out"], "no tokenizer was written: "),
        (True, ["theirs", "out"], None),
        (True, ["theirs", "out.safetensors"], "a single file holds no tokenizer"),
        (False, ["theirs", "out.safetensors"], None),
        (False, ["ours", "out", "--to", "hf-bert"], "no tokenizer.json lies beside the source"),
        (True, ["ours", "out", "--to", "hf-bert"], None),
        (True, ["ours", "out.safetensors", "--to", "hf-bert"], "a single file holds no config.json and no tokenizer"),
    ],
)
def test_a_conversion_says_what_it_leaves_behind(tokenizer, how, says, as_json, command, tmp_path):
    foreign(tmp_path, "masked-lm", word_pieces() if tokenizer else None)
    code, out, err = command("convert", tmp_path / how[0], tmp_path / how[1], *how[2:], *as_json)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("zoo: ")] == (
        [line for line in err.splitlines() if says in line] if says else []
    )
    assert says is None or says in err
    if as_json:
        assert any(says in note for note in json.loads(out)["notes"]) if says else not json.loads(out)["notes"]


def test_heads_that_a_conversion_leaves_out_are_told(command, tmp_path):
    source = foreign(tmp_path, "masked-lm", word_pieces())
    tensors = load_file(source / "model.safetensors")
    extra = {
        "classifier.weight": torch.ones(2, 8),
        "classifier.bias": torch.ones(2),
        "crf.transitions": torch.ones(2, 2),
    }
    save_file({**tensors, **extra}, source / "model.safetensors", {"format": "pt"})
    code, _, err = command("convert", source, tmp_path / "out")
    assert code == 0
    assert "zoo: left out 'crf.transitions': a conditional random field over the tokens" in err
    assert "zoo: left out 'classifier.bias' and 1 more: head 'sequence_classification'" in err
    assert "name its class as architectures in the config" in err
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": None}))
    _, _, err = command("convert", source, tmp_path / "out")
    assert "zoo: left out 'classifier.bias' and 1 more: may be the head 'sequence_classification'" in err
