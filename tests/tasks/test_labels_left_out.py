"""In every task of every family: labels at padding change nothing, and without any label the loss is zero with a
gradient of zeros.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests import pictures, strategies
from tests.strategies import Batch, build, relative, small_batch, small_config
from zoo.data.candidates import Candidates
from zoo.registry import variants as registry
from zoo.registry.tasks import SPECS
from zoo.tasks.losses import span_loss

WITHOUT_LOSS = ("sentence-embedding",)
LINKING = ("entity-linking",)  # needs candidates, see below
WITHOUT_LABELS = (
    "image-text-contrast",
    "image-text-momentum",
    "view-contrast",
    "momentum-contrast",
    "cross-lingual-contrast",
)
LEFT = {*WITHOUT_LOSS, *LINKING, *WITHOUT_LABELS}
PAIRS = [
    (n, t)
    for n in strategies.families()
    for t in getattr(strategies.family(n), "TASKS", strategies.tasks_of(n))
    if t not in LEFT
]
EXACT = 1e-12


def sees_pictures(name: str) -> bool:
    return "visual_features" in registry.families()[name][0].inputs


def case(name: str, task: str, **options: Any) -> tuple[Any, Batch, dict[str, Any], dict[str, Any]]:
    """A model, its ragged batch, the batch as the task takes it, and labels."""
    model, batch = build(name, small_config(name), task, **options), small_batch(name)
    if sees_pictures(name):
        given = pictures.reasoning(model, pictures.for_task(task, batch))
        return model, batch, given, pictures.labels_for(task, model, batch)
    return model, batch, strategies.for_task(task, batch), strategies.labels_for(task, model, batch)


def outcome(model: Any, given: dict[str, Any], labels: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradient of each parameter that it reaches."""
    model.zero_grad()
    loss = model(**given, **labels).loss
    loss.backward()
    return loss.detach(), {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def other_values(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if x.is_floating_point():
        return torch.rand(x.shape, generator=generator, dtype=x.dtype)
    return torch.randint(2, x.shape, generator=generator)


def at_padding(batch: Batch, x: Tensor) -> Tensor:
    """Which labels stand at a padded place along one of their axes; the small batches' axes differ in length."""
    found = torch.zeros(x.shape, dtype=torch.bool)
    for mask in batch.streams:
        real = batch.real(mask)
        for axis in range(1, x.dim()):
            if x.shape[0] == len(real) and x.shape[axis] == real.shape[1]:
                shape = [len(real), *(real.shape[1] if at == axis else 1 for at in range(1, x.dim()))]
                found |= ~real.reshape(shape)
    return found


def test_every_task_is_asked():
    assert {task for _, task in PAIRS} | LEFT == {spec.name for spec in SPECS}
    lengths = [
        [batch.real(mask).shape[1] for mask in batch.streams] for batch in map(small_batch, strategies.families())
    ]
    assert all(len(set(found)) == len(found) for found in lengths)


@pytest.mark.parametrize(("name", "task"), PAIRS)
@pytest.mark.parametrize("packed", [True, False])
def test_labels_at_padding_change_nothing(name, task, packed):
    model, batch, given, labels = case(name, task)
    noised, changed = {}, 0
    for key, x in labels.items():
        if not isinstance(x, Tensor) or key == "entity_candidates":
            noised[key] = x
            continue
        padded = at_padding(batch, x)
        changed += int(padded.sum())
        noised[key] = torch.where(padded, other_values(x, 3), x)
    assert changed or not any(x.dim() > 1 and x.shape[1] in (3, 5, 6) for x in labels.values() if isinstance(x, Tensor))
    with zoo.packing(packed):
        loss, gradients = outcome(model, given, labels)
        other, others = outcome(model, given, noised)
    assert relative(loss, other) <= EXACT
    for key, gradient in gradients.items():
        assert float((gradient - others[key]).abs().max()) <= EXACT * max(1.0, float(gradient.abs().max())), key


def left_out(task: str, labels: dict[str, Any]) -> dict[str, Any]:
    """Nothing to be learned. What a head reads stays."""
    stays = ("pairs", "entity_candidates", "region_targets", "head")
    return {key: x if key in stays else torch.full_like(x, -100) for key, x in labels.items()}


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_without_a_label_the_loss_is_zero_and_so_is_its_gradient(name, task):
    options = {"num_labels": 3} if (task, sees_pictures(name)) == ("sequence-classification", False) else {}
    model, _, given, labels = case(name, task, **options)
    nothing = left_out(task, labels)
    if task == "region-to-phrase":
        nothing["labels"] = labels["labels"]  # a phrase at -1 is left out
    loss, gradients = outcome(model, given, nothing)
    assert loss == 0
    assert gradients
    for key, gradient in gradients.items():
        assert not gradient.any(), key
    for key, x in labels.items():  # integers in place of soft scores
        if key == "labels" and x.is_floating_point() and task in ("visual-question-answering", "grounding"):
            loss, gradients = outcome(model, given, {key: torch.full((len(x),), -100)})
            assert loss == 0
            assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("name", ["bert", "k-bert"])
@pytest.mark.parametrize("task", ["masked-lm", "token-classification", "pretraining", "question-answering"])
def test_with_a_matrix_a_token_is_real_where_it_sees_or_is_seen(name, task):
    model, batch, given, labels = case(name, task)
    real = batch.real()
    matrix = real[:, :, None] & real[:, None, :]
    given = {**given, "attention_mask": matrix}
    wanted, gradients = outcome(model, given, labels)
    noised = {key: torch.where(at_padding(batch, x), other_values(x, 5), x) for key, x in labels.items()}
    loss, others = outcome(model, given, noised)
    assert relative(wanted, loss) <= EXACT
    for key, gradient in gradients.items():
        assert float((gradient - others[key]).abs().max()) <= EXACT * max(1.0, float(gradient.abs().max())), key


def test_an_answer_at_padding_is_none():
    model, batch, given, labels = case("bert", "question-answering")
    padded = (~batch.real()).int().argmax(1)  # row 2 has no padding
    padded[2] = 6
    outside = torch.full_like(padded, 6)
    for changed in ("start_positions", "end_positions"):
        loss, _ = outcome(model, given, {**labels, changed: padded})
        wanted, _ = outcome(model, given, {**labels, changed: outside})
        assert relative(loss, wanted) <= EXACT


@pytest.mark.parametrize("name", ["vilbert", "visualbert", "uniter"])
def test_an_expression_that_means_a_padded_region_means_none(name):
    model, _, given, _ = case(name, "grounding")
    some, none = torch.tensor([1, 1, 1, 1]), torch.tensor([1, -100, -100, 1])  # rows 1 and 2 have no region 1
    loss, _ = outcome(model, given, {"labels": some})
    wanted, _ = outcome(model, given, {"labels": none})
    assert relative(loss, wanted) <= EXACT


def test_a_padded_region_leaves_the_pretraining_loss_of_vilbert_as_it_is():
    model, batch, given, labels = case("vilbert", "pretraining")
    assert not batch.real("visual_mask")[1, 2]
    chosen = labels["region_labels"].clone()
    chosen[1, 2] = 1
    loss, _ = outcome(model, given, labels)
    other, _ = outcome(model, given, {**labels, "region_labels": chosen})
    assert relative(loss, other) <= EXACT
    targets = labels["region_targets"].clone()
    targets[1, 2] = torch.nan
    other, gradients = outcome(model, given, {**labels, "region_targets": targets})
    assert relative(loss, other) <= EXACT
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_a_span_with_a_boundary_at_padding_is_left_out():
    model, batch, given, labels = case("spanbert", "pretraining")
    pairs = torch.cat([labels["pairs"], torch.tensor([[[0, 5]], [[0, 5]], [[0, 5]], [[0, 5]]])], 1)  # row 2's is real
    more = labels["pair_labels"].clone()
    more[2] = -100
    added = {**labels, "pairs": pairs, "pair_labels": torch.cat([labels["pair_labels"], more], 1)}
    assert batch.real()[:, 0].tolist() == [True, True, True, False]
    loss, _ = outcome(model, given, labels)
    assert relative(loss, outcome(model, given, added)[0]) <= EXACT


@pytest.mark.parametrize("task", ["entity-linking", "pretraining"])
@pytest.mark.parametrize("kind", ["margin", "softmax"])
def test_spans_that_are_none_and_gold_that_is_left_out_teach_no_linker(task, kind):
    sizes = {"wiki_layer": 0, "wiki_entities": 9, "wiki_entity_size": 4, "wiki_span_heads": 2, "wiki_word_heads": 2}
    model = build("knowbert", small_config("knowbert", wiki_loss=kind, **sizes), task)
    spans = torch.tensor([[[0, 1], [2, 2]], [[1, 1], [-1, -1]]])
    ids = torch.tensor([[[4, 5], [6, 0]], [[7, 8], [5, 6]]])  # the span that is none has candidates all the same
    priors = torch.full(ids.shape, 0.5, dtype=torch.float64)
    given = {
        "input_ids": torch.arange(1, 9).reshape(2, 4),
        "entity_candidates": {"wiki": Candidates(spans, ids, priors)},
    }

    def loss(gold: list[list[int]]) -> Tensor:
        return outcome(model, given, {"gold_entities": {"wiki": torch.tensor(gold)}})[0]

    wanted = loss([[4, 6], [8, -100]])
    assert relative(wanted, loss([[4, 6], [8, 5]])) <= EXACT
    assert relative(wanted, loss([[4, 6], [8, 6]])) <= EXACT
    assert relative(wanted, loss([[4, -100], [8, 6]])) > 1e-6
    nothing, gradients = outcome(model, given, {"gold_entities": {"wiki": torch.full((2, 2), -100)}})
    assert nothing == 0
    assert not any(gradient.any() for gradient in gradients.values())


def test_a_term_for_matched_pairs_counts_no_others(monkeypatch):
    cls = registry.families()["vilbert"][0].model_class()
    words, *others = cls.pretraining
    monkeypatch.setattr(cls, "pretraining", (dataclasses.replace(words, only_where=("match_labels", 0)), *others))
    model, _, given, labels = case("vilbert", "pretraining")
    assert labels["match_labels"].tolist() == [0, 1, 1, 0]
    told = model(**given, **labels).losses["masked_lm"]
    kept = labels["labels"].clone()
    kept[1:3] = -100
    monkeypatch.undo()
    plain = case("vilbert", "pretraining")[0]
    assert relative(told, plain(**given, labels=kept).losses["masked_lm"]) <= EXACT
    assert relative(told, plain(**given, labels=labels["labels"]).losses["masked_lm"]) > 1e-6


@pytest.mark.parametrize("name", [n for n, t in PAIRS if t == "question-answering"])
def test_no_padded_place_is_the_best_answer(name):
    model, batch, given, _ = case(name, "question-answering")
    with torch.no_grad():
        model.heads["question_answering"].bias.fill_(-50)  # zero would beat every real place
    real = batch.real()
    assert not real.all()
    for packed in (True, False):
        with zoo.packing(packed):
            out = model.eval()(**given)
        for scores in (out.start_logits, out.end_logits):
            assert real.gather(1, scores.argmax(1, keepdim=True)).all()
            assert float(scores.softmax(1)[~real].sum()) == 0


def test_padding_does_not_compete_for_an_answer_whatever_it_scores():
    scores, real = torch.tensor([[1.0, 2.0, 50.0]]), torch.tensor([[True, True, False]])
    loss = span_loss(scores, scores, torch.tensor([0]), torch.tensor([1]), real)
    alone = span_loss(scores[:, :2], scores[:, :2], torch.tensor([0]), torch.tensor([1]), None)
    assert torch.equal(loss, alone)
