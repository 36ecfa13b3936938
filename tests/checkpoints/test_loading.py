"""Every way in runs the same checks: numbers that are not finite, copies that differ, a config that
contradicts itself.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.api.test_create import TINY, tiny
from zoo.checkpoints.streaming import Destination, convert_back
from zoo.errors import CheckpointError, ZooWarning
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


QUERY = "attention.self.query.weight", "attention.query.weight"
KINDS = {
    "int64": lambda x: x.long(),
    "uint8": lambda x: x.to(torch.uint8),
    "bool": lambda x: x.bool(),
    "complex64": lambda x: x.to(torch.complex64),
}


def at(tensors: dict[str, torch.Tensor], change: Any) -> None:
    """Change the first query's matrix, ours or theirs."""
    name = next(name for name in tensors if name.endswith(QUERY))
    tensors[name] = change(tensors[name]).contiguous()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", FOREIGN)
def test_a_foreign_matrix_that_holds_no_floats_is_refused_by_every_way_in(theirs, tmp_path, way, kind):
    tensors = changed(theirs, lambda tensors: at(tensors, KINDS[kind]))
    with pytest.raises(CheckpointError, match=rf"query\.weight' holds {kind}, where floats belong"):
        FOREIGN[way](theirs, tensors, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", OURS)
def test_a_matrix_of_ours_that_holds_no_floats_is_refused_by_every_way_in(ours, tmp_path, way, kind):
    changed(ours, lambda tensors: at(tensors, KINDS[kind]))
    with pytest.raises(CheckpointError, match=rf"query\.weight' holds {kind}, where floats belong"):
        OURS[way](ours, tmp_path / "out.safetensors")


@pytest.mark.parametrize("way", OURS)
def test_a_matrix_of_another_shape_is_refused_by_every_way_in(ours, tmp_path, way):
    changed(ours, lambda tensors: at(tensors, lambda x: x[:-1]))
    with pytest.raises(CheckpointError, match=r"query\.weight"):
        OURS[way](ours, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("way", OURS)
def test_a_floating_count_is_refused_by_every_way_in(tmp_path, way):
    """Packed weights are integers; floats in their place were read as codes."""
    model = zoo.apply(tiny("masked-lm"), zoo.WeightOnly(bits=4, block=8, embeddings=False))
    folder = zoo.save(model, tmp_path / "ours")
    if way in ("convert", "init_from"):  # which have no place for packed weights
        return
    OURS[way](folder, tmp_path / "before")
    changed(folder, lambda tensors: tensors.update({n: x.float() for n, x in tensors.items() if n.endswith(".codes")}))
    with pytest.raises(CheckpointError, match=r"codes' holds float32, where uint8 belong"):
        OURS[way](folder, tmp_path / "out.safetensors")


def test_floats_that_differ_in_dtype_are_widened_with_a_note_by_every_way_in(ours, theirs, tmp_path):
    said = "its floats differ in dtype.*taken as F32"
    for folder in (ours, theirs):
        changed(folder, lambda tensors: at(tensors, torch.Tensor.half))
        model = zoo.load(folder, task="masked-lm")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert re.search(said, str(model.load_report))
        assert re.search(said, str(zoo.verify(folder)))
        model(torch.tensor([[1, 2, 3]]))
    assert re.search(said, str(zoo.convert(ours, tmp_path / "back", to="hf-bert")))
    assert re.search(said, str(zoo.convert(theirs, tmp_path / "there")))
    for folder in ("back", "there"):
        assert {x.dtype for x in load_file(tmp_path / folder / "model.safetensors").values()} == {torch.float32}
    assert not re.search(said, str(zoo.load(ours, dtype=torch.bfloat16).load_report))


def test_a_scale_beside_integers_keeps_its_dtype(tmp_path):
    """float32 steps beside a bfloat16 model are no mixture."""
    model = zoo.apply(tiny("masked-lm").bfloat16(), zoo.Int8(embeddings=False))
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert {torch.int8, torch.float32, torch.bfloat16} <= set(kinds.values())
    loaded = zoo.load(zoo.save(model, tmp_path / "ours"))
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == kinds
    assert loaded.load_report.notes == ()


@pytest.mark.parametrize("way", OURS)
def test_float8_is_taken_only_with_the_dtype_that_it_becomes(ours, tmp_path, way):
    changed(ours, lambda tensors: at(tensors, lambda x: x.to(torch.float8_e4m3fn)))
    if way in ("load in another dtype", "init_from"):
        OURS[way](ours, tmp_path / "out.safetensors")
        return
    with pytest.raises(CheckpointError, match="float8_e4m3fn, in which no layer computes; say into which dtype"):
        OURS[way](ours, tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("norm_eps", -1.0, "must be above 0"),
        ("norm_eps", 0, "must be above 0"),
        ("norm_eps", float("nan"), "must be a finite number"),
        ("initializer_range", float("inf"), "must be a finite number"),
        ("initializer_range", -0.02, "at least 0"),
        ("dropout", 1.0, r"must lie in \[0, 1\)"),
        ("dropout", -0.1, r"must lie in \[0, 1\)"),
        ("hidden_size", -8, "must be at least 1"),
        ("vocab_size", 2**62, "no size or id is"),
        ("num_segments", 10**400, "no size or id is"),
        ("vocab_size", 2**31 - 1, "vocab_size|embeddings.token.weight|tensor of more than 2"),
    ],
)
@pytest.mark.parametrize("way", OURS)
def test_a_config_whose_numbers_cannot_be_meant_is_refused_by_every_way_in(ours, tmp_path, way, field, value, says):
    described = json.loads((ours / "config.json").read_text())
    described["config"][field] = value
    (ours / "config.json").write_text(json.dumps(described))
    with pytest.raises(zoo.ZooError, match=says):
        OURS[way](ours, tmp_path / "out.safetensors")


@pytest.mark.parametrize("way", ["load", "create"])
def test_a_head_that_starts_at_random_is_announced(ours, way):
    calls = {
        "load": lambda **o: zoo.load(ours, **o),
        "create": lambda **o: zoo.create("bert-base", pretrained=ours, **o),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls[way](task="masked-lm")
        calls[way]()
        tiny("sequence-classification")  # random on purpose, all of it
    with pytest.warns(
        ZooWarning, match=r"has no heads\.sequence_classification, which sequence-classification"
    ) as caught:
        model = calls[way](task="sequence-classification", num_labels=3)
    assert any("has no pooler" in str(warning.message) for warning in caught)
    assert caught[0].filename == __file__
    zoo.save(model, ours)
    with pytest.warns(ZooWarning, match=r"has heads\.sequence_classification in another shape"):
        calls[way](task="sequence-classification", num_labels=4)
