"""Labels of whatever integer width give one loss; what can't be a label is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tasks.test_labels_left_out import PAIRS, case
from zoo.errors import TaskError, ZooError
from zoo.tasks import losses

WIDTHS = (torch.int32, torch.int16, torch.int8, torch.uint8)
FIRST = list({task: (name, task) for name, task in reversed(PAIRS)}.values())  # one family for each task


def integers(labels: dict[str, Any]) -> list[str]:
    return [key for key, x in labels.items() if isinstance(x, Tensor) and not x.is_floating_point()]


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_the_loss_is_the_same_for_integers_of_every_width(name, task):
    model, _, given, labels = case(name, task)
    model.eval()
    for key in integers(labels):
        without = {**labels, key: labels[key].clamp(min=0)}
        for dtype in WIDTHS:
            wide = without if dtype == torch.uint8 else labels  # which has no -100
            narrow = {**wide, key: wide[key].to(dtype)}
            assert torch.equal(model(**given, **narrow).loss, model(**given, **wide).loss), (key, dtype)


@pytest.mark.parametrize(("name", "task"), FIRST)
def test_what_can_t_be_a_label_is_refused_by_name(name, task):
    model, _, given, labels = case(name, task)
    for key, value in labels.items():
        if isinstance(value, Tensor):
            for wrong in (value.tolist(), "x", value.to(torch.complex64)):
                with pytest.raises(ZooError, match=key):
                    model(**given, **{**labels, key: wrong})


@pytest.mark.parametrize("task", ["masked-lm", "token-classification", "sequence-classification"])
def test_truths_are_no_labels_of_three_classes(task):
    name = "bert"
    options = {} if task == "masked-lm" else {"num_labels": 3}
    model, _, given, labels = case(name, task, **options)
    with pytest.raises(TaskError, match=r"labels must hold integers from 0 to \d+, got torch\.bool"):
        model(**given, labels=labels["labels"] > 0)


def test_truths_are_labels_of_two_classes():
    model, _, given, labels = case("bert", "next-sentence")
    model.eval()
    truths = labels["labels"] == 1
    assert torch.equal(model(**given, labels=truths).loss, model(**given, labels=truths.long()).loss)


@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_losses_themselves_take_every_width(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, generator=generator)
    labels = torch.randint(4, (2, 5), generator=generator)
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    assert torch.equal(losses.token_loss(logits, labels.to(dtype), real), losses.token_loss(logits, labels, real))
    smoothed = [losses.label_smoothed_loss(logits, each, 0.1) for each in (labels.to(dtype), labels)]
    assert torch.equal(*smoothed)
    start, end = logits[..., 0], logits[..., 1]
    found = [losses.span_loss(start, end, at[:, 0], at[:, 1], real) for at in (labels.to(dtype), labels)]
    assert torch.equal(*found)
