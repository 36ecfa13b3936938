"""Distillation as one objective: terms, layer maps, and what flows where."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from tests.strategies import build, randomised, small_batch, small_config
from zoo.errors import TaskError, UnknownNameError
from zoo.training.distillation.activations import activations_of
from zoo.training.distillation.losses import transfer_gates
from zoo.training.distillation.recipes import RECIPES
from zoo.training.distillation.students import student_of
from zoo.training.distillation.terms import LastStates, layer_pairs

TERMS = {
    "soft": [zoo.SoftTargets(temperature=2.0, hard_weight=0.0)],
    "states": [zoo.HiddenStates()],
    "cosine": [LastStates(form="cosine")],
    "embeddings": [zoo.Embeddings()],
    "scores": [zoo.AttentionScores()],
    "probabilities": [zoo.AttentionProbabilities()],
    "probabilities-mse": [zoo.AttentionProbabilities(form="mse")],
    "relations": [zoo.Relations(version=2)],
    "relations-v1": [zoo.Relations(version=1)],
    "patience": [zoo.Patience(layers="uniform")],
}


def model(layers: int = 2, seed: int = 0, task: str | None = "sequence-classification", **fields: object) -> nn.Module:
    options = {"num_labels": 3} if task == "sequence-classification" else {}
    return build("bert", small_config("bert", num_layers=layers, **fields), task, seed=seed, **options)


def batch() -> dict[str, Tensor]:
    return dict(small_batch("bert").inputs)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_zero_for_a_copy_of_the_teacher_and_not_for_another_model(name):
    teacher = model()
    _, same = zoo.Distillation(teacher, copy.deepcopy(teacher), TERMS[name])(batch())
    _, other = zoo.Distillation(teacher, model(seed=5), TERMS[name])(batch())
    assert all(abs(float(value)) < 1e-12 for value in same.values())
    assert all(float(value) > 1e-6 for value in other.values())


@pytest.mark.parametrize("name", TERMS)
def test_gradients_reach_the_student_and_the_maps_but_not_the_teacher(name):
    teacher, student = (
        model(4, hidden_size=12, num_heads=2),
        model(2, seed=1, hidden_size=12 if name == "patience" else 8, num_heads=2),
    )
    objective = zoo.Distillation(teacher, student, TERMS[name])
    teacher.train()
    loss, _ = objective(batch())
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert teacher.training
    wide = name in ("states", "cosine", "embeddings")
    assert {(m.in_features, m.out_features) for m in objective.projections.values()} == ({(8, 12)} if wide else set())
    assert len(list(objective.trained())) == len(list(student.parameters())) + len(list(objective.parameters()))


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("family", ["bert", "albert", "mobilebert", "electra", "visualbert"])
def test_a_packed_batch_gives_the_loss_of_an_unpacked_one(name, family):
    task = "masked-lm" if name == "soft" else None
    if task and family not in ("bert", "albert", "mobilebert"):
        pytest.skip("no words to predict from one text")
    teacher, student = (build(family, small_config(family), task, seed=seed) for seed in (0, 1))
    objective, given = zoo.Distillation(teacher, student, TERMS[name]), dict(small_batch(family).inputs)
    packed = objective(given)[0]
    with zoo.packing(False):
        unpacked = objective(given)[0]
    assert float(packed) == pytest.approx(float(unpacked), rel=1e-9)


def test_padding_adds_nothing_to_any_term():
    teacher, student = model(task="masked-lm"), model(seed=1, task="masked-lm")
    ids, mask = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.ones(2, 3, dtype=torch.long)
    longer = {"input_ids": nn.functional.pad(ids, (0, 2), value=9), "attention_mask": nn.functional.pad(mask, (0, 2))}
    for name, terms in TERMS.items():
        objective = zoo.Distillation(teacher, student, terms)
        short, long = objective({"input_ids": ids, "attention_mask": mask})[0], objective(longer)[0]
        counted = (3 / 5) ** 2 if name == "scores" else 1  # TinyBERT divides by all places
        assert float(long) == pytest.approx(float(short) * counted, rel=1e-9), name


def test_scores_and_relations_are_those_of_the_formula():
    teacher, student = model(seed=2, task=None), model(seed=3, task=None)
    given = {"input_ids": torch.tensor([[3, 4, 5]])}
    seen = {}
    for role, each in (("student", student), ("teacher", teacher)):
        x = each(**given, output_hidden_states=True).hidden_states[1]
        attention = each.encoder.blocks[1].attention
        q, k = attention.query(x)[0], attention.key(x)[0]
        size = attention.head_size
        seen[role] = [
            q[:, h * size : (h + 1) * size] @ k[:, h * size : (h + 1) * size].T / size**0.5
            for h in range(attention.num_heads)
        ]
    expected = sum(float((a - b).square().mean()) for a, b in zip(seen["student"], seen["teacher"], strict=True)) / len(
        seen["student"]
    )
    loss, _ = zoo.Distillation(teacher, student, [zoo.AttentionScores(layers=((2, 2),))])(given)
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_layer_maps_are_the_papers():
    assert layer_pairs("uniform", 4, 12) == ((1, 3), (2, 6), (3, 9), (4, 12))
    assert [b for _, b in layer_pairs("skip", 6, 12)] == [2, 4, 6, 8, 10]
    assert [b for _, b in layer_pairs("last", 6, 12)] == [7, 8, 9, 10, 11]
    assert [b for _, b in layer_pairs("skip", 3, 12)] == [4, 8]
    assert [b for _, b in layer_pairs("last", 3, 12)] == [10, 11]
    assert layer_pairs(((0, 0), (2, 5)), 2, 6) == ((0, 0), (2, 5))


@settings(deadline=None, derandomize=True)
@given(student=st.integers(1, 12), factor=st.integers(1, 4))
def test_a_uniform_map_ends_at_both_ends_and_climbs_evenly(student, factor):
    pairs = layer_pairs("uniform", student, student * factor)
    assert pairs[-1] == (student, student * factor)
    assert {b - a for (_, a), (_, b) in itertools.pairwise(pairs)} <= {factor}


def test_what_cannot_be_compared_is_refused_before_the_first_step():
    teacher = model()
    with pytest.raises(TaskError, match="vocabulary has"):
        zoo.Distillation(teacher, model(vocab_size=teacher.config.vocab_size + 1), TERMS["states"])
    with pytest.raises(TaskError, match="num_labels=2"):
        zoo.Distillation(
            teacher, build("bert", small_config("bert"), "sequence-classification", num_labels=2), TERMS["soft"]
        )
    with pytest.raises(TaskError, match="has no head"):
        zoo.Distillation(teacher, model(task=None), TERMS["soft"])
    with pytest.raises(TaskError, match="do not divide"):
        zoo.Distillation(model(3), model(2), TERMS["states"])
    with pytest.raises(TaskError, match="head by head"):
        zoo.Distillation(model(hidden_size=12, num_heads=3), model(hidden_size=12, num_heads=2), TERMS["scores"])
    with pytest.raises(TaskError, match="equal head counts"):
        zoo.Distillation(model(hidden_size=12, num_heads=3), model(hidden_size=12, num_heads=2), TERMS["relations-v1"])
    with pytest.raises(TaskError, match="one width"):
        zoo.Distillation(model(hidden_size=12, num_heads=2), model(hidden_size=8, num_heads=2), TERMS["patience"])
    with pytest.raises(TaskError, match="at least one term"):
        zoo.Distillation(teacher, model(), [])
    with pytest.raises(UnknownNameError, match="uniform"):
        zoo.Distillation(teacher, model(), [zoo.HiddenStates(layers="unifrom")])
    with pytest.raises(TaskError, match=r"layers 0\.\.2"):
        zoo.Distillation(teacher, model(), [zoo.HiddenStates(layers=((3, 1),))])
    with pytest.raises(TaskError, match="pass the labels"):
        zoo.Distillation(teacher, model(), [zoo.SoftTargets(hard_weight=1.0)])(batch())


def test_hard_and_soft_weights_count_as_given_and_labels_reach_the_student():
    teacher, student = model(), model(seed=1)
    given = batch()
    labels = torch.arange(len(given["input_ids"])) % 3
    loss, parts = zoo.Distillation(teacher, student, [zoo.SoftTargets(temperature=3.0, weight=0.3, hard_weight=0.7)])(
        given, labels=labels
    )
    mine, theirs = student(**given, labels=labels), teacher(**given)
    soft = (
        nn.functional.kl_div((mine.logits / 3).log_softmax(1), (theirs.logits / 3).softmax(1), reduction="batchmean")
        * 9
    )
    assert float(parts["soft_targets"]) == pytest.approx(float(soft), rel=1e-9)
    assert float(parts["hard_targets"]) == pytest.approx(float(mine.loss), rel=1e-12)
    assert float(loss) == pytest.approx(0.3 * float(soft) + 0.7 * float(mine.loss), rel=1e-9)


def test_tinybert_shares_one_map_between_embeddings_and_all_layers():
    teacher, student = model(4, hidden_size=12, num_heads=2), model(2, seed=1, hidden_size=8, num_heads=2)
    first, second = RECIPES["tinybert"]()
    objective = zoo.Distillation(teacher, student, first)
    assert list(objective.projections) == ["shared"]
    _, parts = objective(batch())
    assert set(parts) == {"embeddings", "hidden_states", "attention_scores"}
    assert set(zoo.Distillation(teacher, student, second)(batch())[1]) == {"soft_targets"}


def test_mobileberts_transfer_opens_one_layer_at_a_time():
    teacher, student = model(task=None), model(seed=1, task=None)
    objective = zoo.Distillation(teacher, student, [zoo.Transfer(num_steps=10)])
    assert transfer_gates(2, 2, 10) == (1.0, 0.0)
    for step, learns in ((2, True), (7, True), (11, False)):
        student.zero_grad()
        loss, parts = objective(batch(), step=step)
        assert (float(loss) > 0) is learns
        assert len(parts) == 4
    objective(batch(), step=2)[0].backward()
    assert student.encoder.blocks[0].feed_forward.up.weight.grad.abs().sum() > 0
    assert not (
        student.encoder.blocks[1].feed_forward.up.weight.grad is not None
        and student.encoder.blocks[1].feed_forward.up.weight.grad.any()
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_takes_a_step_that_lowers_its_loss(recipe):
    task = "masked-lm" if recipe in ("distilbert", "pd") else "sequence-classification"
    teacher = randomised(model(2 if recipe == "mobilebert" else 4, task=task), 7, 0.2)
    student = randomised(model(2, seed=1, task=task), 8, 0.2)
    given = batch()
    size = given["input_ids"].shape
    labels = torch.zeros(size, dtype=torch.long) if task == "masked-lm" else torch.zeros(size[0], dtype=torch.long)
    for terms in RECIPES[recipe]():
        objective = zoo.Distillation(teacher, student, terms, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(objective.trained(), lr=1e-3)
        before, _ = objective(given, labels=labels)
        before.backward()
        optimizer.step()
        assert float(objective(given, labels=labels)[0]) < float(before)


def test_a_shared_block_is_seen_at_each_of_its_depths():
    albert = build("albert", small_config("albert"), seed=2)
    given = dict(small_batch("albert").inputs)
    seen = activations_of(albert, given, projected=True)
    assert len(seen.projected["query"]) == len(seen.states) - 1
    assert not torch.equal(seen.projected["query"][0], seen.projected["query"][1])


def test_two_streams_are_compared_stream_by_stream():
    teacher, student = (build("vilbert", small_config("vilbert"), seed=seed) for seed in (0, 1))
    given = dict(small_batch("vilbert").inputs)
    losses = [
        float(zoo.Distillation(teacher, student, [zoo.Embeddings()], stream=s)(given)[0]) for s in ("text", "image")
    ]
    assert losses[0] != losses[1]
    assert float(zoo.Distillation(teacher, student, [zoo.Relations()], stream="image")(given)[0]) > 0


def test_a_student_of_some_layers_has_those_layers_and_everything_else():
    teacher = model(4)
    student = student_of(teacher, (1, 3))
    assert student.config.num_layers == 2
    assert torch.equal(
        student.model.encoder.blocks[1].attention.query.weight, teacher.model.encoder.blocks[3].attention.query.weight
    )
    assert torch.equal(student.heads["sequence_classification"].weight, teacher.heads["sequence_classification"].weight)
    with pytest.raises(TaskError, match=r"some of 0\.\.3"):
        student_of(teacher, (4,))


class Words:
    """A tokenizer of a given vocabulary."""

    def __init__(self, **vocabulary: int) -> None:
        self.backend = self
        self.get_vocab = lambda: vocabulary


@pytest.mark.parametrize("family", ["distilbert", "roberta", "xlm-roberta"])
def test_a_student_without_segments_learns_from_pairs_of_texts(family):
    teacher = model()
    student = build(family, small_config(family, num_segments=1), "sequence-classification", seed=1, num_labels=3)
    pairs = {**batch(), "token_type_ids": torch.arange(24).reshape(4, 6) % 6 // 3}
    assert pairs["token_type_ids"].any()
    alone = {name: value for name, value in pairs.items() if name != "token_type_ids"}
    terms = [zoo.SoftTargets(hard_weight=0.0)]
    loss, _ = zoo.Distillation(teacher, student, terms)(pairs)
    with torch.no_grad():
        wanted, seen = teacher.eval()(**pairs).logits, student(**alone).logits
        blind = teacher(**alone).logits
    assert not torch.equal(wanted, blind), "the teacher has its segments"
    temperature = terms[0].temperature
    divergence = (wanted / temperature).softmax(-1) * (
        (wanted / temperature).log_softmax(-1) - (seen / temperature).log_softmax(-1)
    )
    torch.testing.assert_close(loss, divergence.sum(-1).mean() * temperature**2)
    reverse, _ = zoo.Distillation(student, teacher, terms)(pairs)  # and the other way round
    assert float(reverse.detach()) > 0


def test_a_student_may_have_inputs_of_its_own():
    teacher, student = model(), model(seed=5)
    pairs = {**batch(), "token_type_ids": torch.arange(24).reshape(4, 6) % 6 // 3}
    alone = {name: value for name, value in pairs.items() if name != "token_type_ids"}
    distillation = zoo.Distillation(teacher, student, [zoo.SoftTargets(hard_weight=0.0)])
    found, _ = distillation(pairs, for_student={"token_type_ids": None})
    with torch.no_grad():
        rows = torch.stack([teacher.eval()(**pairs).logits, student(**alone).logits])
    again, _ = zoo.Distillation(teacher, student, [zoo.SoftTargets(hard_weight=0.0)])(pairs)
    assert float(found.detach()) != float(again.detach())
    assert rows.isfinite().all()
    shorter = {name: value[:, :5] for name, value in alone.items()}
    distillation(pairs, for_student={**shorter, "token_type_ids": None})  # logits of a text have no places
    with pytest.raises(TaskError, match=r"the student reads \(4, 5\) tokens and the teacher \(4, 6\)"):
        zoo.Distillation(teacher, student, [zoo.HiddenStates()])(pairs, for_student={**shorter, "token_type_ids": None})


def test_vocabularies_are_compared_token_by_token_where_given():
    teacher, student = model(), model(seed=1)
    zoo.Distillation(teacher, student, TERMS["soft"], tokenizers=(Words(a=0, b=1), Words(a=0, b=1)))
    with pytest.raises(TaskError, match=r"'a': 0 for the teacher, 1 for the student"):
        zoo.Distillation(teacher, student, TERMS["soft"], tokenizers=(Words(a=0, b=1), Words(a=1, b=0)))
