"""ERNIE-ViL: its losses held to loops, its layout both ways."""

from __future__ import annotations

import math

import pytest
import torch

import zoo
from tests import oracle
from tests.pictures import for_task
from tests.references.case import GOLDEN, load_case
from tests.strategies import build, small_batch, small_config
from zoo.errors import ConfigError
from zoo.maps import layouts
from zoo.tasks.ranking import circle_loss, ranking_loss


def test_circle_loss_is_the_loop_written_out_and_its_weights_carry_no_gradient():
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(3, 1, generator=generator, dtype=torch.float64).requires_grad_()
    wrong = torch.rand(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    m, g, total = 0.3, 7.0, 0.0
    wanted = torch.zeros(3, 5, dtype=torch.float64)
    for row in range(3):
        s = float(right[row, 0])
        near = math.exp(-g * max(0.0, 1 + m - s) * (s - (1 - m)))
        far = [math.exp(g * max(0.0, float(x) + m) * (float(x) - m)) for x in wrong[row]]
        total += math.log(1 + near * sum(far)) / 3
        for k in range(5):  # d log(1 + near · sum far) / d s_k with a_n held fast
            wanted[row, k] = near * far[k] * g * max(0.0, float(wrong[row, k]) + m) / (1 + near * sum(far)) / 3
    loss = circle_loss(right, wrong, m, g)
    assert float(loss.detach()) == pytest.approx(total, rel=1e-10)
    (found,) = torch.autograd.grad(loss, wrong)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_circle_loss_over_choices_takes_the_right_one_out_of_its_place_and_leaves_rows_out():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([2, -100, 0])
    wanted = [
        circle_loss(logits[row, at : at + 1].sigmoid()[None], logits[row, others].sigmoid()[None], 0.2)
        for row, at, others in ((0, 2, [0, 1, 3]), (2, 0, [1, 2, 3]))
    ]
    found = ranking_loss("circle", logits, labels, 0.2)
    assert float(found) == pytest.approx(float(sum(wanted)) / 2, rel=1e-10)


def test_each_choice_of_vcr_and_each_region_is_judged_alone():
    batch = small_batch("ernie-vil")
    model = build("ernie-vil", small_config("ernie-vil"), "multiple-choice")
    out = model(**for_task("multiple-choice", batch), labels=torch.tensor([1]))
    wanted = 0.0
    for number, score in enumerate(out.logits[0].tolist()):
        p = 1 / (1 + math.exp(-score))
        wanted -= math.log(p if number == 1 else 1 - p) / 4
    assert float(out.loss.detach()) == pytest.approx(wanted, rel=1e-10)
    model = build("ernie-vil", small_config("ernie-vil"), "grounding")
    labels = torch.rand(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out, real, wanted = model(**batch.inputs, labels=labels), batch.real("visual_mask"), 0.0
    for row in range(4):
        for region in range(3):
            if real[row, region]:
                p, y = 1 / (1 + math.exp(-float(out.logits[row, region]))), float(labels[row, region])
                wanted -= (y * math.log(p) + (1 - y) * math.log(1 - p)) / float(real.sum())
    assert float(out.loss.detach()) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(
    ("name", "task"),
    [("encoder", None), ("vqa", "visual-question-answering"), ("refcoco-plus", "grounding")],
)
def test_a_folder_of_paddle_goes_through_ours_and_back(name, task):
    case = load_case(GOLDEN / "ernie-vil" / name)
    model = zoo.load(case.weights, config=case.config, task=task)
    assert model.load_report.layout == "paddle-ernie-vil"
    assert not model.load_report.random
    back = oracle.way_back("paddle-ernie-vil", model)
    assert set(back) == set(case.weights)
    assert all(torch.equal(back[key], x) for key, x in case.weights.items())


def test_the_number_of_layers_follows_from_the_connections():
    keymap, foreign = layouts.load("paddle-ernie-vil"), load_case(GOLDEN / "ernie-vil" / "encoder").config
    fields = keymap.config_forward({**foreign, "num_hidden_layers": 99})
    assert (fields["num_layers"], fields["image_num_layers"]) == (3, 2)
    with pytest.raises(ConfigError, match="cannot say num_layers=4; it follows from text_connections, and is 3"):
        keymap.config_back({**small_config("ernie-vil").to_dict(), **fields, "num_layers": 4})
