"""VL-BERT: whom words see, texts without pictures, the element at the end, its losses and its layout."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests.strategies import build, relative, small_config
from zoo.errors import ConfigError, InputError

IDS = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def model_of(task=None, **fields):
    return build("vl-bert", small_config("vl-bert", **fields), task, seed=1)


def pictures(config, regions=3):
    generator = torch.Generator().manual_seed(2)
    return {
        "visual_features": torch.randn(2, regions, config.visual_size, generator=generator).double(),
        "visual_boxes": torch.rand(2, regions, config.box_size, generator=generator).double(),
    }


def test_a_word_sees_the_whole_picture_or_the_region_that_it_names():
    model = model_of()
    shown, places = pictures(model.config), torch.tensor([[0, 2, 1, 0], [0, 1, 0, 0]])
    with torch.no_grad():
        plain = model(IDS, MASK, **shown)
        whole = model(IDS, MASK, **shown, word_regions=torch.zeros_like(IDS))
        named = model(IDS, MASK, **shown, word_regions=places, output_hidden_states=True)
        vectors = model.image_embeddings(shown["visual_features"], shown["visual_boxes"], None)
        tokens = model.embeddings.token.weight[IDS] + model.visual_text_embeddings(
            vectors[torch.arange(2)[:, None], places]
        )
        wanted = model.embeddings(None, None, None, tokens)
    assert relative(plain.last_hidden_state, whole.last_hidden_state) < 1e-12
    assert relative(named.hidden_states[0][:, :4][MASK.bool()], wanted[MASK.bool()]) < 1e-12
    assert relative(named.last_hidden_state, plain.last_hidden_state) > 1e-4


def test_a_masked_region_has_learned_vectors_in_place_of_its_feature_and_of_its_word():
    model = model_of()
    shown, masked = pictures(model.config), torch.tensor([[0, 1, 0], [0, 0, 1]])
    other = {**shown, "visual_features": torch.where(masked[:, :, None] == 1, 9.0, shown["visual_features"])}
    with torch.no_grad():
        one, same = (model(IDS, MASK, **x, visual_masked=masked).last_hidden_state for x in (shown, other))
        plain = model(IDS, MASK, **shown).last_hidden_state
        model.image_embeddings.mask_word.weight.mul_(-2)
        moved = model(IDS, MASK, **shown, visual_masked=masked).last_hidden_state
    assert relative(one, same) < 1e-12
    assert relative(one, plain) > 1e-4
    assert relative(one, moved) > 1e-4
    bare = model_of(masked_regions=False, masked_features=False)
    with pytest.raises(InputError, match="without its vectors of masked regions"):
        bare(IDS, MASK, **shown, visual_masked=masked)


def test_regions_and_the_end_stand_behind_the_real_words():
    model = model_of()
    shown = pictures(model.config)
    with torch.no_grad():
        result = model(IDS, MASK, **shown)
        short = model(IDS[1:, :3], **{name: x[1:] for name, x in shown.items()})
    assert result.last_hidden_state.shape[1] == 4 + 3 + 1
    assert result.image.last_hidden_state.shape[1] == 3
    assert relative(result.image.last_hidden_state[1:], short.image.last_hidden_state) < 1e-12
    assert relative(result.last_hidden_state[1, -1], short.last_hidden_state[0, -1]) < 1e-12


def test_a_text_without_a_picture_has_a_learned_vector_for_one():
    model = model_of("pretraining", pooler=False)
    labels = torch.tensor([[-100, 5, -100, -100], [-100, 7, -100, 3]])
    result = model(IDS, MASK, labels=labels)
    assert set(result.losses) == {"masked_lm"}
    result.loss.backward()
    assert model.model.text_only_embeddings.weight.grad.abs().max() > 0
    assert result.encoded.region_length == 0
    bare = model_of(text_only=False)
    with pytest.raises(InputError, match="text_only = False"):
        bare(IDS, MASK)


@pytest.mark.parametrize("average", ["labels", "samples"])
def test_losses_are_means_over_labels_or_over_texts(average):
    config = small_config("vl-bert", pooler=False, matching=False)
    model = build("vl-bert", config, "pretraining", seed=1, loss_average=average)
    labels = torch.tensor([[-100, 5, 4, -100], [-100, 7, -100, 3]])
    chosen = torch.tensor([[0, 1, 1], [0, 0, 1]])
    targets = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)).double().softmax(2)
    result = model(IDS, MASK, **pictures(config), labels=labels, region_labels=chosen, region_targets=targets)

    def mean(each):  # {row: losses}
        if average == "labels":
            return sum(sum(x) for x in each) / sum(len(x) for x in each)
        return sum(sum(x) / (len(x) + 1e-4) for x in each) / (sum(bool(x) for x in each) + 1e-4)

    words = result.prediction_logits.log_softmax(2)
    wanted = mean([[-float(words[0, 1, 5]), -float(words[0, 2, 4])], [-float(words[1, 1, 7])]])  # the last is padding
    assert float(result.losses["masked_lm"]) == pytest.approx(wanted)
    scores = result.region_logits.log_softmax(2)
    each = [[-float((targets[r, n] * scores[r, n]).sum()) for n in range(3) if chosen[r, n]] for r in range(2)]
    assert float(result.losses["masked_region"]) == pytest.approx(mean(each))
    with pytest.raises(ConfigError, match="loss_average"):
        zoo.create("vl-bert-base", task="pretraining", device="meta", loss_average="mean")


def test_no_picture_is_seen_before_training():
    model = zoo.create("vl-bert-base", **{**small_config("vl-bert").to_dict(), "dropout": 0.0}).double().eval()
    shown = pictures(model.config)
    text = {"output_hidden_states": [0]}
    with torch.no_grad():
        one, other = (
            model(IDS, MASK, **x, **text).hidden_states[0] for x in (shown, {n: -x for n, x in shown.items()})
        )
    assert torch.equal(one, other)


@pytest.mark.parametrize("form", ["transform", "2fc", "1fc"])
@pytest.mark.parametrize(
    ("task", "norm"), [("visual-question-answering", True), ("multiple-choice", False), ("grounding", True)]
)
def test_a_tuned_model_goes_to_its_layout_and_back(task, norm, form, tmp_path):
    options = {"num_labels": 3} if task == "visual-question-answering" else {}
    config = small_config("vl-bert", classifier=form, visual_norm=norm, text_only=False, region_size=5, matching=False)
    model = build("vl-bert", config, task, seed=2, **options)
    zoo.save(model, tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="vl-bert")
    back = zoo.load(tmp_path / "theirs", task=task)
    for name, x in model.state_dict().items():
        assert torch.equal(x, back.state_dict()[name]), name


def test_what_can_not_be_meant_is_refused():
    model = model_of()
    shown = pictures(model.config)
    with pytest.raises(InputError, match="12 tokens long; this model reads 11"):
        model(torch.ones(2, 12, dtype=torch.int64), **shown)
    with pytest.raises(InputError, match=r"word_regions must lie in 0\.\.2"):
        model(IDS, MASK, **shown, word_regions=torch.full_like(IDS, 3))
    with pytest.raises(InputError, match="word_regions without visual_features"):
        model(IDS, MASK, word_regions=torch.zeros_like(IDS))
    with pytest.raises(InputError, match="who sees the end"):
        model(IDS, torch.ones(2, 4, 4, dtype=torch.int64), **shown)
    with pytest.raises(InputError, match="say something of regions"):
        model(IDS, visual_masked=torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="text_only needs region_size=5"):
        small_config("vl-bert", region_size=5)
    with pytest.raises(ConfigError, match="num_segments=2"):
        small_config("vl-bert", num_segments=2)
    with pytest.raises(ConfigError, match="classifier must be one of transform, 2fc, 1fc"):
        small_config("vl-bert", classifier="3fc")
