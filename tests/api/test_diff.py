"""`zoo.diff` says what differs, and only that."""

from __future__ import annotations

import json

import pytest
import torch

import zoo
from tests import strategies as st
from tests.cli.test_cli import zoo_command  # noqa: F401
from zoo.errors import UnknownNameError


@pytest.fixture
def folders(tmp_path):
    """A model, the same with one tensor moved and a technique, and one of another size."""
    first = st.build("bert", st.small_config("bert"), "sequence-classification", num_labels=2)
    zoo.save(first, tmp_path / "first")
    with torch.no_grad():
        first.model.embeddings.norm.weight.mul_(1.5)
    zoo.apply(first, zoo.LoRA(rank=2))
    zoo.save(first, tmp_path / "second")
    zoo.save(st.build("albert", st.small_config("albert")), tmp_path / "third")
    return tmp_path


def test_names_are_compared_by_what_they_are():
    found = zoo.diff("bert-base", "albert-base")
    assert found.config["embedding_size"] == (None, 128)
    assert found.config["activation"] == ("gelu", "gelu_tanh")
    assert "num_layers" not in found.config
    assert found.parameters["all"] == (109_482_240, 11_683_584)
    assert found.sharing["encoder"] == ("12 blocks, each once", "12 runs of 1 block")
    assert found.objective[1] == ("masked_lm", "sentence_order")
    assert found.tensors is None
    assert "parameters of all: 109,482,240 | 11,683,584, 0.11 x" in str(found)
    assert zoo.diff("bert-base", "bert-base").same


def test_checkpoints_are_compared_by_their_values(folders):
    same = zoo.diff(folders / "first", folders / "first")
    assert same.same
    assert "are the same" in str(same)
    found = zoo.diff(folders / "first", folders / "second")
    assert not found.same
    assert found.config == {}
    assert list(found.tensors["values"]) == ["embeddings.norm.weight"]
    assert found.tensors["values"]["embeddings.norm.weight"] == pytest.approx(0.5)
    assert all("lora" in name for name in found.tensors["right"])
    assert found.tensors["left"] == []
    assert "rank=2" in found.techniques[1][0]
    other = zoo.diff(folders / "first", folders / "third")
    assert other.family == ("bert", "albert")
    assert other.task == ("sequence-classification", None)
    assert other.parameters["heads.sequence_classification"][1] == 0


def test_the_command_says_it_in_words_and_json(zoo_command, folders):  # noqa: F811
    code, out, _ = zoo_command("diff", str(folders / "first"), str(folders / "second"))
    assert code == 0
    assert "embeddings.norm.weight: differs by 5.00e-01 of its norm" in out
    code, out, _ = zoo_command("diff", "bert-base", "bert-large", "--json")
    assert json.loads(out)["config"]["num_layers"] == [12, 24]
    assert not json.loads(out)["same"]
    code, _, err = zoo_command("diff", "bert-base", "bert-bse")
    assert code == 2
    assert "bert-base" in err
    with pytest.raises(UnknownNameError):
        zoo.diff("bert-bse", "bert-base")


def test_the_version_and_the_matrix_by_patterns(zoo_command):  # noqa: F811
    code, out, _ = zoo_command("--version")
    assert (code, out.strip()) == (0, f"zoo {zoo.__version__}")
    code, out, _ = zoo_command("matrix", "--family", "m*", "--technique", "i-bert")
    assert code == 0
    assert "not mobilebert" not in out.splitlines()[0]
    assert all(len(line) < 400 for line in out.splitlines())
    code, out, _ = zoo_command("matrix", "--family", "albert", "--technique", "sharing", "--json")
    assert [cell["state"] for cell in json.loads(out)["cells"]] == ["impossible"]
    code, _, err = zoo_command("matrix", "--technique", "lorra")
    assert code == 2
    assert "did you mean 'LoRA'" in err
