"""The `zoo` command as a user meets it: output, --json, exit codes 0, 1 and 2."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.cli.app import main
from zoo.data.regions.files import read_regions
from zoo.tokenization.wordpiece import wordpiece

TINY = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 16,
}
SETS = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def zoo_command(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


def test_list_long_says_what_a_model_is(zoo_command):
    code, out, _ = zoo_command("list", "xlm-mlm-tlm*", "--long")
    assert code == 0
    assert "15 languages" in " ".join(out.split())
    code, out, _ = zoo_command("list", "albert-*", "--long", "--json")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == zoo.list_models("albert-*")
    assert rows[0]["parameters"] == 11_683_584
    assert rows[0]["checkpoints"] == ["v2", "v1"]
    assert {"languages", "licences", "tasks", "proof", "pillar", "streams"} <= set(rows[0])


def test_list_and_info_print_names_or_json(zoo_command):
    code, out, _ = zoo_command("list", "albert-*", "--pillar", "lightweight")
    assert (code, out.split()) == (0, ["albert-base", "albert-large", "albert-rxn", "albert-xlarge", "albert-xxlarge"])
    code, out, _ = zoo_command("list", "albert-base", "--pretrained", "--json")
    assert (code, json.loads(out)) == (0, ["albert-base.v1", "albert-base.v2"])
    code, out, _ = zoo_command("info", "albert-base", "--json")
    assert json.loads(out)["parameters"] == 11_683_584
    code, out, _ = zoo_command("info", "albert-base")
    assert code == 0
    assert "parameters: 11,683,584" in out
    assert "key map tested" in out


def test_info_draws_the_schedule_of_two_streams(zoo_command):
    code, out, _ = zoo_command("info", "vilbert-base")
    assert code == 0
    assert "[both 0]  <=>   [both 0]" in out
    assert out.index("[text 0..5]") < out.index("[both 0]") < out.index("[image 5]") < out.index("[text 11]")


@pytest.fixture
def dump(tmp_path):
    """Two pictures as npz files; the second's box leaves its picture."""
    boxes = torch.tensor([[0.0, 0, 50, 40], [10, 10, 90, 80]])
    for name, shift in (("a", 0), ("b", 30)):
        numpy.savez(
            tmp_path / f"{name}.npz",
            features=torch.rand(2, 2048).numpy(),
            boxes=(boxes + shift).numpy(),
            image_width=100,
            image_height=80,
        )
    return tmp_path


def test_regions_check_names_the_pictures_that_cant_be_meant_and_fails(zoo_command, dump):
    code, out, _ = zoo_command("regions", "check", str(dump))
    assert code == 1
    assert "npz, 2 pictures of 2 to 2 regions, 2048 wide" in out
    assert "picture b: 1 boxes lie outside their picture" in out
    code, out, _ = zoo_command("regions", "check", str(dump), "--limit", "1", "--for", "vilbert-base", "--json")
    found = json.loads(out)
    assert (code, found["passed"], found["pictures"], found["widths"], found["model_width"]) == (
        0,
        True,
        1,
        [2048],
        2048,
    )


def test_regions_check_holds_the_width_against_a_model(zoo_command, dump):
    name = next(n for n in zoo.list_models(family="visualbert") if zoo.config(n).visual_size != 2048)
    code, out, _ = zoo_command("regions", "check", str(dump), "--limit", "1", "--for", name)
    assert (code, f"{name} reads features {zoo.config(name).visual_size} wide, these are 2048 wide" in out) == (1, True)
    code, _, err = zoo_command("regions", "check", str(dump), "--for", "bert-base")
    assert (code, "bert-base reads no regions" in err) == (1, True)
    code, _, err = zoo_command("regions", "check", str(dump), "--for", "vilbert-bas")
    assert (code, "vilbert-base" in err) == (2, True)


def test_regions_convert_writes_what_is_read_back(zoo_command, dump):
    target = dump / "regions.safetensors"
    code, out, err = zoo_command("regions", "convert", str(dump), str(target))
    assert (code, out, target.exists()) == (1, "", False)
    assert "picture b: 1 boxes lie outside" in err
    options = ("--limit", "1", "--detector", "bottom-up-attention", "--dtype", "float16", "--json")
    code, out, _ = zoo_command("regions", "convert", str(dump), str(target), *options)
    assert (code, json.loads(out)) == (0, {"pictures": 1, "path": str(target)})
    ((name, regions),) = read_regions(target)
    assert (name, regions.detector, regions.features.dtype) == ("a", "bottom-up-attention", torch.float16)
    assert zoo_command("regions", "check", str(target))[0] == 0
    code, _, err = zoo_command("regions", "convert", str(target), str(dump / "again.safetensors"), "--format", "xywh")
    assert (code, "leave format out" in err) == (1, True)
    assert zoo_command("regions", "convert", str(dump), str(target), "--dtype", "flaot16")[0] == 2


def test_create_convert_inspect_verify_and_back(zoo_command, tmp_path):
    code, out, _ = zoo_command(
        "create", "bert-base", *SETS, "--task", "masked-lm", "-o", str(tmp_path / "model"), "--json"
    )
    assert code == 0
    made = json.loads(out)
    assert made["saved"] == str(tmp_path / "model")
    assert made["parameters"] == zoo.load(tmp_path / "model").num_parameters()

    code, out, err = zoo_command(
        "convert", str(tmp_path / "model"), str(tmp_path / "theirs"), "--to", "hf-bert", "--json"
    )
    assert code == 0, err
    assert "cls.predictions.bias" in load_file(tmp_path / "theirs" / "model.safetensors")

    code, out, _ = zoo_command("inspect", str(tmp_path / "theirs"), "--json")
    found = json.loads(out)
    assert (code, found["layout"], found["family"], found["heads"]) == (0, "hf-bert", "bert", ["masked_lm"])

    code, out, err = zoo_command("convert", str(tmp_path / "theirs"), str(tmp_path / "ours.safetensors"))
    assert code == 0, err
    first, again = load_file(tmp_path / "model" / "model.safetensors"), load_file(tmp_path / "ours.safetensors")
    assert set(again) == set(first)
    assert all(torch.equal(first[name], again[name]) for name in first)

    code, out, _ = zoo_command("convert", str(tmp_path / "theirs"), str(tmp_path / "folder"), "--json")
    assert json.loads(out)["files"] == [
        str(tmp_path / "folder" / "model.safetensors")
    ]  # where it ends up, not where it was made
    code, out, _ = zoo_command("convert", str(tmp_path / "theirs"), str(tmp_path / "again"))
    assert f"wrote {tmp_path / 'again' / 'model.safetensors'}" in out.replace("\n", " ")
    assert "contract  passed" in out

    assert zoo_command("verify", str(tmp_path / "ours.safetensors"))[0] == 0
    loaded = zoo.load(tmp_path / "ours.safetensors", task="masked-lm")  # a single file describes itself
    assert torch.equal(loaded.token_table, first["embeddings.token.weight"])


def test_verify_fails_with_exit_code_1_where_a_value_was_changed(zoo_command, tmp_path):
    zoo_command("create", "bert-base", *SETS, "-o", str(tmp_path / "model"))
    path = tmp_path / "model" / "model.safetensors"
    zoo_command("convert", str(tmp_path / "model"), str(tmp_path / "theirs"), "--to", "hf-bert")
    zoo_command("convert", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    path = tmp_path / "ours" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    code, out, _ = zoo_command("verify", str(tmp_path / "ours"), "--json")
    assert code == 1
    assert json.loads(out)["checks"][0]["passed"] is False


def test_what_goes_wrong_is_one_line_and_an_exit_code(zoo_command, tmp_path):
    code, _, err = zoo_command("info", "albert-bse")
    assert (code, err.count("\n")) == (2, 1)
    assert "'albert-base'" in err
    save_file({"x": torch.zeros(2)}, tmp_path / "strange.safetensors")
    code, _, err = zoo_command("convert", str(tmp_path / "strange.safetensors"), str(tmp_path / "out.safetensors"))
    assert code == 1
    assert "no known layout fits" in err
    assert not (tmp_path / "out.safetensors").exists()
    assert zoo_command("list", "--no-such-option")[0] == 2
    assert zoo_command("create", "bert-base", "--set", "num_heads")[0] == 2


def test_the_cache_is_listed_verified_and_pruned(zoo_command, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_HOME", str(tmp_path))
    for call in (("list",), ("verify",), ("prune", "--dry-run")):
        code, out, err = zoo_command("cache", *call, "--json")
        assert (code, json.loads(out)) == (0, []), err


def test_python_dash_m_runs_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "list", "albert-base"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "albert-base")


def test_prune_writes_a_smaller_model_that_loads(zoo_command, tmp_path):
    zoo.save(zoo.create("bert-base", task="sequence-classification", num_labels=3, **TINY), tmp_path / "whole")
    options = ("--weights", "0.8", "--heads", "0.5", "--units", "0.25", "--layers", "1", "--json")
    code, out, _ = zoo_command("prune", str(tmp_path / "whole"), str(tmp_path / "small"), *options)
    assert code == 0
    said = json.loads(out)
    assert len(said["steps"]) == 4
    assert said["bytes"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    small = zoo.load(tmp_path / "small")
    assert [type(t).__name__ for t in small.model.techniques] == [
        "LayerPruning",
        "HeadPruning",
        "FeedForwardPruning",
        "WeightPruning",
    ]
    assert small.model.encoder.blocks[0].attention.num_heads == 1
    assert small.model.encoder.blocks[0].feed_forward.up.out_features == 9
    code, out, _ = zoo_command("prune", str(tmp_path / "whole"), str(tmp_path / "dense"), "--weights", "0.5", "--dense")
    assert code == 0
    assert "wrote" in out
    assert "embeddings.token.weight" in load_file(tmp_path / "dense" / "model.safetensors")
    assert zoo_command("prune", str(tmp_path / "whole"), str(tmp_path / "none"))[0] == 1
    assert zoo_command("prune", str(tmp_path / "whole"), str(tmp_path / "none"), "--layers", "one")[0] == 1


def test_bench_times_every_form_and_shows_how_near_each_is(zoo_command, tmp_path):
    zoo.save(zoo.create("bert-base", generator=torch.Generator().manual_seed(0), **TINY), tmp_path / "model")
    shape = ("--rows", "3", "--length", "10", "--real", "0.5", "--rounds", "1")
    code, out, _ = zoo_command("bench", str(tmp_path / "model"), *shape, "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["form"] for row in found["forms"]] == ["as loaded", "padded", "float32", "bfloat16", "int8"]
    assert all(row["cosine"] > 0.99 for row in found["forms"])
    assert 0.3 < found["real"] < 0.7
    code, out, _ = zoo_command("export", str(tmp_path / "model"), str(tmp_path / "model.pt2"))
    assert code == 0
    assert "input_ids, attention_mask, token_type_ids" in out


def test_fill_mask_and_embed_serve_a_saved_model_or_say_what_is_missing(zoo_command, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "barks"]
    tokenizer = wordpiece({word: number for number, word in enumerate(words)})
    sizes = TINY | {"vocab_size": len(words)}
    model = zoo.create("bert-base", task="masked-lm", generator=torch.Generator().manual_seed(0), **sizes)
    with torch.no_grad():
        model.heads["masked_lm"].bias[words.index("dog")] = 50
    folder = str(zoo.save(model, tmp_path / "model", tokenizer))
    code, out, _ = zoo_command("fill-mask", "a [MASK] barks", "--model", folder, "--json")
    assert code == 0
    (place,) = json.loads(out)
    assert place[0]["token"] == "dog"
    assert place[0]["probability"] > 0.99
    code, _, err = zoo_command("fill-mask", "a dog barks", "--model", folder)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "write [MASK] where a word is missing" in err
    code, out, _ = zoo_command("embed", "a dog", "a cat", "--model", folder, "--json")
    assert [len(vector) for vector in json.loads(out)["embeddings"]] == [TINY["hidden_size"]] * 2
