"""ViT beside transformers and timm over drawn configs in float64, and under a dual encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import zoo
from tests import oracle
from tests.families import clip, dual_encoder, vit
from tests.strategies import build, examples, randomised, relative, small_config
from zoo.errors import ConfigError, InputError
from zoo.maps import layouts
from zoo.models.dual_encoder import DualEncoderConfig

SETTINGS = {"deadline": None, "derandomize": True}
SMALL = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 7, "image_size": 6, "patch_size": 3}


def check(mine: Tensor, theirs: Tensor, what: str) -> None:
    error = relative(mine, theirs)
    assert error <= 1e-9, f"{what} differs by {error:.2e}"


def theirs_for(config: Any, task: str | None = None) -> nn.Module:
    """The class of transformers, whose fused attention keeps float64."""
    name = "ViTForImageClassification" if task else "ViTModel"
    foreign = layouts.load("hf-vit").config_back(config.to_dict(), layouts.load("hf-vit").architectures[name])
    told = transformers.ViTConfig.from_dict({**foreign, "num_labels": 3})
    cls = getattr(transformers, name)
    made = cls(told) if task else cls(told, add_pooling_layer=config.pooler_size is not None)
    made.set_attn_implementation("sdpa")
    return made.double().eval()


@given(data=st.data())
@settings(max_examples=examples(15), **SETTINGS)
def test_states_and_the_pooled_vector_are_those_of_transformers(data):
    config = vit.tiny_config(data.draw)
    theirs = randomised(theirs_for(config), data.draw(st.integers(0, 99)))
    ours = zoo.load(theirs.state_dict(), config=theirs.config.to_dict())
    assert ours.config == config
    assert not ours.load_report.random
    pixels = clip.pictures(2, config.image_size, 1)
    reference = oracle.asked(theirs, {"pixel_values": pixels}, output_hidden_states=True)
    with torch.no_grad():
        mine = ours(pixels, output_hidden_states=True)
    check(mine.last_hidden_state, reference.last_hidden_state, "last_hidden_state")
    for depth, (a, b) in enumerate(zip(mine.hidden_states[:-1], reference.hidden_states[:-1], strict=True)):
        check(a, b, f"hidden_states[{depth}]")
    check(mine.pooler_output, reference.pooler_output if config.pooler_size else mine.last_hidden_state[:, 0], "pooled")


@given(data=st.data())
@settings(max_examples=examples(10), **SETTINGS)
def test_logits_loss_and_gradients_of_a_classifier_are_those_of_transformers(data):
    config = vit.tiny_config(data.draw, pooler_size=None, dropout=0.0)
    theirs = randomised(theirs_for(config, "image-classification"), 1)
    ours = zoo.load(theirs.state_dict(), config=theirs.config.to_dict(), task="image-classification")
    inputs = {"pixel_values": clip.pictures(3, config.image_size, 2), "labels": torch.tensor([2, 0, 1])}
    mine, reference = ours(**inputs), oracle.asked(theirs, inputs, gradients=True)
    check(mine.logits.detach(), reference.logits.detach(), "logits")
    check(mine.loss.detach(), reference.loss.detach(), "loss")
    mine.loss.backward()
    reference.loss.backward()
    check(
        ours.model.embeddings.position.weight.grad,
        theirs.vit.embeddings.position_embeddings.grad[0],
        "the positions' gradient",
    )


@pytest.mark.parametrize("pooler_size", [None, 5])
def test_a_file_of_transformers_comes_back_bit_for_bit(tmp_path, pooler_size):
    theirs = randomised(theirs_for(small_config("vit", pooler_size=pooler_size)), 3).float()
    theirs.save_pretrained(tmp_path / "theirs")
    zoo.convert(tmp_path / "theirs", tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "back", to="hf-vit")
    first, again = (safe(tmp_path / name) for name in ("theirs", "back"))
    assert first.keys() == again.keys()
    assert all(torch.equal(x, again[name]) for name, x in first.items())
    assert "encoder.layer.0.attention.attention.query.weight" in {name.removeprefix("vit.") for name in again}


def safe(folder: Any) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@given(data=st.data())
@settings(max_examples=examples(10), **SETTINGS)
def test_features_and_logits_are_those_of_timm_with_sizes_from_the_tensors(data):
    config = vit.tiny_config(data.draw, pooler_size=None, norm_eps=1e-6, activation="gelu")
    theirs = timm.models.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.hidden_size,
        depth=config.num_layers,
        num_heads=config.num_heads,
        mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,  # it rounds down
        num_classes=3,
    )
    theirs = randomised(theirs.double().eval(), 4)
    told = {"num_heads": config.num_heads, "img_size": config.image_size}
    ours = zoo.load(theirs.state_dict(), config=told, layout="timm-vit", task="image-classification")
    assert ours.model.config == config.replace(dropout=0.0)
    pixels = clip.pictures(2, config.image_size, 1)
    with torch.no_grad():
        check(ours.model(pixels).last_hidden_state, theirs.forward_features(pixels), "features")
        check(ours(pixels).logits, theirs(pixels), "logits")
    back = oracle.way_back("timm-vit", ours)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(x, theirs.state_dict()[name]) for name, x in back.items())


def test_the_pooler_of_older_releases_of_timm_is_read_and_written():
    ours = build("vit", small_config("vit", pooler_size=5, norm_eps=1e-6), seed=1)
    foreign = layouts.load("timm-vit").config_back(ours.config.to_dict())
    assert foreign["representation_size"] == 5
    back = oracle.way_back("timm-vit", ours)
    assert torch.equal(back["pre_logits.fc.weight"], ours.pooler.dense.weight)
    again = zoo.load(back, config=foreign, layout="timm-vit")
    assert again.config.pooler_size == 5
    pixels = clip.pictures(1, ours.config.image_size, 0)
    assert torch.equal(again(pixels).pooler_output, ours(pixels).pooler_output)


def test_positions_are_interpolated_as_transformers_does():
    config = small_config("vit", **SMALL, norm_eps=1e-5)
    theirs = randomised(theirs_for(config), 5)
    ours = zoo.load(theirs.state_dict(), config=theirs.config.to_dict())
    pixels = clip.pictures(2, 12, 3)
    with pytest.raises(InputError, match="resize"):
        ours(pixels)
    ours.resize(image_size=12)
    with torch.no_grad():
        reference = theirs(pixels, interpolate_pos_encoding=True).last_hidden_state
        check(ours(pixels).last_hidden_state, reference, "states of larger pictures")


def test_configs_of_another_model_are_refused():
    told = theirs_for(small_config("vit")).config.to_dict()
    for key, value in (("qkv_bias", False), ("num_channels", 1), ("pooler_act", "relu")):
        with pytest.raises(ConfigError, match=key):
            layouts.load("hf-vit").config_forward({**told, key: value})
    with pytest.raises(ConfigError, match="no patch fits"):
        small_config("vit", image_size=2)


@pytest.mark.parametrize("pooling", ["file", "state"])
def test_a_dual_encoder_of_transformers_with_vit_and_bert(tmp_path, pooling):
    config = DualEncoderConfig(
        text={**dual_encoder.SIZES, "vocab_size": 19, "max_positions": 10},
        image_family="vit",
        image={**SMALL, "pooler_size": 8},
        projection_size=5,
    )
    layout = "hf-vision-text-dual-encoder"
    foreign = layouts.load(layout).config_back(config.to_dict())
    theirs = transformers.VisionTextDualEncoderModel(config=transformers.VisionTextDualEncoderConfig.from_dict(foreign))
    theirs.set_attn_implementation("sdpa")
    theirs = randomised(theirs.double().eval(), 6)
    if pooling == "file":
        theirs.save_pretrained(tmp_path / "theirs")
        ours = zoo.load(tmp_path / "theirs")
    else:
        ours = zoo.load(theirs.state_dict(), config=theirs.config.to_dict())
    assert ours.config.image_family == "vit"
    ids = torch.randint(1, 19, (3, 6), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": clip.pictures(3, 6, 0)}
    mine, reference = ours.double()(**batch), oracle.asked(theirs, batch)
    check(mine.logits_per_image.detach(), reference.logits_per_image, "logits")
    check(mine.image_embeds.detach(), reference.image_embeds, "the pictures' vectors")


def test_pictures_are_prepared_as_transformers_does():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 140, 3), dtype=np.uint8))
    model = zoo.create("vit-base-patch16", num_layers=1, device="meta")
    theirs = transformers.ViTImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    assert torch.allclose(model.images([picture]), theirs, atol=1e-6)
