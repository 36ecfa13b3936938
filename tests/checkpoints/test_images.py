"""How a model wants its pictures goes with it: by its name, through saving, loading and converting."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy
import pytest
import torch
import transformers
from PIL import Image

import zoo
from tests import towers
from zoo.checkpoints.binding import damage
from zoo.data.images.files import read_images
from zoo.data.images.images import Images
from zoo.errors import CheckpointError, InputError, UnknownNameError
from zoo.models.clip import Clip
from zoo.registry import variants

FILE = "preprocessor_config.json"
OTHER = Images(resize="exact", size=8, resizer="torch", interpolation="bilinear", antialias=False)


@pytest.fixture(autouse=True)
def registered():
    zoo.register(towers.NAME, Clip, towers.CONFIG)
    yield
    zoo.unregister(towers.NAME)


def declared(monkeypatch, **images):
    """The variant as if its toml had a row of images."""
    row = variants._registered[towers.NAME]
    monkeypatch.setitem(variants._registered, towers.NAME, dataclasses.replace(row, images=images))


def test_it_is_written_with_the_weights_and_read_with_them(tmp_path):
    model = towers.towers()
    zoo.save(model, tmp_path / "one", towers.tokenizer())
    assert zoo.images(tmp_path / "one") == zoo.load(tmp_path / "one").images == towers.IMAGES
    assert zoo.images(tmp_path / "one" / "model.safetensors") == towers.IMAGES  # beside a file
    zoo.save(model, tmp_path / "two", images=OTHER)
    assert zoo.load(tmp_path / "two").images == OTHER
    loaded = zoo.load(tmp_path / "two")
    loaded.images = towers.IMAGES
    zoo.save(loaded, tmp_path / "three")
    assert zoo.images(tmp_path / "three") == towers.IMAGES
    assert damage(tmp_path / "three") == []
    model.images = None
    zoo.save(model, tmp_path / "none")
    assert not (tmp_path / "none" / FILE).exists()
    with pytest.raises(InputError, match="nothing says how"):
        zoo.load(tmp_path / "none").need_images()


def test_a_model_of_texts_has_none(tmp_path):
    zoo.save(zoo.create("bert-tiny"), tmp_path)
    assert not (tmp_path / FILE).exists()
    assert zoo.load(tmp_path).images is None


def test_an_edited_file_is_told_and_taken_and_one_of_another_save_refused(tmp_path):
    folder = tmp_path / "one"
    zoo.save(towers.towers(), folder)
    said = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**said, "size": {"shortest_edge": 10}}))
    with pytest.warns(UserWarning, match="edited"):
        assert zoo.images(folder) == towers.IMAGES.replace(size=10)
    zoo.save(towers.towers(logit_bias=True), tmp_path / "two")
    (folder / "model.safetensors").write_bytes((tmp_path / "two" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="another save"):
        zoo.images(folder)


def test_a_damaged_preprocessing_is_no_damage_of_the_tokenizer(tmp_path, recwarn):
    zoo.save(towers.towers(), tmp_path, towers.tokenizer())
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text() + " ")
    zoo.tokenizer(tmp_path)
    assert not [warning for warning in recwarn if "edited" in str(warning.message)]


def test_a_variant_says_it_by_its_name_and_a_folder_without_a_file_by_its_variant(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nothing says how"):
        zoo.images(towers.NAME)
    declared(monkeypatch, size=12, crop=[8, 8])
    assert zoo.images(towers.NAME) == towers.IMAGES
    assert zoo.info(towers.NAME)["images"] == towers.IMAGES.to_dict()
    made = zoo.create(towers.NAME)
    assert made.images == towers.IMAGES
    zoo.save(made, tmp_path)
    assert read_images(tmp_path) == towers.IMAGES
    (tmp_path / FILE).unlink()
    assert zoo.images(tmp_path) == towers.IMAGES  # config.json names the variant
    with pytest.raises(UnknownNameError, match="tiny-towers"):
        zoo.images("tiny-tower")
    with pytest.raises(InputError, match="does not exist"):
        zoo.images("folders/nowhere")


def test_a_row_inherits_from_the_one_it_is_like_and_a_tag_has_its_own(tmp_path):
    rows = {"a": {"images": {"size": 12, "crop": 8}}, "b": {"like": "a", "images": {"crop": 6}}, "c": {"like": "b"}}
    assert variants._inherit("c", rows, "here", ())["images"] == {"size": 12, "crop": 6}
    tag = variants.Tag(images={"mean": [0.5, 0.5, 0.5]})
    row = variants.Variant("x", "x", "x:X", "cross-modal", images=rows["a"]["images"], tags={"half": tag})
    variants._registered["x"] = row
    try:
        assert zoo.images("x.half") == Images(size=12, crop=8, mean=(0.5, 0.5, 0.5))
        assert zoo.images("x") == Images(size=12, crop=8)
    finally:
        zoo.unregister("x")


def test_an_optimized_copy_and_a_copy_keep_it():
    model = towers.towers()
    assert zoo.optimize(model).images == copy.deepcopy(model).images == towers.IMAGES
    pixels = towers.IMAGES(torch.zeros(9, 9, 3, dtype=torch.uint8))
    assert model.encode_image(pixels).shape == (1, 6)


def test_it_comes_along_through_conversion_and_back(tmp_path):
    """As ALIGN's public file has it: an offset, and no normalization of its own."""
    config = transformers.EfficientNetConfig(
        width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, image_size=64
    )
    theirs = transformers.EfficientNetImageProcessorPil(
        size={"height": 70, "width": 70},
        do_center_crop=True,
        crop_size={"height": 64, "width": 64},
        include_top=False,
        rescale_offset=True,
        rescale_factor=1 / 127.5,
        do_normalize=False,
    )
    for part in (transformers.EfficientNetModel(config).eval(), theirs):
        part.save_pretrained(tmp_path / "hf")
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=numpy.uint8))
    wanted = torch.as_tensor(theirs(picture, return_tensors="pt")["pixel_values"])
    assert torch.allclose(zoo.load(tmp_path / "hf").images(picture), wanted, atol=1e-6)
    report = zoo.convert(tmp_path / "hf", tmp_path / "ours")
    assert not [note for note in report.notes if "tokenizer" in note]  # it reads no texts
    assert zoo.images(tmp_path / "ours") == zoo.images(tmp_path / "hf")
    zoo.convert(tmp_path / "ours", tmp_path / "back", to="hf-efficientnet")
    again = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "back")
    assert torch.allclose(torch.as_tensor(again(picture, return_tensors="pt")["pixel_values"]), wanted, atol=1e-5)


def names_that_read_pictures():
    """Every registered name, with its tags, that reads pixels."""
    found = [row for rows in variants.families().values() for row in rows if "pixel_values" in row.inputs]
    return [name for row in found for name in (row.name, *(f"{row.name}.{tag}" for tag in variants.tags(row)))]


def test_every_registered_model_of_pictures_says_how_it_wants_them():
    names = [name for name in names_that_read_pictures() if not name.startswith(towers.NAME)]
    assert len(names) > 20
    for name in names:
        side = 289 if name.startswith("align-base") else zoo.config(name).image_size  # where the config says 600
        assert zoo.images(name).shape == (side, side), name
