"""Every way in runs the same checks: numbers that are not finite, copies that differ, a config that
contradicts itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.api.test_create import TINY, tiny
from zoo.checkpoints.streaming import Destination, convert_back
from zoo.errors import CheckpointError
from zoo.formats.opening import open_archive
from zoo.maps import layouts

VILBERT = {
    **TINY,
    "visual_size": 6,
    "image_hidden_size": 8,
    "image_num_layers": 2,
    "image_num_heads": 2,
    "image_intermediate_size": 8,
    "co_hidden_size": 8,
    "co_num_heads": 2,
    "text_connections": (1,),
    "image_connections": (1,),
}
TABLE = "embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"


@pytest.fixture
def ours(tmp_path) -> Path:
    return zoo.save(tiny("masked-lm"), tmp_path / "ours")


@pytest.fixture
def theirs(ours, tmp_path) -> Path:
    """A folder in the layout hf-bert that stores the decoder's copy of the token table."""
    keymap, config = layouts.load("hf-bert"), json.loads((ours / "config.json").read_text())["config"]
    with open_archive(ours) as archive:
        convert_back(archive, keymap, config, Destination(tmp_path / "theirs"), ties=True)
    return tmp_path / "theirs"


def changed(folder: Path, change: Any) -> dict[str, torch.Tensor]:
    """A folder's tensors, changed there and given back."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def failing(found: Any) -> None:
    """A failed check as the error that the other ways raise."""
    if not found.ok:
        raise CheckpointError(found.failed.why)


FOREIGN = {
    "load a dict": lambda folder, tensors, out: zoo.load(tensors, config=folder / "config.json", task="masked-lm"),
    "load a folder": lambda folder, tensors, out: zoo.load(folder, task="masked-lm"),
    "load a file": lambda folder, tensors, out: zoo.load(folder / "model.safetensors", task="masked-lm"),
    "create": lambda folder, tensors, out: zoo.create("bert-base", pretrained=folder, task="masked-lm"),
    "init_from": lambda folder, tensors, out: zoo.create("vilbert-base", init_from=folder, **VILBERT),
    "convert a dict": lambda folder, tensors, out: zoo.convert(tensors, out, config=folder / "config.json"),
    "convert a folder": lambda folder, tensors, out: zoo.convert(folder, out),
    "verify a dict": lambda folder, tensors, out: failing(zoo.verify(tensors, config=folder / "config.json")),
    "verify": lambda folder, tensors, out: failing(zoo.verify(folder)),
}
OURS = {
    "load": lambda folder, out: zoo.load(folder),
    "load a file": lambda folder, out: zoo.load(folder / "model.safetensors"),
    "load in another dtype": lambda folder, out: zoo.load(folder, dtype=torch.float64),
    "create": lambda folder, out: zoo.create("bert-base", pretrained=folder),
    "init_from": lambda folder, out: zoo.create("vilbert-base", init_from=folder, **VILBERT),
    "convert": lambda folder, out: zoo.convert(folder, out, to="hf-bert"),
    "verify": lambda folder, out: failing(zoo.verify(folder)),
}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("way", FOREIGN)
def test_a_foreign_token_table_that_is_not_finite_is_refused_by_every_way_in(theirs, tmp_path, way, bad):
    def spoil(tensors):
        tensors[DECODER][3, 1] = bad
        next(tensor for name, tensor in tensors.items() if name.endswith(TABLE))[3, 1] = bad

    FOREIGN[way](theirs, load_file(theirs / "model.safetensors"), tmp_path / "before.safetensors")
    tensors = changed(theirs, spoil)
    with pytest.raises(CheckpointError, match=r"embeddings\.\w+\.weight' is not finite"):
        FOREIGN[way](theirs, tensors, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("way", OURS)
def test_a_token_table_of_ours_that_is_not_finite_is_refused_by_every_way_in(ours, tmp_path, way, bad):
    OURS[way](ours, tmp_path / "before.safetensors")
    changed(ours, lambda tensors: tensors["embeddings.token.weight"][3].fill_(bad))
    with pytest.raises(CheckpointError, match=r"embeddings\.\w+\.weight' is not finite"):
        OURS[way](ours, tmp_path / "out.safetensors")


@pytest.mark.parametrize("way", FOREIGN)
def test_a_stored_copy_that_differs_is_refused_by_every_way_in(theirs, tmp_path, way):
    tensors = changed(theirs, lambda tensors: tensors[DECODER][3].add_(1e-6))
    with pytest.raises(CheckpointError, match=re.escape(f"'{DECODER}' should be a copy of")):
        FOREIGN[way](theirs, tensors, tmp_path / "out.safetensors")


def test_a_number_too_large_for_the_dtype_asked_for_is_refused(ours):
    changed(ours, lambda tensors: tensors["embeddings.norm.bias"][0].fill_(1e6))
    zoo.load(ours)
    with pytest.raises(CheckpointError, match="not finite in F16: the value is too large for it"):
        zoo.load(ours, dtype=torch.float16)


def test_a_large_sum_is_not_taken_for_a_number_that_is_not_finite(ours):
    changed(ours, lambda tensors: tensors["embeddings.token.weight"].fill_(3e38))
    assert float(zoo.load(ours).token_table.detach()[0, 0]) == pytest.approx(3e38)


def test_a_loaded_model_says_what_was_checked(ours, theirs):
    for model in (zoo.load(ours), zoo.load(theirs, task="masked-lm")):
        found = {check.name: check.passed for check in model.load_report.checks.results}
        assert found == {"hash": None, "keys": True, "values": True, "ties": True, "contract": True}
    assert "2 stored copies equal what they copy" in str(zoo.load(theirs, task="masked-lm").load_report.checks)
    started = zoo.create("vilbert-base", init_from=theirs, **VILBERT).load_report.checks
    assert started.ok
    assert started.last_passed == "contract"
