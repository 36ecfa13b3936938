"""A config.json with values of any type, ours or another library's, is taken or refused by the zoo's own
errors, by every way in. `benchmarks/odd_configs.py` tries every value at every place.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoo
from benchmarks.odd_configs import ODD, TEXTS, places, put, ways, without
from tests.api.test_create import tiny
from zoo.errors import CheckpointError, ConfigError, ZooError


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("configs")
    plain = tiny("sequence-classification", num_labels=3)
    zoo.convert(zoo.save(plain, folder / "plain"), folder / "theirs", to="hf-bert")
    return {"ours": zoo.save(zoo.apply(plain, zoo.LoRA(rank=2)), folder / "ours"), "theirs": folder / "theirs"}


def changed(text: str) -> Iterator[str]:
    """Each place with one odd value after the other, and without it; what is no config at all."""
    whole, odd = json.loads(text), itertools.cycle(ODD)
    for place in places(whole):
        yield json.dumps(put(whole, place, next(odd)))
        if place:
            yield json.dumps(without(whole, place))
    yield from TEXTS


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_an_odd_config_is_taken_or_refused_by_every_way_in(folders, tmp_path, whose):
    config = folders[whose] / "config.json"
    before = config.read_text()
    try:
        for text, (_, way) in zip(
            changed(before), itertools.cycle(ways(folders[whose], tmp_path).items()), strict=False
        ):
            config.write_text(text)
            with warnings.catch_warnings(), contextlib.suppress(ZooError):
                warnings.simplefilter("ignore")
                way()
    finally:
        config.write_text(before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"zoo_format": "1"}, "has zoo_format='1', which must be int"),
        ({"zoo_format": True}, "has zoo_format=True, which must be int"),
        ({"class": None}, "has class=None, which must be str"),
        ({"config": []}, r"has config=\[\], which must be dict"),
        ({"task": {}}, "has task={}, which must be str or null"),
        ({"options": "x"}, "has options='x', which must be dict"),
        ({"techniques": {}}, "has techniques={}, which must be list"),
        ({"hints": {"masked-lm": 3}}, "hints for 'masked-lm' that are no options: 3"),
    ],
)
def test_a_description_of_another_type_is_refused_by_name(folders, tmp_path, change, says):
    described = json.loads((folders["ours"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(described | change))
    (tmp_path / "model.safetensors").write_bytes((folders["ours"] / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=says):
        zoo.load(tmp_path)


@pytest.mark.parametrize("name", ["", "a.b", "keys", "forward"])
def test_a_technique_with_a_name_that_torch_cannot_take_is_refused(name):
    for make in (zoo.LoRA, zoo.BottleneckAdapter, zoo.PrefixTuning, zoo.IA3):
        with pytest.raises(ConfigError, match=r"can't be called|name can't"):
            make(name=name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_config_that_is_a_fifo_is_named_and_not_taken_for_none(tmp_path):
    folder = zoo.save(zoo.create("bert-base", num_layers=1, hidden_size=8, num_heads=2, vocab_size=9), tmp_path / "m")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    said = "config.json is a FIFO, not a regular file"
    assert said in zoo.inspect(folder)["why"]
    with pytest.raises(CheckpointError, match=said):
        zoo.load(folder)
