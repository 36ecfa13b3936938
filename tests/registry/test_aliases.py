"""The hub's names for our tags: found, listed, and never in the way of ours."""

from __future__ import annotations

import json

import pytest

import zoo
from tests.cli.test_cli import zoo_command  # noqa: F401
from zoo.errors import CheckpointError, UnknownNameError
from zoo.registry import variants as registry
from zoo.registry.records import aliases, records


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("bert-base-uncased", "bert-base.google"),
        ("google-bert/bert-base-uncased", "bert-base.google"),
        ("google/mobilebert-uncased", "mobilebert-base.google"),
        ("all-MiniLM-L6-v2", "minilm-l6-h384.all-minilm-l6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "minilm-l6-h384.all-minilm-l6-v2"),
        ("albert-base-v1", "albert-base.v1"),
    ],
)
def test_a_hub_name_means_a_tag(alias, name):
    assert ".".join(filter(None, registry.split(alias))) == name
    assert zoo.config(alias) == zoo.config(name)
    assert zoo.info(alias)["name"] == name


def test_every_alias_leads_to_a_tag_that_has_that_repository():
    for alias, name in aliases().items():
        assert registry.resolve(alias)[0].name == records()[name].variant or alias in registry._all()
        assert any(alias in source.lower() for source in records()[name].sources)


def test_our_own_names_come_first():
    assert registry.split("roberta-base") == ("roberta-base", None)
    for name in zoo.list_models():
        assert registry.split(name) == (name, None)


def test_a_hub_name_that_is_nearly_right_is_suggested():
    with pytest.raises(UnknownNameError, match="bert-base-uncased"):
        zoo.create("bert-base-uncase")
    with pytest.raises(CheckpointError, match="does not exist"):
        zoo.load("nobody/bert-base-uncased-no")


def test_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_heads": 2, "num_layers": 1, "intermediate_size": 8}
    zoo.save(zoo.create("bert-base", **sizes), "bert-base-uncased")
    assert zoo.load("bert-base-uncased").config.hidden_size == 8


def test_list_shows_them(zoo_command):  # noqa: F811
    code, out, _ = zoo_command("list", "bert-base", "--aliases")
    assert code == 0
    assert any(line.split()[0] == "bert-base.google" and "bert-base-uncased" in line for line in out.splitlines())
    code, out, _ = zoo_command("list", "albert-base", "--aliases", "--json")
    assert "albert/albert-base-v2" in json.loads(out)["albert-base.v2"]
