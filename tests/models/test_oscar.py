"""Oscar: tags, the two contrasts, captions written over masks, classifiers, and the two layouts."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

import zoo
from tests.strategies import build, relative, small_config
from zoo.data.regions.regions import Regions
from zoo.data.tags import TagCollator, TaggedCaptionCollator, mixed
from zoo.errors import ConfigError, InputError
from zoo.tasks.losses import smoothed_token_loss

REGIONS, WORDS, TAGS_AT = 3, 5, 8
IDS = {"cls_id": 1, "sep_id": 2, "mask_id": 3, "random_ids": range(5, 19)}


def writer(**fields):
    own = {"max_positions": 20, "tag_position": TAGS_AT, "start_token_id": 1, "end_token_id": 2, "mask_token_id": 3}
    return build("oscar", small_config("oscar", **own | fields), "masked-lm", seed=1)


def pictures(model):
    features = torch.randn(3, REGIONS, model.config.visual_size, generator=torch.Generator().manual_seed(3)).double()
    return {"visual_features": features, "visual_mask": torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0]])}


def tags():
    return TaggedCaptionCollator(**IDS, caption_length=TAGS_AT, longest=14).beginning([[11, 12], [13], [14, 15, 16]])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}])
@pytest.mark.parametrize("tagged", [True, False])
def test_captions_are_the_same_with_and_without_a_cache(settings, tagged):
    model = writer()
    given = {**(tags() if tagged else {}), **pictures(model), "max_new_tokens": WORDS, **settings}
    with_cache, without = zoo.generate(model, **given), zoo.generate(model, **given, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    assert relative(with_cache.log_probs, without.log_probs) < 1e-10


def test_each_word_is_predicted_at_a_mask_between_the_caption_and_its_tags():
    model = writer(end_token_id=None)
    read, shown = tags(), pictures(model)
    written = zoo.generate(model, **read, **shown, max_new_tokens=WORDS)
    for row in range(3):
        count, words = int(read["attention_mask"][row].sum()), [1]
        named, own = read["input_ids"][row, :count].tolist(), {name: x[row : row + 1] for name, x in shown.items()}
        for step in range(WORDS):
            caption = [*words, 3]
            given = {
                "input_ids": [*caption, *named],
                "token_type_ids": [0] * len(caption) + [1] * count,
                "position_ids": [*range(len(caption)), *range(TAGS_AT, TAGS_AT + count)],
                "ranks": [*range(1, len(caption) + 1), *[0] * count],
            }
            with torch.no_grad():
                logits = model(**{name: torch.tensor([x]) for name, x in given.items()}, **own).logits[0, len(words)]
            assert relative(written.log_probs[row, step], logits.log_softmax(0).max()) < 1e-10
            words.append(int(logits.argmax()))
        assert written.sequences[row].tolist() == words


@pytest.mark.parametrize("tagged", [True, False])
def test_a_captions_score_is_what_writing_it_gave(tagged):
    model = writer(end_token_id=None)
    read = tags() if tagged else {"input_ids": None}
    shown = pictures(model)
    written = zoo.generate(model, **read, **shown, max_new_tokens=WORDS)
    target = written.sequences
    found = zoo.score(
        model,
        read["input_ids"],
        target,
        read.get("attention_mask"),
        target_mask=torch.ones_like(target),
        **shown,
    )
    assert relative(found.log_probs, written.log_probs) < 1e-10


def test_tags_and_regions_see_nothing_of_a_caption_that_is_written():
    model = writer().model
    shown = pictures(model)
    ids = torch.tensor([[1, 7, 8, 2, 11, 2]]).expand(3, -1)
    ranks = torch.tensor([[1, 2, 3, 4, 0, 0]]).expand(3, -1)
    with torch.no_grad():
        one, other = (model(x, ranks=ranks, **shown) for x in (ids, ids.index_fill(1, torch.tensor([0, 2, 3]), 9)))
        plain = model(ids, **shown)
    assert relative(one.text.last_hidden_state[:, 4:], other.text.last_hidden_state[:, 4:]) < 1e-12
    assert relative(one.image.last_hidden_state, other.image.last_hidden_state) < 1e-12
    assert relative(one.image.last_hidden_state, plain.image.last_hidden_state) > 1e-3


@pytest.mark.parametrize(("smoothing", "worst"), [(0.0, 0.0), (0.1, 0.0), (0.1, 0.4), (0.0, 0.4), (0.3, 0.99)])
def test_the_loss_of_captions_is_a_mean_divergence_from_smoothed_labels(smoothing, worst):
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[1, -100, 2, 3], [-100, 6, 0, -100], [-100] * 4])
    each = []
    for scores, label in zip(logits.flatten(0, 1), labels.flatten().tolist(), strict=True):
        if label != -100:
            wanted = [1 - smoothing if i == label else smoothing / 6 for i in range(7)]
            logp = scores.log_softmax(0).tolist()
            each.append(sum(t * (math.log(t) - q) for t, q in zip(wanted, logp, strict=True) if t))
    kept = sorted(each)[: max(1, int(5 * (1 - worst)))]
    assert float(smoothed_token_loss(logits, labels, smoothing, worst)) == pytest.approx(sum(kept) / len(kept))
    nothing = smoothed_token_loss(logits.requires_grad_(), torch.full((3, 4), -100), smoothing, worst)
    assert nothing == 0
    assert torch.autograd.grad(nothing, logits)[0].eq(0).all()
    with pytest.raises(ConfigError, match="label_smoothing"):
        zoo.create("oscar-base", task="masked-lm", device="meta", label_smoothing=1.0)


def test_retrieval_trains_the_authors_two_classes():
    model = build("oscar", small_config("oscar"), "image-text-retrieval", seed=2)
    given = {"input_ids": torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]]), **pictures(model)}
    labels = torch.tensor([1, 0, 1])
    result = model(**given, labels=labels)
    scores = model.heads["image_text_retrieval"].classes(result.encoded.pooler_output)
    assert relative(result.loss, F.cross_entropy(scores, labels)) < 1e-10
    assert relative(result.logits.sigmoid(), scores.softmax(1)[:, 1]) < 1e-10


@pytest.mark.parametrize(
    ("task", "form", "norm"),
    [
        ("visual-entailment", "linear", False),
        ("sequence-classification", "mlp", True),
        ("image-text-retrieval", "linear", False),
        ("image-text-retrieval", "mlp", False),
        ("visual-reasoning", "linear", True),
        ("visual-reasoning", "mlp", False),
        ("visual-reasoning", "mlp", True),
    ],
)
def test_a_tuned_model_goes_to_its_layout_and_back(task, form, norm, tmp_path):
    config = small_config("oscar", classifier=form, classifier_scale=3, image_norm=norm)
    model = build("oscar", config, task, seed=2)
    zoo.save(model, tmp_path / "ours")
    layout = "oscar-vinvl" if norm else "oscar"
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to=layout)
    back = zoo.load(tmp_path / "theirs", task=task)
    assert back.load_report.layout == layout
    assert (back.config.classifier, back.config.image_norm) == (form, norm)
    found = {name: x for name, x in back.state_dict().items() if name.startswith("heads.")}
    for name, x in model.state_dict().items():
        assert torch.equal(x, back.state_dict()[name]), name
    assert ("heads.visual_reasoning.norm.weight" in found) == (task == "visual-reasoning" and form == "mlp" and norm)


@pytest.mark.parametrize("norm", [False, True])
def test_a_classifier_of_two_pictures_has_a_norm_in_oscar_plus_alone(norm):
    config = small_config("oscar", classifier="mlp", classifier_scale=3, image_norm=norm)
    model = build("oscar", config, "visual-reasoning", seed=2)
    head = model.heads["visual_reasoning"]
    features = torch.randn(1, 2, 2, config.visual_size).double()
    result = model(torch.tensor([[1, 5, 2]]), visual_features=features)
    x = torch.relu(head.inner(result.encoded.pooler_output.flatten()[None]))
    x = F.layer_norm(x, x.shape[-1:], head.norm.weight, head.norm.bias, 1e-12) if norm else x
    assert relative(result.logits, F.linear(x, head.output.weight, head.output.bias)) < 1e-10


def test_boxes_are_put_behind_features_that_lack_them():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [0.0, 0.0, 100.0, 80.0]])
    regions = Regions(torch.ones(2, 4), boxes, (100, 80))
    config = small_config("oscar", visual_size=10)
    made = regions.for_model(config)
    assert set(made) == {"visual_features", "visual_mask"}
    wanted = [1, 1, 1, 1, 0.1, 0.25, 0.3, 0.75, 0.2, 0.5]
    assert made["visual_features"][0, 0].tolist() == pytest.approx(wanted)
    whole = Regions(made["visual_features"][0], boxes, (100, 80))
    assert torch.equal(whole.for_model(config)["visual_features"], made["visual_features"])
    with pytest.raises(InputError, match="4 wide, these are 3 wide"):
        Regions(torch.ones(2, 3), boxes, (100, 80)).for_model(config)


def test_half_of_the_pairs_are_mixed_as_the_contrast_wants_it():
    rng = random.Random(0)
    for share, classes in ((0.0, 2), (0.5, 3), (1.0, 2)):
        found = [one for _ in range(500) for one in mixed(4, rng, false_captions=share, classes=classes)]
        for number, (caption, named, label) in enumerate(found):
            own = number % 4
            wrong_caption = share == 1 if classes == 2 else label == 2
            if label == 0:
                assert caption == named == own
            elif wrong_caption:
                assert caption != own == named
            else:
                assert named != own == caption
        counts = Counter(label for *_, label in found)
        assert counts[0] / 2000 == pytest.approx(0.5, abs=0.04)
        if classes == 3:
            assert counts[1] / 2000 == pytest.approx(0.25, abs=0.04)
        assert set(counts) == set(range(classes))


def test_a_batch_of_tagged_captions_trains_both_terms():
    collate = TagCollator(**IDS, false_captions=0.5, classes=3, longest=9)
    pairs = [([5, 6, 7], [11, 12]), ([8, 9], []), ([10, 11, 12, 13, 14, 15, 16, 17], [13]), ([5], [14, 15])]
    batch = collate(pairs, torch.Generator().manual_seed(2))
    model = build("oscar", small_config("oscar", num_contrast_classes=3), "pretraining", seed=1)
    features = torch.randn(4, 2, model.config.visual_size, generator=torch.Generator().manual_seed(1)).double()
    result = model(**batch, visual_features=features)
    assert set(result.losses) == {"masked_lm", "image_text_matching"}
    assert batch["input_ids"].shape[1] <= 9
    assert result.seq_relationship_logits.shape == (4, 3)
    ids, segments = collate.framed([5, 6], [11])
    assert (ids, segments) == ([1, 5, 6, 2, 11, 2], [0, 0, 0, 0, 1, 1])
    assert collate.framed([5, 6], []) == ([1, 5, 6, 2], [0, 0, 0, 0])
    apart = TagCollator(**IDS, mix=False)(pairs)
    assert "match_labels" not in apart


def test_words_beside_wrong_tags_may_stay_as_they_are():
    collate = TagCollator(**IDS, mask_unmatched=False, probability=1.0)
    batch = collate([([5, 6], [11]), ([7, 8], [12])] * 8, torch.Generator().manual_seed(0))
    hidden = (batch["labels"] != -100).any(1)
    assert torch.equal(hidden, batch["match_labels"] != 1)
    assert hidden.any()
    assert not hidden.all()


def test_what_can_not_be_meant_is_refused():
    read = TagCollator(**IDS)
    with pytest.raises(InputError, match="number 0 has 2 tags alone"):
        read([([], [5, 6]), ([7], [8])])
    with pytest.raises(InputError, match="mix=False"):
        read([([5], [6])])
    with pytest.raises(InputError, match="0 has neither words nor tags"):
        TaggedCaptionCollator(**IDS)([([], [])])
    with pytest.raises(InputError, match="regions alone"):
        TaggedCaptionCollator(**IDS).beginning([[], []])
    with pytest.raises(ConfigError, match="classes must be 2"):
        TagCollator(**IDS, classes=4)
    with pytest.raises(ConfigError, match="caption_length=80"):
        TaggedCaptionCollator(**IDS, caption_length=80)
    with pytest.raises(ConfigError, match="num_segments=1"):
        small_config("oscar", num_segments=1)
    with pytest.raises(ConfigError, match='"linear" or "mlp"'):
        small_config("oscar", classifier="cnn")
    model = writer()
    with pytest.raises(InputError, match="and 8, the positions of the model"):
        zoo.generate(model, **tags(), **pictures(model), max_length=12)
