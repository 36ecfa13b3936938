"""CLIP beside transformers over drawn configs in float64, what its files say, and how its towers are loaded alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tests import oracle
from tests.families import clip, clip_resnet, clip_text, clip_vision
from tests.references.case import GOLDEN, load_case
from tests.strategies import build, examples, randomised, relative
from zoo.errors import ConfigError, InputError, UnknownNameError
from zoo.maps import layouts
from zoo.models.clip import ClipConfig
from zoo.tasks.contrast import matched_loss

TOLERANCE = 1e-9
SETTINGS = {"deadline": None, "derandomize": True}


def check(mine: Tensor, theirs: Tensor, what: str) -> None:
    error = relative(mine, theirs)
    assert error <= TOLERANCE, f"{what} differs from transformers by {error:.2e}"


@st.composite
def texts(draw: st.DrawFn, config: Any) -> dict[str, Tensor]:
    """Texts whose end token is the largest id, or the named one, padded behind with anything smaller."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(2, config.max_positions))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ends = [draw(st.integers(1, length - 1)) for _ in range(rows)]
    eos = config.vocab_size - 1 if config.eos_token_id is None else config.eos_token_id
    ids = torch.randint(config.vocab_size - 1, (rows, length), generator=generator)
    ids[ids == eos] = 0 if eos else 1
    for row, end in enumerate(ends):
        ids[row, end] = eos
    mask = (torch.arange(length) <= torch.tensor(ends)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask} if draw(st.booleans()) else {"input_ids": ids}


def class_of(layout: str, name: str, config: Any) -> Any:
    """A class of theirs whose attention keeps float64; the one that is written out has a softmax in float32."""
    made = oracle.hugging_face(layout, name, config, {})
    made.set_attn_implementation("sdpa")
    return made


@given(data=st.data())
@settings(max_examples=examples(12), **SETTINGS)
def test_both_towers_and_their_logits_are_those_of_transformers(data):
    config = clip.tiny_config(data.draw, layer_scale=False, image_layer_scale=False, logit_bias=False, dropout=0.0)
    inputs = data.draw(texts(config))
    pixels = clip.pictures(data.draw(st.integers(1, 4)), config.image_size, data.draw(st.integers(0, 99)))
    ours = build("clip", config, seed=data.draw(st.integers(0, 2**16)))
    theirs = oracle.taught(clip.LAYOUT, class_of(clip.LAYOUT, "CLIPModel", config), ours)
    reference = oracle.asked(theirs, {**inputs, "pixel_values": pixels}, output_hidden_states=True)
    assert zoo.load(theirs.state_dict(), config=theirs.config.to_dict()).config == ours.config
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    with torch.no_grad():
        mine = ours(**inputs, pixel_values=pixels)
        whole = ours(inputs["input_ids"], mask, pixel_values=pixels, output_hidden_states=True)
    for out in (mine, whole):
        for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
            check(getattr(out, name), reference[name], name)
    real = mask.bool()
    check(whole.text.last_hidden_state[real], reference.text_model_output.last_hidden_state[real], "the text's states")
    check(whole.image.last_hidden_state, reference.vision_model_output.last_hidden_state, "the image's states")
    for depth, (a, b) in enumerate(
        zip(whole.image.hidden_states, reference.vision_model_output.hidden_states, strict=True)
    ):
        check(a, b, f"the image's hidden_states[{depth}]")
    for depth, state in enumerate(whole.text.hidden_states[:-1]):  # ours ends normalized
        check(state[real], reference.text_model_output.hidden_states[depth][real], f"the text's hidden_states[{depth}]")
    with torch.no_grad():
        check(ours.encode_text(**inputs), reference.text_model_output.pooler_output, "encode_text")
        check(ours.encode_image(pixels), reference.vision_model_output.pooler_output, "encode_image")


@given(data=st.data())
@settings(max_examples=examples(10), **SETTINGS)
def test_the_loss_and_its_gradients_are_those_of_transformers(data):
    config = clip.tiny_config(data.draw, layer_scale=False, image_layer_scale=False, logit_bias=False, dropout=0.0)
    inputs = data.draw(texts(config))
    pixels = clip.pictures(len(inputs["input_ids"]), config.image_size, 1)
    ours = build("clip", config, seed=3)
    theirs = oracle.taught(clip.LAYOUT, class_of(clip.LAYOUT, "CLIPModel", config), ours)
    loss = matched_loss(ours(**inputs, pixel_values=pixels).logits_per_image)
    reference = oracle.asked(theirs, {**inputs, "pixel_values": pixels}, gradients=True, return_loss=True).loss
    assert abs(float(loss - reference)) <= TOLERANCE * max(1.0, float(reference))
    loss.backward()
    reference.backward()
    mine = oracle.way_back(clip.LAYOUT, ours, {key: p.grad for key, p in ours.named_parameters()})
    named = dict(theirs.named_parameters())
    assert set(mine) == set(named)
    largest = max(float(p.grad.abs().max()) for p in named.values())
    for key, gradient in mine.items():
        assert float((gradient - named[key].grad).abs().max()) <= TOLERANCE * max(largest, 1e-3), key


@pytest.mark.parametrize(("family", "name"), [(clip_text, "CLIPTextModel"), (clip_vision, "CLIPVisionModel")])
@given(data=st.data())
@settings(max_examples=examples(15), **SETTINGS)
def test_a_tower_alone_is_that_of_transformers_with_its_projection_and_without(family, name, data):
    config = family.tiny_config(data.draw, layer_scale=False, dropout=0.0)
    inputs = (
        data.draw(texts(config)) if family is clip_text else {"pixel_values": clip.pictures(2, config.image_size, 5)}
    )
    ours = build(family.__name__.rpartition(".")[2].replace("_", "-"), config, seed=data.draw(st.integers(0, 2**16)))
    projected = config.projection_size is not None
    theirs = oracle.taught(family.LAYOUT, class_of(family.LAYOUT, name + "WithProjection" * projected, config), ours)
    reference = oracle.asked(theirs, inputs)
    with torch.no_grad():
        mine = ours(**inputs)
    vector = "text_embeds" if family is clip_text else "image_embeds"
    check(mine.pooler_output, reference[vector if projected else "pooler_output"], "the pooled vector")
    back = zoo.load(randomised(theirs, 7).state_dict(), config=theirs.config.to_dict())
    assert back.config == ours.config.replace(dropout=0.0)
    assert not back.load_report.random
    with torch.no_grad():
        check(
            back(**inputs).pooler_output,
            oracle.asked(theirs, inputs)[vector if projected else "pooler_output"],
            "the pooled vector of a file of theirs",
        )


def test_configs_of_the_hub_that_say_end_token_2_mean_the_largest_id():
    keymap = layouts.load("hf-clip")
    for said, meant in ((2, None), (49_407, 49_407), (5, 5)):
        fields = keymap.config_forward({"text_config": {"eos_token_id": said}, "vision_config": {}})
        assert fields["eos_token_id"] == meant
        assert keymap.config_back(fields)["text_config"]["eos_token_id"] == said
    assert ClipConfig(**{**fields, "eos_token_id": None}).text.eos_token_id is None


# -- other sizes of pictures, and training -----------------------------------------------------------------------------

SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 9,
    "image_size": 12,
    "patch_size": 3,
    "image_hidden_size": 6,
    "image_num_layers": 2,
    "image_num_heads": 3,
    "image_intermediate_size": 10,
    "projection_size": 5,
}


@pytest.mark.parametrize("size", [18, 6, 12])
def test_loading_for_another_picture_size_interpolates_positions_as_transformers_does(size, tmp_path):
    config = ClipConfig(**SIZES)
    model = build("clip", config)
    theirs = oracle.taught(clip.LAYOUT, class_of(clip.LAYOUT, "CLIPModel", config), model)
    zoo.save(model, tmp_path, images=zoo.Images(size=12, crop=12))
    loaded = zoo.load(tmp_path, image_size=size)
    pixels = clip.pictures(2, size, 3)
    with torch.no_grad():
        mine = loaded.encode_image(pixels)
        reference = theirs.get_image_features(pixels, interpolate_pos_encoding=True)
    reference = getattr(reference, "pooler_output", reference)
    check(mine, reference, "encode_image")
    assert loaded.config.image_size == loaded.image.config.image_size == size
    assert loaded.images.crop == (size, size)
    assert loaded.images.size == size
    assert any("image_size was 12" in note for note in loaded.load_report.notes) == (size != 12)
    zoo.save(loaded, tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(zoo.load(tmp_path / "again").encode_image(pixels), mine)


def test_a_resnets_pooling_is_brought_to_another_picture_size_and_what_fits_no_picture_is_refused():
    fields = clip_resnet.SMALL | {"image_size": 64, "hidden_size": 4, "num_heads": 1, "num_layers": 1}
    model = randomised(zoo.create("clip-rn50", dtype="float64", **fields))
    before = model.image.pooler.position.weight.clone()
    model.resize(image_size=96)
    after = model.image.pooler.position.weight
    assert torch.equal(after[0], before[0]), "the mean's stays"
    assert after.shape == (10, 64)
    assert torch.allclose(after[1 + 4], before[1:].mean(0)), "the middle of nine cells is that of four"
    assert model(pixel_values=clip.pictures(1, 96, 0)).image_embeds.shape == (1, 5)
    with pytest.raises(ConfigError, match="at least 32"):
        model.resize(image_size=31)
    with pytest.raises(UnknownNameError, match="image_size"):
        model.resize(patch_size=3)


def rows(count: int) -> dict[str, Tensor]:
    """Pictures of one brightness each, and texts that name it."""
    levels = torch.arange(count) / count - 0.5
    ids = torch.stack([torch.tensor([38, level, 39, 0]) for level in range(count)])
    return {"input_ids": ids, "pixel_values": levels[:, None, None, None].expand(-1, 3, 12, 12).contiguous()}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_pretraining_brings_pictures_and_their_texts_together(loss):
    torch.manual_seed(0)
    fields = {**SIZES, "logit_bias": loss == "sigmoid"}
    generator = torch.Generator().manual_seed(0)
    model = zoo.create("clip-vit-b-32", task="pretraining", loss=loss, generator=generator, **fields)
    batch, first = rows(6), None
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        out = model(**batch)
        first = float(out.loss) if first is None else first
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        model.after_step([out])
    with torch.no_grad():
        logits = model.model(**batch).logits_per_image
    assert float(out.loss) < first / 2
    if loss == "softmax":
        assert float((logits.argmax(1) == torch.arange(6)).float().mean()) >= 0.5
    assert float(model.model.scale) <= 100.0001


def test_the_scale_of_the_logits_never_exceeds_a_hundred():
    model = zoo.create("clip-vit-b-32", task="pretraining", **SIZES)
    model.model.logit_scale.data.fill_(7.0)
    model.after_step([])
    assert float(model.model.scale) == pytest.approx(100)


def test_a_locked_image_tower_and_a_linear_probe_train_what_is_left():
    locked = zoo.create("clip-vit-b-32", task="pretraining", **SIZES)
    locked.model.image.requires_grad_(False)
    locked(**rows(3)).loss.backward()
    assert all(p.grad is None for p in locked.model.image.parameters())
    assert all(p.grad is not None for p in locked.model.text.parameters())
    probe = zoo.create("clip-vit-b-32", task="image-classification", num_labels=3, **SIZES)
    probe.model.requires_grad_(False)
    out = probe(pixel_values=rows(3)["pixel_values"], labels=torch.tensor([0, 2, 1]))
    out.loss.backward()
    assert out.logits.shape == (3, 3)
    with pytest.raises(InputError, match="give pixel_values"):
        probe(input_ids=rows(3)["input_ids"])
    assert probe.heads["image_classification"].weight.shape == (3, 6), "ahead of the projection"
    assert [name for name, p in probe.named_parameters() if p.grad is not None] == [
        "heads.image_classification.weight",
        "heads.image_classification.bias",
    ]


# -- a ResNet's file as open_clip writes it ----------------------------------------------------------------------------


@pytest.mark.parametrize("below_text", [False, True])
def test_open_clips_names_of_a_resnet_make_the_model_of_openais(below_text):
    case = load_case(GOLDEN / "clip" / "openai-rn")
    c, stored = case.config, dict(case.weights)
    stored |= {k.replace("running_mean", "num_batches_tracked"): torch.tensor(3) for k in stored if "running_mean" in k}
    if below_text:
        stored = {k if k.startswith(("visual.", "logit_")) else f"text.{k}": v for k, v in stored.items()}
    vision = {"image_size": c["image_resolution"], "layers": c["vision_layers"], "width": c["vision_width"]}
    text = {name: c[f"transformer_{name}"] for name in ("width", "heads", "layers")}
    text |= {"context_length": c["context_length"], "vocab_size": c["vocab_size"]}
    said = {"embed_dim": c["embed_dim"], "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    model = zoo.load(stored, config={"model_cfg": {**said, "custom_text": below_text}})
    assert model.load_report.layout == "open-clip-resnet"
    with torch.no_grad():
        features = {"text_features": model.encode_text(case.inputs["text"])}
        features["image_features"] = model.encode_image(case.inputs["image"])
    for name, mine in features.items():
        assert relative(mine, case.answers[name]) <= 1e-5, name
    heads = {**vision, "head_width": 16}
    assert zoo.load(stored, config={**said, "vision_cfg": heads}).config.image_num_heads == 8
    plain = zoo.load(stored, config={**said, "quick_gelu": False}).config
    assert (plain.activation, plain.image_num_heads) == ("gelu", 2)
    assert layouts.load("open-clip-resnet").config_back(plain.to_dict())["model_cfg"]["vision_cfg"]["head_width"] == 64
