"""Dual encoders beside transformers over drawn configs in float64; configs that hold configs, layouts made of layouts;
two models that are joined, a locked tower.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from tests import oracle
from tests.families import bert, clip, clip_vision, dual_encoder
from tests.strategies import build, randomised, relative, small_config
from zoo.errors import ConfigError, InputError, UnknownNameError
from zoo.maps import layouts
from zoo.models.bert import BertConfig
from zoo.models.clip_towers import ClipVisionConfig
from zoo.models.distilbert import DistilBertConfig
from zoo.models.dual_encoder import DualEncoder, DualEncoderConfig
from zoo.training import fit

LAYOUT = "hf-vision-text-dual-encoder"
SETTINGS = {"deadline": None, "derandomize": True}
SIZES = dual_encoder.SIZES
SMALL_TEXT = {**SIZES, "vocab_size": 19, "max_positions": 10}
SMALL_IMAGE = {**SIZES, "image_size": 6, "patch_size": 3}


def check(mine: Tensor, theirs: Tensor, what: str) -> None:
    error = relative(mine, theirs)
    assert error <= 1e-9, f"{what} differs from transformers by {error:.2e}"


def theirs_for(config: DualEncoderConfig) -> nn.Module:
    """Theirs, whose attention keeps float64; the one that is written out has a softmax in float32."""
    foreign = layouts.load(LAYOUT).config_back(config.to_dict())
    made = transformers.VisionTextDualEncoderModel(config=transformers.VisionTextDualEncoderConfig.from_dict(foreign))
    made.set_attn_implementation("sdpa")
    return made.double().eval()


def float_batch() -> dict[str, Tensor]:
    batch = dual_encoder.small_batch().inputs
    return {**batch, "pixel_values": batch["pixel_values"].float()}


def texts(draw: st.DrawFn, config: Any) -> dict[str, Tensor]:
    found = dict(bert.inputs(draw, config.text, kinds=("none", "right"), embeds=False).inputs)
    pixels = clip.pictures(len(found["input_ids"]), config.image_size, draw(st.integers(0, 99)))
    return {**found, "pixel_values": pixels}


@given(data=st.data())
@settings(max_examples=10, **SETTINGS)
def test_towers_logits_loss_and_gradients_are_those_of_transformers(data):
    config = DualEncoderConfig(
        text=bert.tiny_config(data.draw).replace(pooler=True, dropout=0.0, attention_dropout=0.0),
        image=clip_vision.tiny_config(data.draw, layer_scale=False, dropout=0.0, projection_size=None),
        projection_size=data.draw(st.integers(1, 6)),
    )
    inputs = texts(data.draw, config)
    ours = build("dual-encoder", config, "image-text-contrast", seed=data.draw(st.integers(0, 99)))
    theirs = oracle.taught(LAYOUT, theirs_for(config), ours)
    mine = ours(**inputs)
    reference = oracle.asked(theirs, inputs, gradients=True, return_loss=True)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        check(mine.encoded[name].detach(), reference[name].detach(), name)
    real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    check(
        mine.encoded.text.last_hidden_state[real].detach(),
        reference.text_model_output.last_hidden_state[real].detach(),
        "the text's states",
    )
    check(mine.loss.detach(), reference.loss.detach(), "loss")
    mine.loss.backward()
    reference.loss.backward()
    named = dict(theirs.named_parameters())
    found = oracle.way_back(LAYOUT, ours, {key.removeprefix("model."): p.grad for key, p in ours.named_parameters()})
    assert set(found) == set(named)
    largest = max(1e-3, *(float(p.grad.abs().max()) for p in named.values()))
    for key, gradient in found.items():
        assert float((gradient - named[key].grad).abs().max()) <= 1e-9 * largest, key


def test_a_file_of_theirs_loads_is_converted_and_comes_back_bit_for_bit(tmp_path):
    config = small_config("dual-encoder", text_pooling="pooler", pooler=True, classifier_dropout=None)
    theirs = randomised(theirs_for(config), 3).float()
    theirs.save_pretrained(tmp_path / "theirs")
    report = zoo.convert(tmp_path / "theirs", tmp_path / "ours")
    assert {one.name: one.passed for one in report.checks.results}["contract"]
    loaded = zoo.load(tmp_path / "ours")
    assert loaded.config == config.replace(text={"dropout": 0.0, "attention_dropout": 0.0})
    batch = dual_encoder.small_batch().inputs
    batch = {
        **batch,
        "attention_mask": torch.ones(4, 6, dtype=torch.long),
        "pixel_values": batch["pixel_values"].float(),
    }
    with torch.no_grad():
        expected = theirs(**batch).logits_per_image
        assert relative(loaded(**batch).logits_per_image, expected) < 1e-5
    zoo.convert(tmp_path / "ours", tmp_path / "back", to=LAYOUT)
    again = transformers.VisionTextDualEncoderModel.from_pretrained(tmp_path / "back")
    state = theirs.state_dict()
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(x, state[name]) for name, x in again.state_dict().items())


def test_names_of_older_files_have_the_tower_s_own_prefix_once_more():
    config = small_config("dual-encoder", text_pooling="pooler", pooler=True)
    theirs = randomised(theirs_for(config), 3)
    older = {
        name.replace("vision_model.", "vision_model.vision_model.", 1): x for name, x in theirs.state_dict().items()
    }
    older["text_model.embeddings.position_ids"] = torch.arange(10)[None]
    loaded = zoo.load(older, config=theirs.config.to_dict())
    plain = zoo.load(theirs.state_dict(), config=theirs.config.to_dict())
    assert all(torch.equal(x, plain.state_dict()[name]) for name, x in loaded.state_dict().items())


def test_a_tower_that_no_layout_is_for_is_named():
    config = small_config("dual-encoder", text_pooling="pooler", pooler=True)
    theirs = theirs_for(config)
    told = theirs.config.to_dict()
    for key, kind in (("vision_config", "swin"), ("text_config", "t5")):
        with pytest.raises(ConfigError, match=rf"{key}.model_type is '{kind}'.* known are .*bert"):
            zoo.load(theirs.state_dict(), config={**told, key: {**told[key], "model_type": kind}})
    with pytest.raises(ConfigError, match="lacks 'text_config'"):
        layouts.load(LAYOUT).config_forward({**told, "text_config": None})
    scaled = config.replace(image={"layer_scale": True})
    with pytest.raises(ConfigError, match="layer_scale"):
        layouts.load(LAYOUT).config_back(scaled.to_dict())
    lite = zoo.config("dual-encoder-lite0-minilm-l6")
    with pytest.raises(ConfigError, match="text_pooling"):
        layouts.load(LAYOUT).config_back(lite.to_dict())


# -- a config that holds configs ---------------------------------------------------------------------------------------


def test_a_config_goes_through_json_and_names_the_towers_families():
    config = DualEncoderConfig(
        text_family="distilbert", image_family="efficientnet", text_pooling="cls", image={"stage_blocks": [1] * 7}
    )
    again = DualEncoderConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert isinstance(again.text, DistilBertConfig)
    assert again.image.stage_blocks == (1,) * 7
    assert hash(again) == hash(config)


def test_replacing_changes_one_field_of_a_tower_or_its_family():
    config = DualEncoderConfig(text={"num_layers": 3}, projection_size=7)
    assert config.replace(text={"num_heads": 2}).text == BertConfig(num_layers=3, num_heads=2)
    assert config.replace(image=ClipVisionConfig(patch_size=16)).image.patch_size == 16
    other = config.replace(text_family="distilbert", text_pooling="mean")
    assert (other.text, other.projection_size) == (DistilBertConfig(), 7)
    shallow = config.replace(text_family="distilbert", text={"num_layers": 1}, text_pooling="mean").text
    assert shallow == DistilBertConfig(num_layers=1)
    mean = config.replace(text_pooling="mean")
    assert not mean.text.pooler, "nothing would read it"
    assert mean.replace(text_pooling="pooler") == config


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"text_family": "bret"}, UnknownNameError, "bert"),
        ({"text_family": "clip-vision"}, ConfigError, "reads texts alone"),
        ({"image_family": "bert"}, ConfigError, "reads pictures alone"),
        ({"image_family": "visualbert"}, ConfigError, "reads pictures alone"),
        ({"text": {"num_layer": 3}}, UnknownNameError, "num_layers"),
        ({"text": {"num_heads": 5}}, ConfigError, "does not divide"),
        ({"text": ClipVisionConfig()}, ConfigError, "is no config of text_family='bert', which has a BertConfig"),
        ({"text": {"pooler": False}}, ConfigError, "needs a text tower with a pooler"),
        ({"text_family": "xlm"}, ConfigError, "reads texts alone"),
        ({"projection_size": 0}, ConfigError, "at least 1"),
    ],
)
def test_towers_that_can_t_be_are_refused(fields, error, said):
    with pytest.raises(error, match=said):
        DualEncoderConfig(**fields)


def test_create_and_info_take_and_tell_of_the_towers():
    model = zoo.create("clip-italian", text=SMALL_TEXT, image=SMALL_IMAGE, device="meta")
    assert (model.config.text.num_layers, model.config.image.num_layers) == (2, 2)
    assert zoo.create("clip-italian", text={"num_layers": 1}, device="meta").config.text.vocab_size == 32_102
    told = json.loads(json.dumps(zoo.info("clip-italian")))
    assert told["config"]["text"]["vocab_size"] == 32_102
    assert told["parameters"] == told["parameters_stated"]["count"]


# -- pooling, joining, locking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_text_s_vector_is_the_mean_over_its_real_tokens_or_the_first_one_s_state(family):
    batch = dual_encoder.small_batch().inputs
    words, small = {name: batch[name] for name in ("input_ids", "attention_mask")}, small_config("dual-encoder")
    for pooling in ("mean", "cls"):
        model = build("dual-encoder", small.replace(text_family=family, text=SMALL_TEXT, text_pooling=pooling))
        states = model.text(**words).last_hidden_state
        real = words["attention_mask"].bool()
        for row in range(4):
            some = states[row][real[row]]
            wanted = model.text_projection(sum(some) / len(some) if pooling == "mean" else some[0])
            assert torch.allclose(model.encode_text(**words)[row], wanted)
            assert torch.allclose(model.encode_text(words["input_ids"], words["attention_mask"])[row], wanted)
            assert torch.allclose(model(**words).text_embeds[row], wanted / wanted.norm())
        left = model.encode_text(words["input_ids"][:1, :3], lengths=[3])
        assert torch.allclose(left, model.encode_text(**words)[:1])


def towers() -> tuple[Any, Any]:
    text = zoo.create("minilm-l6-h384", **SMALL_TEXT, generator=torch.Generator().manual_seed(1))
    image = zoo.create("clip-vision-b-32", **SMALL_IMAGE, generator=torch.Generator().manual_seed(2))
    return text, image


def test_two_models_are_joined_with_their_weights_tokenizer_and_images(tmp_path):
    text, image = towers()
    image.images = zoo.Images(size=6, crop=6)
    model = DualEncoder.of(
        text, image, projection_size=4, text_pooling="mean", generator=torch.Generator().manual_seed(0)
    )
    assert model.text is text
    assert model.config.text_family == "bert"
    assert model.images.crop == (6, 6)
    assert 0.15 < float(model.text_projection.weight.detach().std() * 8**0.5) < 2
    with pytest.raises(InputError, match=r"zoo\.tokenizer"):
        model.need_tokenizer()
    batch = float_batch()
    zoo.save(model, tmp_path)
    loaded = zoo.load(tmp_path)
    assert loaded.config == model.config
    assert loaded.images == model.images
    assert torch.equal(loaded(**batch).logits_per_image, model.eval()(**batch).logits_per_image)
    with pytest.raises(ConfigError, match="without a task"):
        DualEncoder.of(zoo.create("minilm-l6-h384", task="masked-lm", **SMALL_TEXT), image)
    with pytest.raises(ConfigError, match="reads texts alone"):
        DualEncoder.of(image, image)


def test_a_locked_tower_stays_as_it_is_while_the_rest_is_trained():
    model = zoo.create(
        "dual-encoder-base",
        task="image-text-contrast",
        text=SMALL_TEXT,
        image_family="efficientnet",
        image={"stem_channels": 4, "stage_channels": [4] * 7, "stage_blocks": [1] * 7, "top_size": 5},
    )
    model.model.lock("image")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    pixels = torch.randn(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rows = [{"input_ids": torch.tensor([[1, 2], [3, 4]]), "pixel_values": some} for some in pixels]
    fit(model, rows, epochs=1, lr=0.1)
    moved = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert not any(name.startswith("model.image.") for name in moved)
    assert {"model.text_projection.weight", "model.image_projection.weight", "model.logit_scale"} <= moved
    with pytest.raises(UnknownNameError, match="image"):
        model.model.lock("picture")


def test_the_image_tower_is_brought_to_another_size():
    model = build("dual-encoder", small_config("dual-encoder"))
    model.resize(image_size=9)
    assert model.config.image.image_size == model.image.config.image_size == 9
    assert model(pixel_values=clip.pictures(1, 9, 0)).image.last_hidden_state.shape == (1, 10, 8)
