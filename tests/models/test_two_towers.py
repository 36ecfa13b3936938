"""A text tower and an image tower under one model: what CLIP, ALIGN and their kin share."""

from __future__ import annotations

import pytest
import torch

from tests.strategies import randomised
from zoo.errors import InputError
from zoo.models.clip import Clip, ClipConfig

CONFIG = ClipConfig(
    vocab_size=40,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=12,
    max_positions=9,
    image_size=12,
    patch_size=6,
    image_hidden_size=6,
    image_num_layers=2,
    image_num_heads=3,
    image_intermediate_size=10,
    projection_size=5,
)
IDS = torch.tensor([[38, 3, 4, 39, 0, 0], [38, 39, 0, 0, 0, 0], [38, 7, 7, 7, 7, 39]])
PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def towers(**fields: object) -> Clip:
    return randomised(Clip(CONFIG.replace(**fields)).double())  # type: ignore[return-value]


def test_a_tower_runs_where_it_has_something_to_read_and_gives_what_both_give():
    model = towers()
    both, texts, pictures = model(IDS, pixel_values=PIXELS), model(IDS), model(pixel_values=PIXELS)
    assert torch.equal(both.text_embeds, texts.text_embeds)
    assert torch.equal(both.image_embeds, pictures.image_embeds)
    assert set(texts) == {"text_embeds", "text"}
    assert set(pictures) == {"image_embeds", "image"}
    assert both.logits_per_image.shape == (2, 3)
    assert torch.equal(both.logits_per_text, both.logits_per_image.T)
    with pytest.raises(InputError, match="nothing to read"):
        model()


def test_logits_are_the_scaled_cosines_of_the_features():
    model = towers()
    model.logit_scale.data.fill_(0.7)
    out = model(IDS, pixel_values=PIXELS)
    text, image = model.encode_text(IDS), model.encode_image(PIXELS)
    for i in range(2):
        for j in range(3):
            cosine = image[i] @ text[j] / (image[i] @ image[i]).sqrt() / (text[j] @ text[j]).sqrt()
            assert torch.allclose(out.logits_per_image[i, j], 2.0137527074704766 * cosine, rtol=1e-12)
    assert torch.allclose(model.encode_text(IDS, normalize=True), out.text_embeds)
    assert torch.allclose(model.encode_image(PIXELS, normalize=True), out.image_embeds)
    shifted = towers(logit_bias=True)
    shifted.load_state_dict({**model.state_dict(), "logit_bias": torch.tensor(-3.0).double()})
    assert torch.allclose(shifted(IDS, pixel_values=PIXELS).logits_per_image, out.logits_per_image - 3)


def test_the_places_of_the_towers_are_the_streams_text_and_image():
    found = {(site.path.split(".")[0], site.stream) for site in towers().sites()}
    assert found == {("text", "text"), ("image", "image")}
    assert towers().image.sites().__next__().stream == "image"


def test_what_follows_the_end_token_is_left_out_and_changes_nothing():
    model, longer = towers(), torch.cat([IDS, torch.zeros(3, 2, dtype=torch.long)], 1)
    out, whole = model(IDS), model(IDS, torch.ones_like(IDS))
    assert torch.allclose(out.text_embeds, whole.text_embeds, rtol=1e-12)
    assert not out.text.last_hidden_state[0, 4:].any()
    assert whole.text.last_hidden_state[0, 4:].all()
    assert torch.allclose(model(longer).text_embeds, out.text_embeds, rtol=1e-12)


def test_the_vector_of_a_text_stands_at_its_largest_id_or_at_its_first_end_token():
    ids = torch.tensor([[38, 5, 39, 20, 39, 0], [38, 4, 3, 2, 5, 7]])
    states = towers().text(ids, torch.ones_like(ids))
    named = towers(eos_token_id=20).text(ids, torch.ones_like(ids))
    assert torch.equal(states.pooler_output, states.last_hidden_state[[0, 1], [2, 0]])
    assert torch.equal(named.pooler_output, named.last_hidden_state[[0, 1], [3, 5]]), "without one, the last token's"


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (torch.zeros(1, 3, 12, 12, dtype=torch.uint8), "must be a float tensor"),
        (torch.zeros(1, 12, 12, 3), "channels come second"),
        (torch.zeros(3, 12, 12), r"must be \(batch, 3, height, width\)"),
        (torch.zeros(1, 3, 18, 18), "12 x 12 pixels, got 18 x 18"),
        (torch.full((1, 3, 12, 12), float("nan")), "finite"),
    ],
)
def test_pictures_that_no_tower_can_read_are_refused(pixels, said):
    with pytest.raises(InputError, match=said):
        towers()(pixel_values=pixels)
