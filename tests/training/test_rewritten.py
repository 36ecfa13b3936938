"""UNIMO's contrast with captions that were rewritten: several are right, others wrong in a word."""

from __future__ import annotations

import math

import pytest
import torch

import zoo
from tests.strategies import build, relative, small_config
from tests.training.test_captions import UNIMO, picture, words
from zoo.data.tables import find_columns
from zoo.errors import InputError, TaskError
from zoo.tasks.ranking import several_right_loss
from zoo.training import evaluate, fit
from zoo.training.supervision import supervision_of


def slow(logits, labels, temperature):
    losses = []
    for scores, row in zip(logits.tolist(), labels.tolist(), strict=True):
        right = sum(math.exp(s / temperature) for s, label in zip(scores, row, strict=True) if label == 1)
        every = sum(math.exp(s / temperature) for s, label in zip(scores, row, strict=True) if label != -100)
        if right:
            losses.append(-math.log(right / every))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_contrast_weighs_all_right_choices_against_all(temperature):
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[1, 1, 0, 0, -100], [0, 1, 0, 1, 1], [1, 0, -100, -100, -100], [0, 0, 0, 0, 0]])
    assert float(several_right_loss(logits, labels, temperature)) == pytest.approx(slow(logits, labels, temperature))
    one = torch.tensor([2, 0, -100, 4])
    wanted = torch.nn.functional.cross_entropy(logits, one)
    assert float(several_right_loss(logits, one)) == pytest.approx(float(wanted))


def test_a_row_with_right_choices_alone_loses_nothing_and_no_gradient_is_nan():
    logits = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss = several_right_loss(logits, torch.tensor([[1, 1, 1], [0, 0, -100]]))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


FOILS = {"red": "blue", "blue": "red", "dog": "cat", "cat": "dog"}


def rows():
    found, pictures = [], {}
    for number, caption in enumerate([f"a {c} {a}" for c in ("red", "blue") for a in ("dog", "cat")] * 4):
        _, color, animal = caption.split()
        wrong = [f"a {FOILS[color]} {animal}", f"a {color} {FOILS[animal]}"][: 1 + number % 2]
        found.append({"text": caption, "image": str(number), "rewritten": [f"{animal} {color}"], "wrong": wrong})
        pictures[str(number)] = picture(caption)
    return found, pictures


def model_of(**options):
    generator = torch.Generator().manual_seed(0)
    free = {"dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.1, "generator": generator}
    return zoo.create("unimo-base", task="image-text-retrieval", **UNIMO, **free, **options)


def test_rows_of_rewritten_captions_become_choices_and_are_learned():
    table, pictures = rows()
    model, tokens = model_of(ranking="contrast"), words()
    cls = supervision_of("image-text-retrieval", pictured=True)
    columns = find_columns(table[0], cls.needed, cls.optional)
    reader = cls(tokens, columns, model.options).look(pictures, model.config, table)
    batch = reader.batch([example for row in table[:2] for example in reader.examples(row)])
    assert batch["labels"].tolist() == [[1, 1, 0, -100], [1, 1, 0, 0]]
    assert batch["input_ids"].shape[:2] == (2, 4)
    texts = [[tokens.decode(ids.tolist()) for ids in row] for row in batch["input_ids"]]
    assert texts[0][:3] == ["a red dog", "dog red", "a blue dog"]
    assert texts[1] == ["a red cat", "cat red", "a blue cat", "a red dog"]
    model.eval()
    output = model(**batch)
    assert float(output.loss.detach()) == pytest.approx(slow(output.logits.detach(), batch["labels"], 1.0), rel=1e-5)
    torch.manual_seed(0)
    fit(model, table, tokenizer=tokens, regions=pictures, steps=120, batch_size=8, lr=5e-3)
    assert evaluate(model, table, tokenizer=tokens, regions=pictures)["accuracy"] == 1.0


def test_other_losses_know_one_right_caption():
    table, pictures = rows()
    model, tokens = model_of(), words()
    with pytest.raises(InputError, match='row 1: rewritten captions make several right ones, which ranking="contrast"'):
        evaluate(model, table, tokenizer=tokens, regions=pictures)
    plain = [{name: value for name, value in row.items() if name != "rewritten"} for row in table]
    assert 0 <= evaluate(model, plain, tokenizer=tokens, regions=pictures)["accuracy"] <= 1
    with pytest.raises(InputError, match="has no wrong caption"):
        evaluate(model, [{**plain[0], "wrong": []}], tokenizer=tokens, regions=pictures)
    with pytest.raises(InputError, match="wrong must be a list of texts"):
        evaluate(model, [{**plain[0], "wrong": 3}], tokenizer=tokens, regions=pictures)
    with pytest.raises(TaskError, match="labels must have shape"):
        several_right_loss(torch.zeros(2, 3), torch.ones(2, 2, dtype=torch.int64))


def test_entailment_has_a_layer_of_2048_without_an_activation_over_the_sum_of_the_pooled():
    config = small_config("unimo", fusion="sum")
    model = build("unimo", config, "visual-entailment", num_labels=3, seed=4)
    head = model.heads["visual_entailment"]
    assert head.dense.weight.shape == (2048, config.hidden_size)
    batch = {
        "input_ids": torch.tensor([[0, 5, 6], [0, 7, 8]]),
        "visual_features": torch.randn(2, 3, config.visual_size, dtype=torch.float64),
        "visual_boxes": torch.rand(2, 3, config.box_size, dtype=torch.float64),
    }
    with torch.no_grad():
        result = model(**batch)
        pooler, states = model.model.pooler, result.encoded
        text = torch.relu(pooler.text.dense(states.text.last_hidden_state[:, 0]))
        image = torch.relu(pooler.image.dense(states.image.last_hidden_state[:, 0]))
        wanted = (text + image) @ head.dense.weight.T + head.dense.bias
        wanted = wanted @ head.output.weight.T + head.output.bias
    assert relative(result.logits, wanted) < 1e-10
