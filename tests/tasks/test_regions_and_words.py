"""Losses and heads over regions beside words, each held to a plain loop that shares no code with
it.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from tests.references.case import GOLDEN, load_case
from tests.strategies import build, small_batch, small_config
from zoo.errors import CheckpointError, ConfigError, InputError, TaskError, UnknownNameError
from zoo.tasks.losses import region_class_loss, region_feature_loss
from zoo.tasks.pairs import PairedAttentionHead
from zoo.tasks.ranking import hard_negatives, hinge_loss, ranking_loss
from zoo.tasks.transport import transport
from zoo.training import grow_tables


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]])
REAL = torch.tensor([[True, True, True, False], [True, True, True, True]])
CHOSEN = [(0, 0), (0, 2), (1, 1), (1, 2)]  # label 1 and real


def test_the_loss_of_masked_features_is_the_mean_square_over_chosen_numbers():
    predicted, targets = drawn(2, 4, 3), drawn(2, 4, 3, seed=1)
    squares = [float(predicted[r, c, k] - targets[r, c, k]) ** 2 for r, c in CHOSEN for k in range(3)]
    mine = region_feature_loss(predicted, targets.masked_fill(~REAL.unsqueeze(2), math.nan), LABELS, REAL)
    assert math.isclose(float(mine), sum(squares) / len(squares), rel_tol=1e-12)
    left_out = targets.clone()
    left_out[0, 0] = -100  # a matched pair's term leaves a whole row out like this
    mine = region_feature_loss(predicted, left_out, LABELS, REAL)
    assert math.isclose(float(mine), sum(squares[3:]) / len(squares[3:]), rel_tol=1e-12)
    with pytest.raises(InputError, match="region_labels"):
        region_feature_loss(predicted, targets, None)
    with pytest.raises(TaskError, match="feature_targets must have shape"):
        region_feature_loss(predicted, targets[..., :2], LABELS)


def log_softmax(row: Tensor) -> list[float]:
    total = math.log(sum(math.exp(float(x)) for x in row))
    return [float(x) - total for x in row]


def test_the_losses_of_masked_classes_are_the_formulas():
    logits, targets = drawn(2, 4, 5), drawn(2, 4, 5, seed=1).mul(2).softmax(-1)
    targets[0, 0] = torch.tensor([0.9, 0.01, 0.05, 0.02, 0.02])  # surest of the background, which is no class
    parts, likeliest = [], []
    for r, c in CHOSEN:
        logs, wanted = log_softmax(logits[r, c]), [float(x) for x in targets[r, c]]
        parts += [w * (math.log(w) - log) for w, log in zip(wanted, logs, strict=True)]
        likeliest.append(-logs[max(range(1, 5), key=wanted.__getitem__)])
    assert likeliest[0] == -log_softmax(logits[0, 0])[2]
    mine = region_class_loss(logits, targets, LABELS, "distribution", REAL)
    assert math.isclose(float(mine), sum(parts) / len(parts), rel_tol=1e-12)
    mine = region_class_loss(logits, targets, LABELS, "likeliest", REAL)
    assert math.isclose(float(mine), sum(likeliest) / len(likeliest), rel_tol=1e-12)
    numbers = torch.tensor([[4, 9, 2, 9], [9, 0, -100, 9]])  # a class of its own, the background too; -100 = left out
    wanted = [-log_softmax(logits[r, c])[int(numbers[r, c])] for r, c in CHOSEN[:3]]
    mine = region_class_loss(logits, numbers, LABELS, real=REAL)
    assert math.isclose(float(mine), sum(wanted) / 3, rel_tol=1e-12)


def naive_transport(words: Tensor, regions: Tensor, beta: float, iterations: int) -> float:
    """IPOT on lists of floats, for one pair without padding."""
    m, n = len(words), len(regions)
    cost = [[1 - float(w @ r) / (float(w.norm()) * float(r.norm())) for r in regions] for w in words]
    plan = [[1.0] * n for _ in range(m)]
    sigma = [1 / m] * m
    for _ in range(iterations):
        q = [[math.exp(-cost[i][j] / beta) * plan[i][j] for j in range(n)] for i in range(m)]
        delta = [1 / (n * sum(q[i][j] * sigma[i] for i in range(m))) for j in range(n)]
        sigma = [1 / (m * sum(q[i][j] * delta[j] for j in range(n))) for i in range(m)]
        plan = [[delta[j] * q[i][j] * sigma[i] for j in range(n)] for i in range(m)]
    return sum(cost[i][j] * plan[i][j] for i in range(m) for j in range(n))


def test_the_transport_is_ipot_on_what_is_real_alone():
    words, regions = drawn(2, 5, 4), drawn(2, 3, 4, seed=1)
    real_words = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0]]).bool()
    real_regions = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    apart, cost, plan = transport(words, regions, real_words, real_regions)
    for row in range(2):
        wanted = naive_transport(words[row][real_words[row]], regions[row][real_regions[row]], 0.5, 50)
        assert math.isclose(float(apart[row]), wanted, rel_tol=1e-10)
    both = real_words.unsqueeze(2) & real_regions.unsqueeze(1)
    assert not cost[~both].any()
    assert not plan.transpose(1, 2)[~both].any()
    assert torch.allclose(plan.sum((1, 2)), torch.ones(2, dtype=torch.float64), atol=1e-4), "a plan moves all there is"
    half = transport(words.bfloat16(), regions.bfloat16(), real_words, real_regions)[0]
    wide = transport(words.bfloat16().float(), regions.bfloat16().float(), real_words, real_regions)[0]
    assert half.dtype == torch.float32
    assert torch.equal(half, wide), "half precision is widened first"
    with torch.autocast("cpu", torch.bfloat16):
        mixed = transport(words.bfloat16(), regions.bfloat16(), real_words, real_regions)[0]
    assert torch.equal(mixed, wide), "mixed precision leaves it alone"
    nothing = transport(words, regions, torch.zeros(2, 5, dtype=torch.bool), real_regions)[0]
    assert not nothing.any(), "where no word is real nothing is moved"


def test_gradients_of_the_transport_go_through_the_costs_alone():
    words, regions = drawn(1, 3, 4).requires_grad_(), drawn(1, 2, 4, seed=1)
    apart, _, plan = transport(words, regions)
    (mine,) = torch.autograd.grad(apart.sum(), words)
    again = drawn(1, 3, 4).requires_grad_()
    cosines = torch.stack([torch.stack([torch.cosine_similarity(w, r, 0) for r in regions[0]]) for w in again[0]])
    (wanted,) = torch.autograd.grad(((1 - cosines) * plan[0].T).sum(), again)
    assert torch.allclose(mine, wanted, atol=1e-12)
    assert not plan.requires_grad


def uniter(task: str, **options: Any) -> Any:
    return build("uniter", small_config("uniter"), task, **options)


def test_the_terms_of_uniter_are_summed_with_the_alignment_weighed():
    model, batch = uniter("pretraining"), small_batch("uniter")
    matches = torch.tensor([1, 0, 1, -100])
    with torch.no_grad():
        out = model(**batch.inputs, match_labels=matches)
    states = out.encoded
    apart = transport(
        states.text.last_hidden_state, states.image.last_hidden_state, batch.real(), batch.real("visual_mask")
    )[0]
    signed = (float(apart[0]) - float(apart[1]) + float(apart[2])) / 3
    assert set(out.losses) == {"image_text_matching", "word_region_alignment"}
    assert math.isclose(float(out.losses["word_region_alignment"]), 0.1 * signed, rel_tol=1e-10)
    with torch.no_grad():
        assert "word_region_alignment" not in model(**batch.inputs).scores
    with pytest.raises(ConfigError, match="class_loss"):
        uniter("pretraining", class_loss="hinge")


def test_the_head_of_masked_features_has_the_embedding_of_features_as_its_last_matrix():
    model, batch = uniter("pretraining"), small_batch("uniter")
    head, table = model.heads["region_feature"], model.model.image_embeddings.features.weight
    with torch.no_grad():
        out = model(**batch.inputs)
        state = out.encoded.image.last_hidden_state[0, 0]
        x = head.norm(torch.nn.functional.gelu(head.dense.weight @ state + head.dense.bias))
        wanted = torch.stack([x @ table[:, k] + head.bias[k] for k in range(5)])
    assert torch.allclose(out.scores["region_feature"][0, 0], wanted, atol=1e-12)
    assert not any("decoder" in name for name, _ in head.named_parameters())


def test_a_masked_region_has_the_vector_of_masks_added_to_its_feature():
    model, batch = build("uniter", small_config("uniter")), dict(small_batch("uniter").inputs)
    masked = batch.pop("visual_masked")
    moved = batch["visual_features"] + masked.unsqueeze(2) * model.image_embeddings.mask.weight[1]
    with torch.no_grad():
        mine = model(**batch, visual_masked=masked).last_hidden_state
        wanted = model(**{**batch, "visual_features": moved}).last_hidden_state
    assert torch.allclose(mine, wanted, atol=1e-12)
    with pytest.raises(InputError, match="visual_masked"):
        model(**batch, visual_masked=masked.double())
    with pytest.raises(InputError, match="one for each of the 3 regions"):
        model(**{**batch, "visual_boxes": batch["visual_boxes"][:, :2]})


def test_words_and_pictures_are_read_alone_too():
    model, batch = build("uniter", small_config("uniter")), dict(small_batch("uniter").inputs)
    words = {name: x for name, x in batch.items() if not name.startswith("visual")}
    regions = {name: x for name, x in batch.items() if name.startswith("visual")}
    with torch.no_grad():
        text, image = model(**words), model(**regions)
    assert (text.text_length, image.text_length) == (6, 0)
    assert text.last_hidden_state.shape == (4, 6, 8)
    assert image.image.last_hidden_state.shape == (4, 3, 8)
    first = image.last_hidden_state[:, 0]
    assert torch.allclose(image.pooler_output, torch.tanh(model.pooler.dense(first)), atol=1e-12)
    for given, message in (
        ({}, "neither"),
        ({"attention_mask": words["attention_mask"]} | regions, "without input_ids"),
    ):
        with pytest.raises(InputError, match=message):
            model(**given)
    with pytest.raises(InputError, match="visual_mask was given without"):
        model(**words, visual_mask=regions["visual_mask"])


def test_a_head_of_two_outputs_judges_each_choice_alone():
    model, batch = uniter("multiple-choice"), small_batch("uniter")
    given = {name: x[None] for name, x in batch.inputs.items()}
    with torch.no_grad():
        out = model(**given, labels=torch.tensor([2]))
        scores = model.heads["multiple_choice"](out.encoded.pooler_output)
        each = model(**given, labels=torch.tensor([[0, 1, 1, -100]]))
    assert torch.equal(out.logits[0], scores[:, 1])
    wrong, right = (-scores.log_softmax(1)[:, k] for k in (0, 1))
    assert math.isclose(float(out.loss), float(wrong[0] + wrong[1] + right[2] + wrong[3]) / 4, rel_tol=1e-12)
    assert math.isclose(float(each.loss), float(wrong[0] + right[1] + right[2]) / 3, rel_tol=1e-12)


def test_the_hinge_is_over_sigmoids_of_wrong_choices():
    logits, labels = drawn(3, 4), torch.tensor([2, 0, -100])
    sigmoid = [[1 / (1 + math.exp(-float(x))) for x in row] for row in logits]
    parts = [
        max(0.0, 0.3 + sigmoid[r][c] - sigmoid[r][int(labels[r])]) for r in range(2) for c in range(4) if c != labels[r]
    ]
    assert math.isclose(float(hinge_loss(logits, labels, 0.3)), sum(parts) / 6, rel_tol=1e-12)


def choices() -> tuple[dict[str, Tensor], Tensor]:
    """Two captions, each with five pictures."""
    generator = torch.Generator().manual_seed(3)
    batch = {
        "input_ids": torch.randint(1, 19, (2, 4), generator=generator),
        "visual_features": drawn(2, 5, 3, 5),
        "visual_boxes": drawn(2, 5, 3, 5, seed=1),
    }
    return batch, torch.tensor([1, 4])


def test_hard_negatives_are_the_wrong_choices_that_score_highest():
    model = uniter("image-text-retrieval").train()
    batch, labels = choices()
    hard, zeros = hard_negatives(model, batch, labels, 2)
    assert model.training
    with torch.no_grad():
        logits = model.eval()(**batch).logits
        mine = model(**hard, labels=zeros)
    for row, right in enumerate(labels.tolist()):
        wrong = sorted((float(logits[row, c]) for c in range(5) if c != right), reverse=True)[:2]
        assert torch.allclose(mine.logits[row], torch.tensor([float(logits[row, right]), *wrong], dtype=torch.float64))
    assert torch.allclose(mine.loss, hinge_loss(mine.logits, zeros))
    assert torch.equal(hard["input_ids"], batch["input_ids"]), "what all choices share stays"
    for number in (0, 5):
        with pytest.raises(InputError, match=r"number must lie in 1\.\.4"):
            hard_negatives(model, batch, labels, number)
    with pytest.raises(TaskError, match="right choice"):
        hard_negatives(model, batch, torch.tensor([1, -100]), 2)
    with pytest.raises(InputError, match="must have choices"):
        hard_negatives(model, {"input_ids": batch["input_ids"]}, labels, 2)


@pytest.mark.parametrize(("ranking", "name"), [(None, "hinge"), ("softmax", "softmax")])
def test_a_family_says_how_choices_compete_and_an_option_says_otherwise(ranking, name):
    model, (batch, labels) = uniter("image-text-retrieval", ranking=ranking), choices()
    with torch.no_grad():
        out = model(**batch, labels=labels)
    wanted = hinge_loss(out.logits, labels) if name == "hinge" else nn.functional.cross_entropy(out.logits, labels)
    assert torch.allclose(out.loss, wanted)
    for task in ("image-text-retrieval", "grounding"):
        with pytest.raises(UnknownNameError, match="ranking loss"):
            uniter(task, ranking="hing")
        for margin in (-0.1, True, "wide", math.nan):
            with pytest.raises(ConfigError, match="margin must be a number of 0 or more"):
                uniter(task, margin=margin)


def test_paired_attention_is_torchs_attention_both_ways_and_a_gated_mean():
    config = small_config("uniter")
    head = PairedAttentionHead(config, 2).double().eval()
    states, real = drawn(4, 5, 8), torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) > 0.3
    real[:, 0] = True
    twins = []
    for mine in (head.first, head.second):
        twin = nn.MultiheadAttention(8, config.num_heads, batch_first=True).double()
        with torch.no_grad():
            parts = (mine.query, mine.key, mine.value)
            twin.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            twin.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
            twin.out_proj.load_state_dict(mine.output.state_dict())
        twins.append(twin)
    with torch.no_grad():
        mine = head.pooled(states, real)
        for pair in range(2):
            sides = [states[2 * pair + k][real[2 * pair + k]] for k in range(2)]
            for k, twin in enumerate(twins):
                own, other = sides[k][None], sides[1 - k][None]
                looked = twin(own, other, other, need_weights=False)[0]
                z = torch.relu(head.both(torch.cat([looked, own], 2)))[0]
                weights = torch.relu(head.gate(z)).softmax(0)
                assert torch.allclose(mine[pair, 8 * k : 8 * k + 8], (weights * z).sum(0), atol=1e-12)


def test_visual_reasoning_with_paired_attention_is_saved_and_loaded(tmp_path):
    model, batch = uniter("visual-reasoning", head="paired-attention"), small_batch("uniter")
    given = {name: x.unflatten(0, (2, 2)) for name, x in batch.inputs.items()}
    again = zoo.load(zoo.save(model, tmp_path / "saved"))
    assert (again.options["head"], again.options["pairs"]) == ("paired-attention", True)
    with torch.no_grad():
        assert torch.allclose(model(**given).logits, again(**given).logits, atol=1e-12)
    report = zoo.convert(tmp_path / "saved", tmp_path / "theirs", to="uniter")
    assert report.checks.ok
    back = zoo.load(tmp_path / "theirs", task="visual-reasoning")
    with torch.no_grad():
        assert torch.allclose(model(**given).logits, back(**given).logits, atol=1e-12)
    with pytest.raises(ConfigError, match="pairs of pictures"):
        uniter("visual-reasoning", head="paired-attention", pairs=False)


def test_a_region_of_unicoder_vl_is_its_parts_added_and_normed():
    model, batch = build("unicoder-vl", small_config("unicoder-vl")), dict(small_batch("unicoder-vl").inputs)
    segments = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 0]])
    part, tables = model.image_embeddings, model.embeddings
    for given, rows in (({}, torch.ones_like(segments)), ({"visual_token_type_ids": segments}, segments)):
        with torch.no_grad():
            mine = model(**batch, **given, output_hidden_states=True).image.hidden_states[0]
            for row in range(4):
                for region in range(3):
                    if not batch["visual_mask"][row, region]:
                        continue
                    x = part.features.weight @ batch["visual_features"][row, region] + part.features.bias
                    x = x + part.boxes.weight @ batch["visual_boxes"][row, region] + part.boxes.bias
                    x = x + tables.segment.weight[rows[row, region]] + tables.position.weight[0]
                    x = (x - x.mean()) / (x.var(correction=0) + 1e-12).sqrt() * part.norm.weight + part.norm.bias
                    assert torch.allclose(mine[row, region], x, atol=1e-10)


@pytest.mark.parametrize("name", ["unicoder-vl", "imagebert"])
def test_words_and_regions_count_on_matched_pairs_alone(name):
    model, batch = build(name, small_config(name), "pretraining"), small_batch(name)
    matched, words = torch.tensor([1, 0, 1, -100]), torch.full((4, 6), -100)
    words[:, 3:] = torch.arange(12).view(4, 3)
    classes, features = drawn(4, 3, 4).softmax(-1), drawn(4, 3, 5, seed=1)
    labels = {"labels": words, "region_labels": torch.ones(4, 3, dtype=torch.long), "class_targets": classes}
    labels |= {"feature_targets": features} if name == "imagebert" else {}
    with torch.no_grad():
        out = model(**batch.inputs, match_labels=matched, **labels)
    real, regions = batch.real(), batch.real("visual_mask")
    rows = [row for row in range(4) if matched[row] == 1]
    lost = [
        -log_softmax(out.prediction_logits[r, c])[int(words[r, c])] for r in rows for c in range(3, 6) if real[r, c]
    ]
    assert math.isclose(float(out.losses["masked_lm"]), sum(lost) / len(lost), rel_tol=1e-10)
    lost = [
        -log_softmax(out.region_logits[r, c])[1 + int(classes[r, c, 1:].argmax())]
        for r in rows
        for c in range(3)
        if regions[r, c]
    ]
    assert math.isclose(float(out.losses["region_class"]), sum(lost) / len(lost), rel_tol=1e-10)
    if name == "imagebert":
        squares = (out.scores["region_feature"] - features)[rows][regions[rows]] ** 2
        assert math.isclose(float(out.losses["region_feature"]), float(squares.mean()), rel_tol=1e-10)
    logits = out.seq_relationship_logits[:, 0].tolist()
    lost = [math.log1p(math.exp(-x if match == 1 else x)) for x, match in zip(logits, [1, 0, 1], strict=False)]
    assert math.isclose(float(out.losses["image_text_matching"]), sum(lost) / 3, rel_tol=1e-10)
    with pytest.raises(InputError, match="give match_labels too"):
        model(**batch.inputs, **labels)


def test_imagebert_ranks_by_each_pair_and_by_the_choice():
    logits, labels = drawn(3, 4), torch.tensor([2, 0, -100])
    cells = [(r, c, -1 if c == labels[r] else 1) for r in range(2) for c in range(4)]
    single = [math.log1p(math.exp(sign * float(logits[r, c]))) for r, c, sign in cells]
    choice = [-log_softmax(logits[r])[int(labels[r])] for r in range(2)]
    mine = ranking_loss("binary-softmax", logits, labels, 0.2)
    assert math.isclose(float(mine), sum(single) / 8 + sum(choice) / 2, rel_tol=1e-12)


@pytest.mark.parametrize("name", ["unicoder-vl", "imagebert"])
def test_what_nobody_can_be_compared_with_says_so(name):
    assert zoo.info(f"{name}-base")["notes"] == "no public reference; not verified against any"
    assert zoo.list_models(f"{name}*", pretrained=True) == []


def test_boxes_of_another_form_are_refused_with_the_right_one_named():
    for name, size, form in (("uniter", 7, "width and height"), ("unicoder-vl", 5, "share of its area")):
        model, batch = build(name, small_config(name, box_size=size)), dict(small_batch(name).inputs)
        batch["visual_boxes"] = drawn(4, 3, 4).sigmoid()
        with pytest.raises(
            InputError, match=rf"{size} numbers for each region, x1, y1, x2, y2.*{form}.*got 4.*for_model"
        ):
            model(**batch)


def test_what_for_model_makes_of_regions_is_what_each_model_reads():
    features, boxes = torch.rand(2, 5), torch.tensor([[10.0, 4, 50, 24], [0, 0, 100, 40]])
    regions, shares = zoo.Regions(features, boxes, (100, 40)), [0.1, 0.1, 0.5, 0.6]
    for name, more in (("uniter", [0.4, 0.5, 0.2]), ("unicoder-vl", [0.2]), ("imagebert", [0.2])):
        given = regions.for_model(small_config(name, box_size=4 + len(more)))
        assert torch.allclose(given["visual_boxes"][0, 0], torch.tensor([*shares, *more]))
        assert given["visual_features"].shape == (1, 2, 5), "no region for the whole picture"


def test_a_whole_file_of_the_authors_is_read_with_its_copies_checked(tmp_path):
    from safetensors.torch import save_file

    case = load_case(GOLDEN / "uniter" / "pretrain-heads")
    whole = dict(case.weights)
    whole["cls.predictions.decoder.weight"] = whole["uniter.embeddings.word_embeddings.weight"].clone()
    whole["feat_regress.weight"] = whole["uniter.img_embeddings.img_linear.weight"].clone()
    save_file(whole, tmp_path / "uniter-base.safetensors")
    model = zoo.load(tmp_path / "uniter-base.safetensors", config=case.config, task="pretraining")
    assert model.load_report.layout == "uniter"
    assert not model.load_report.random
    back = zoo.convert(zoo.save(model, tmp_path / "ours"), tmp_path / "theirs", to="uniter")
    assert back.checks.ok
    whole["feat_regress.weight"][0, 0] += 1
    save_file(whole, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match="feat_regress"):
        zoo.load(tmp_path / "broken.safetensors", config=case.config, task="pretraining")


@pytest.mark.parametrize("tied", [True, False])
def test_tables_grow_by_new_words_and_by_copies_of_segments(tied, tmp_path):
    model, batch = uniter("masked-lm", seed=4), dict(small_batch("uniter").inputs)
    if not tied:
        model = build("uniter", small_config("uniter", tie_word_embeddings=False), "masked-lm", seed=4)
    with torch.no_grad():
        before = model(**batch).logits
        grown = grow_tables(model, words=3, segments=(0, 1, 0), generator=torch.Generator().manual_seed(0))
        after = grown(**batch).logits
    assert grown is model
    assert (model.config.vocab_size, model.config.num_segments) == (22, 5)
    assert after.shape[2] == 22
    assert torch.allclose(before, after[..., :19], atol=1e-12), "what was there says what it said"
    table = model.model.embeddings.segment.weight
    assert torch.equal(table[2:], table[[0, 1, 0]])
    new = model.model.embeddings.token.weight[19:]
    assert 0 < float(new.detach().abs().max()) <= 2 * model.config.initializer_range
    with torch.no_grad():
        same = model(**batch, token_type_ids=torch.full((4, 6), 4)).logits
    assert torch.allclose(same, after, atol=1e-12)
    assert zoo.load(zoo.save(model, tmp_path / "grown")).config == model.config
    for wrong, message in (({"segments": (9,)}, r"rows in 0\.\.4, got 9"), ({"words": -1}, "0 or more")):
        with pytest.raises(InputError, match=message):
            grow_tables(model, **wrong)
    with pytest.raises(InputError, match="only plain tables grow"):
        grow_tables(build("distilbert", small_config("distilbert")), segments=(0,))


@pytest.mark.parametrize("ours", [True, False])
def test_retrieval_starts_as_the_second_output_of_the_matching_head(ours, tmp_path, recwarn):
    case = load_case(GOLDEN / "uniter" / "pretrain-heads")
    source, config = case.weights, case.config
    if ours:
        source, config = zoo.save(zoo.load(source, config=config, task="image-text-matching"), tmp_path / "ours"), None
    recwarn.clear()
    model = zoo.load(source, config=config, task="image-text-retrieval")
    assert not recwarn.list
    assert not model.load_report.random
    assert "heads.image_text_retrieval starts as row 1 of heads.image_text_matching" in model.load_report.notes
    matching = zoo.load(source, config=config, task="image-text-matching")
    head = matching.heads["image_text_matching"]
    assert torch.equal(model.heads["image_text_retrieval"].weight, head.weight[1:])
    assert torch.equal(model.heads["image_text_retrieval"].bias, head.bias[1:])
    bare = {name: x for name, x in case.weights.items() if name.startswith("uniter.")}
    with pytest.warns(zoo.errors.ZooWarning, match=r"has no heads.image_text_retrieval"):
        assert zoo.load(bare, config=case.config, task="image-text-retrieval").load_report.random
    stored = load_case(GOLDEN / "uniter" / "itm-rank")
    kept = zoo.load(stored.weights, config=stored.config, task="image-text-retrieval")
    assert torch.equal(kept.heads["image_text_retrieval"].weight, stored.weights["rank_output.weight"])


def test_an_expression_is_ranked_against_the_wrong_region_that_scores_highest():
    model, batch = uniter("grounding", ranking="hardest", margin=0.4), small_batch("uniter")
    labels = torch.tensor([1, 0, -100, 1])
    with torch.no_grad():
        out = model(**batch.inputs, labels=labels)
    real, parts = batch.real("visual_mask"), []
    for row in (0, 1, 3):
        right = int(labels[row])
        wrong = [1 / (1 + math.exp(-float(out.logits[row, c]))) for c in range(3) if c != right and real[row, c]]
        sigmoid = 1 / (1 + math.exp(-float(out.logits[row, right])))
        parts.append(max(0.0, 0.4 + max(wrong, default=0.0) - sigmoid))  # 0: padding alone is wrong
    assert math.isclose(float(out.loss), sum(parts) / 3, rel_tol=1e-10)
