"""ALIGN beside transformers over drawn configs, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.align import modeling_align

import zoo
from tests import oracle
from tests.families import align, efficientnet
from tests.models.test_convnets import agree, as_transformers_can, rows, seen
from tests.strategies import build, examples, randomised, small_config, text_batches
from zoo.maps import layouts
from zoo.models.align import AlignConfig

SETTINGS = {"deadline": None, "derandomize": True}


def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """Theirs as it is written out, but in float64, where theirs has a softmax in float32."""
    scores = query @ key.mT * options["scaling"]
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ value).transpose(1, 2), weights


@pytest.fixture(autouse=True)
def _in_float64(monkeypatch):
    monkeypatch.setattr(modeling_align, "eager_attention_forward", attention)


@st.composite
def configs(draw: st.DrawFn) -> AlignConfig:
    image = as_transformers_can(draw).to_dict()
    own = {"image_activation": image["activation"], "image_norm_eps": image["norm_eps"]}
    shared = ("width_multiplier", "channel_multiple", "stem_channels", "padding", "first_residual", "squeeze_ratio")
    own |= {name: image[name] for name in (*shared, "symmetric_blocks")}
    return align.tiny_config(draw, dropout=0.0, attention_dropout=0.0, **own)


def theirs_for(config: AlignConfig) -> nn.Module:
    keymap = layouts.load("hf-align")
    made = transformers.AlignConfig.from_dict(keymap.config_back(config.to_dict(), frozenset()))
    made._attn_implementation = "eager"
    return transformers.AlignModel(made).double().eval()


def taught(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    missing, extra = theirs.load_state_dict(oracle.way_back("hf-align", ours), strict=False)
    assert not extra
    unread = ("num_batches_tracked", "text_model.pooler.dense.weight", "text_model.pooler.dense.bias")
    assert all(name.endswith(unread) for name in missing)
    return theirs


def inputs(draw: st.DrawFn, config: AlignConfig) -> dict[str, Tensor]:
    """Texts padded on the right, as many pictures, since theirs compares as many."""
    texts = dict(draw(text_batches(config, kinds=("none", "right"), embeds=False)).inputs)
    pixels = efficientnet.pictures(draw, config)
    many = -(-len(texts["input_ids"]) // len(pixels))
    pixels = torch.cat([pixels + 0.1 * shift for shift in range(many)])[: len(texts["input_ids"])]
    return texts | {"pixel_values": pixels}


@given(data=st.data())
@settings(max_examples=examples(12), suppress_health_check=[HealthCheck.function_scoped_fixture], **SETTINGS)
def test_both_towers_the_logits_the_loss_and_the_gradients_are_those_of_transformers(data):
    config = data.draw(configs())
    given_ = data.draw(st.composite(inputs)(config))
    ours = seen(build("align", config, "image-text-contrast", seed=data.draw(st.integers(0, 99))))
    with torch.no_grad():
        ours.model.temperature.fill_(data.draw(st.sampled_from([0.3, 1.0, 2.0])))
    theirs = taught(theirs_for(config), ours)
    mine = ours(**given_, output_hidden_states=True)
    reference = oracle.asked(theirs, given_, gradients=True, return_loss=True, output_hidden_states=True)
    out, real = mine.encoded, given_.get("attention_mask", torch.ones_like(given_["input_ids"])).bool()
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        agree(out[name].detach(), reference[name].detach(), name)
    agree(mine.loss.detach(), reference.loss.detach(), "loss")
    texts, pictures = reference.text_model_output, reference.vision_model_output
    agree(out.text.last_hidden_state[real], texts.last_hidden_state[real], "the text's states")
    agree(out.image.last_hidden_state, rows(pictures.last_hidden_state), "the picture's states")
    for depth, (a, b) in enumerate(zip(out.text.hidden_states, texts.hidden_states, strict=True)):
        agree(a[real], b[real], f"the text's hidden_states[{depth}]")
    for depth, (a, b) in enumerate(zip(out.image.hidden_states[1:], pictures.hidden_states[1:], strict=True)):
        agree(a, rows(b), f"the picture's hidden_states[{depth + 1}]")
    mine.loss.backward()
    reference.loss.backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in ours.named_parameters()}
    statistics = {name: x for name, x in ours.model.state_dict().items() if "running" in name}
    found, largest = oracle.way_back("hf-align", ours, gradients | statistics), 1e-3
    largest = max(largest, *(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None))
    for name, parameter in theirs.named_parameters():
        if "text_model.pooler" in name:
            assert parameter.grad is None
        else:
            assert float((found[name] - parameter.grad).abs().max()) <= 1e-9 * largest, name


def test_a_file_of_theirs_loads_and_carries_the_pooler_that_nothing_reads():
    config = small_config("align", padding="fixed", first_residual=False, stem_channels=32, symmetric_blocks=())
    theirs = seen(randomised(theirs_for(config)))
    ours = zoo.load(theirs.state_dict(), config=theirs.config.to_dict())
    batch = align.small_batch().inputs
    batch = {**batch, "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6, [1] * 6, [1] * 5 + [0]])}
    with torch.no_grad():
        agree(ours(**batch).logits_per_image, oracle.asked(theirs, batch).logits_per_image, "logits")
    plan = layouts.load("hf-align").forward(theirs.state_dict(), ours.config.to_dict())
    assert set(plan.passengers) == {"text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}


def test_a_text_is_read_at_its_first_real_token_and_the_temperature_divides():
    model: Any = build("align", small_config("align"))
    batch = align.small_batch().inputs
    with torch.no_grad():
        model.temperature.fill_(0.5)
        out = model(**batch)
        agree(out.logits_per_text, out.text_embeds @ out.image_embeds.T / 0.5, "logits")
        short = {name: x[3:, 3:] for name, x in batch.items() if name in ("input_ids", "token_type_ids")}
        places = torch.tensor([[0, 1, 2, 3, 4, 5]])
        states = model.text(**short, position_ids=places[:, 3:]).last_hidden_state[:, 0]
        agree(out.text.pooler_output[3:], states, "the state of the first real token")
        model.temperature.fill_(1e-6)
        model.limit_scale()
        assert float(model.scale) == 100


def test_its_own_smoothing_is_the_default_of_its_objective():
    assert zoo.create("align-base", task="image-text-contrast", device="meta").options["smoothing"] == 0.1
    chosen = zoo.create("align-base", task="image-text-contrast", device="meta", smoothing=0.0)
    assert chosen.options["smoothing"] == 0.0
