"""Names, variants, configs: what is listed, what is refused, and that listing needs no torch."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import zoo
from zoo.errors import ConfigError, TaskError, UnknownNameError
from zoo.models.base.config import Config, free
from zoo.models.base.model import Model
from zoo.models.base.outputs import Encoded
from zoo.registry import variants as registry


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_listing_and_configs_of_names_import_no_torch():
    code = (
        "import sys, zoo\n"
        "names = zoo.list_models('*bert*', task='pretraining', pretrained=True)\n"
        "print(len(names), 'torch' in sys.modules)"
    )
    count, torch_there = fresh(code).split()
    assert int(count) > 30
    assert torch_there == "False"


@pytest.mark.parametrize(
    "first",
    ["zoo.models.base.config", "zoo.api.create", "zoo.checkpoints.convert", "zoo.formats.opening", "zoo.api.info"],
)
def test_public_functions_stay_functions_whatever_is_imported_first(first):
    code = (
        f"import importlib, zoo; importlib.import_module({first!r})\n"
        "print(all(callable(getattr(zoo, name)) for name in ('config', 'create', 'convert', 'info')))"
    )
    assert fresh(code) == "True"


def test_names_come_in_natural_order_with_tags_where_weights_are_asked_for():
    names = zoo.list_models("bert-l*")
    assert names.index("bert-l2-h128") < names.index("bert-l10-h128")
    assert zoo.list_models("albert-base*", pretrained=True) == ["albert-base.v1", "albert-base.v2"]
    assert zoo.list_models("minilm-l6-h384.all*", pretrained=True) == ["minilm-l6-h384.all-minilm-l6-v2"]
    assert all("." not in name for name in zoo.list_models())


def test_filters_select_by_pillar_streams_family_and_task():
    assert "bert-base-multilingual" in zoo.list_models(pillar="cross-lingual")
    assert "albert-base" not in zoo.list_models(pillar="cross-lingual")
    assert set(zoo.list_models(family="albert")) == {
        "albert-base",
        "albert-large",
        "albert-rxn",
        "albert-xlarge",
        "albert-xxlarge",
    }
    assert "albert-base" not in zoo.list_models(task="next-sentence")
    assert "bert-base" in zoo.list_models(task="next-sentence", streams=1)


def test_how_streams_meet_is_said_in_known_words():
    assert {variant.fusion for variant in registry._shipped()[0].values()} <= set(registry.FUSIONS)
    assert zoo.list_models(fusion="co-attention", streams=2) == zoo.list_models(fusion="co-attention")
    assert zoo.list_models(fusion="towers", streams=2) == []  # two towers are not two streams
    with pytest.raises(UnknownNameError, match="did you mean 'towers'"):
        zoo.list_models(fusion="tower")


def test_every_miniature_of_the_paper_is_registered():
    sizes = {(c.num_layers, c.hidden_size) for c in (zoo.config(name) for name in zoo.list_models("bert-l*-h*"))}
    assert sizes == {(layers, hidden) for layers in (2, 4, 6, 8, 10, 12) for hidden in (128, 256, 512, 768)}
    assert all(
        zoo.config(name).num_heads * 64 == zoo.config(name).hidden_size for name in zoo.list_models("bert-l*-h*")
    )


def test_a_tag_brings_its_own_values():
    assert zoo.config("albert-base").activation == "gelu_tanh"
    assert zoo.config("albert-base.v1").activation == "gelu"
    assert zoo.config("albert-base.v1").dropout == 0.1
    assert zoo.config("bert-base.google-cased").vocab_size == 28_996
    assert zoo.config("bert-xlarge").hidden_size == 2048


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: zoo.config("albert-bse"), "'albert-base'"),
        (lambda: zoo.create("albert-base.v3"), "'v2'"),
        (lambda: zoo.create("albert-base", task="masked-ml"), "'masked-lm'"),
        (lambda: zoo.create("albert-base", hiden_size=3), "'hidden_size'"),
        (lambda: zoo.create("albert-base", task="sequence-classification", num_label=3), "'num_labels'"),
        (lambda: zoo.list_models(pillar="light"), "'lightweight'"),
        (lambda: zoo.load({}, layout="hf-albrt"), "'hf-albert'"),
        (lambda: zoo.config("bert-base").replace(num_layer=3), "'num_layers'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_closest(call, says):
    with pytest.raises(UnknownNameError, match=says) as caught:
        call()
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, zoo.ZooError)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"hidden_size": 100, "num_heads": 12},
            "num_heads=12 does not divide hidden_size=100; the nearest that does is 10",
        ),
        ({"num_groups": 13}, "num_groups=13 must lie between 1 and num_layers=12"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"hidden_size": 768.0}, "hidden_size must be int, got 768.0"),
        ({"dropout": 1.0}, "dropout=1.0 must lie in"),
        ({"num_layers": True}, "num_layers must be int, got True"),
    ],
)
def test_a_contradictory_config_says_what_would_be_right(values, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        zoo.create("albert-base", device="meta", **values)


def test_a_task_that_does_not_fit_names_those_that_do():
    with pytest.raises(TaskError, match="lacks a next_sentence head; tasks that fit: masked-lm, sentence-order"):
        zoo.create("albert-base", task="next-sentence")


@dataclass(frozen=True, kw_only=True)
class TinyConfig(Config):
    vocab_size: int = 11
    hidden_size: int = 4
    initializer_range: float = free(0.02)


class Tiny(Model):
    """A bag of words: the smallest thing that is a model."""

    Config = TinyConfig

    def __init__(self, config: TinyConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Encoded:
        return Encoded(self.table(input_ids))


def test_a_config_that_lacks_what_models_need_is_refused_by_name():
    @dataclass(frozen=True, kw_only=True)
    class Bare(Config):
        vocab_size: int = 11

    class Lacking(Tiny):
        Config = Bare

    with pytest.raises(ConfigError, match="Bare lacks hidden_size and initializer_range"):
        zoo.register("tiny-bare", Lacking)
    assert "tiny-bare" not in zoo.list_models()


def test_a_users_model_is_created_saved_and_loaded_like_ours(tmp_path):
    zoo.register("tiny-bag", Tiny, {"hidden_size": 6}, pillar="lightweight", paper="nobody, 2026")
    try:
        assert "tiny-bag" in zoo.list_models("tiny*", pillar="lightweight")
        model = zoo.create("tiny-bag", vocab_size=13)
        assert model.table.weight.shape == (13, 6)
        again = zoo.load(zoo.save(model, tmp_path / "bag"))
        assert torch.equal(model.table.weight, again.table.weight)
        assert zoo.info("tiny-bag")["parameters"] == 11 * 6
        assert "sentence-embedding" in zoo.info("tiny-bag")["tasks"]
        with pytest.raises(ConfigError, match="registered already"):
            zoo.register("tiny-bag", Tiny)
    finally:
        zoo.unregister("tiny-bag")
    assert "tiny-bag" not in zoo.list_models()


def test_an_entry_point_registers_its_models_when_they_are_first_listed(monkeypatch):
    class Point:
        name, value = "bags", "bags:register"

        @staticmethod
        def load():
            return lambda: zoo.register("plugged-bag", Tiny)

    real = importlib.metadata.entry_points
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda **kw: [Point()] if kw.get("group") == "zoo.models" else real(**kw)
    )
    monkeypatch.setattr(registry, "_loaded_entry_points", False)
    try:
        assert "plugged-bag" in zoo.list_models()
    finally:
        zoo.unregister("plugged-bag")


class Unforeseen(BaseException):
    """What no `except Exception` catches."""


@pytest.mark.parametrize(
    "error", [ImportError("no such package"), SystemExit("no such package"), Unforeseen("no such package")]
)
def test_a_broken_plug_in_warns_and_hides_nobody(monkeypatch, error):
    class Point:
        name, value = "broken", "broken:register"

        @staticmethod
        def load():
            raise error

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [Point()])
    monkeypatch.setattr(registry, "_loaded_entry_points", False)
    with pytest.warns(UserWarning, match="'broken'.*no such package"):
        assert "bert-base" in zoo.list_models()


def test_info_counts_on_the_meta_device_and_names_tasks_and_proof():
    found = zoo.info("albert-base")
    assert found["parameters"] == 11_683_584 == found["parameters_stated"]["count"]
    assert sum(found["parameters_by_part"].values()) == found["parameters"]
    assert {"masked-lm", "pretraining", "sequence-classification"} <= set(found["tasks"])
    assert found["checkpoints"]["v2"]["verified"] == "key map tested, file never downloaded"
    assert (
        zoo.info("minilm-l6-h384")["checkpoints"]["all-minilm-l6-v2"]["verified"]
        == "file downloaded and checked (the first source)"
    )
    json.dumps(found)
