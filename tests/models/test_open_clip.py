"""CLIP beside open_clip over drawn configs in float64: vision transformers and ResNets, one map each way."""

from __future__ import annotations

from typing import Any

import open_clip.model as open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import zoo
from tests import oracle
from tests.families import clip, clip_resnet
from tests.models.test_clip import texts
from tests.strategies import build, examples, randomised, relative
from zoo.maps import layouts

LAYOUTS = {"clip": "open-clip", "clip-resnet": "open-clip-resnet"}
TINY = {"clip": clip.tiny_config, "clip-resnet": clip_resnet.tiny_config}


def theirs_of(said: dict[str, Any]) -> torch.nn.Module:
    """Their model of a config file."""
    model = dict(said["model_cfg"])
    sides = open_clip.CLIPVisionCfg(**model.pop("vision_cfg")), open_clip.CLIPTextCfg(**model.pop("text_cfg"))
    model.pop("custom_text", None)
    return open_clip.CLIP(model.pop("embed_dim"), *sides, **model).double().eval()


def drawn(data: st.DataObject, family: str) -> Any:
    """A config that open_clip can say: one size of heads on each side, GELU on both."""
    fixed = {"activation": "gelu", "norm_eps": 1e-5, "logit_bias": False, "dropout": 0.0, "eos_token_id": None}
    fixed |= {"layer_scale": False}
    if family == "clip":
        fixed |= {"image_activation": "gelu", "image_norm_eps": 1e-5, "image_layer_scale": False}
    else:
        fixed |= {"image_num_heads": 4, "image_stem_channels": 2}
    return TINY[family](data.draw, **fixed)


@pytest.mark.parametrize("family", LAYOUTS)
@given(data=st.data())
@settings(max_examples=examples(12), deadline=None, derandomize=True)
def test_features_logits_and_gradients_are_those_of_open_clip(family, data):
    config = drawn(data, family)
    ours = randomised(build(family, config), data.draw(st.integers(0, 99)))
    ids = data.draw(texts(config))["input_ids"]
    ids = F.pad(ids, (0, config.max_positions - ids.shape[1]))  # their mask is as long as the positions
    pixels = clip.pictures(data.draw(st.integers(2, 4)), config.image_size, data.draw(st.integers(0, 99)))
    said = layouts.load(LAYOUTS[family]).config_back(config.to_dict())
    theirs = theirs_of(said)
    theirs.load_state_dict(theirs.state_dict() | oracle.way_back(LAYOUTS[family], ours))  # batch norms count batches
    again = zoo.load({key: x.clone() for key, x in theirs.state_dict().items()}, config=said).double().eval()
    for image, text in ((ours, ours), (again, again)):
        wanted = theirs.encode_image(pixels), theirs.encode_text(ids)
        found = image.encode_image(pixels), text.encode_text(ids)
        for mine, other in zip(found, wanted, strict=True):
            assert relative(mine, other) <= 1e-9
        logits = theirs.get_logits(pixels, ids)[0]
        assert relative(image(ids, pixel_values=pixels).logits_per_image, logits) <= 1e-9
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theirs.zero_grad()
    (theirs.get_logits(pixels, ids)[0] * weight).sum().backward()
    (ours(ids, pixel_values=pixels).logits_per_image * weight).sum().backward()
    grads = {key: p.grad for key, p in ours.named_parameters()} | dict(ours.named_buffers())
    mine = oracle.way_back(LAYOUTS[family], ours, grads)
    for name, parameter in theirs.named_parameters():
        gap = float((mine[name] - parameter.grad).abs().max())
        assert gap <= 1e-8 * max(1.0, float(parameter.grad.abs().max())), name
