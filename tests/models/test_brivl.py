"""BriVL: its boxes against a loop, its mask, its queues, and its files."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.families import brivl
from tests.oracle import way_back
from tests.strategies import build, relative, small_config
from zoo.errors import ConfigError, InputError, TaskError
from zoo.tasks.tower_queues import ImageTextMomentum
from zoo.tasks.views import ImageTextContrast


def model_of(task: str | None = None, **fields: Any) -> Any:
    return build("brivl", small_config("brivl", **fields), task, seed=3)


def sample(grid: Tensor, x: float, y: float) -> Tensor:
    """The grid at a place in [-1, 1], -1 the outer edge of the first cell: bilinear, zeros outside."""
    rows, columns = grid.shape[1:]
    across, down = ((x + 1) * columns - 1) / 2, ((y + 1) * rows - 1) / 2
    found = torch.zeros(len(grid), dtype=grid.dtype)
    for row in (math.floor(down), math.floor(down) + 1):
        for column in (math.floor(across), math.floor(across) + 1):
            if 0 <= row < rows and 0 <= column < columns:
                found = found + (1 - abs(down - row)) * (1 - abs(across - column)) * grid[:, row, column]
    return found


@pytest.mark.parametrize("samples", [1, 3, 4])
def test_a_box_is_the_mean_of_its_samples_through_the_map(samples):
    tower = model_of(box_samples=samples).image
    generator = torch.Generator().manual_seed(1)
    grid = torch.randn(2, tower.config.top_size, 3, 5, generator=generator, dtype=torch.float64)
    boxes = torch.rand(2, 2, 4, generator=generator, dtype=torch.float64)
    weight, bias = tower.box.weight[:, :, 0, 0], tower.box.bias
    wanted = torch.zeros(2, 2, tower.config.top_size, dtype=torch.float64)
    for picture in range(2):
        for number in range(2):
            x1, y1, x2, y2 = (boxes[picture, number] * torch.tensor([5, 3, 5, 3])).tolist()
            for i in range(samples):
                for j in range(samples):
                    u, v = ((2 * k + 1) / samples - 1 for k in (i, j))
                    x, y = (u * (x2 - x1) + x1 + x2 - 4) / 4, (v * (y2 - y1) + y1 + y2 - 2) / 2
                    mapped = weight @ sample(grid[picture], x, y) + bias
                    wanted[picture, number] += mapped / samples**2
    with torch.no_grad():
        assert relative(tower.box_vectors(grid, boxes), wanted) <= 1e-12


def test_without_boxes_the_cells_of_a_grid_and_the_whole_picture_are_read():
    model, pixels = model_of(box_grid=2), brivl.small_batch().inputs["pixel_values"]
    cells = [[x, y, x + 7, y + 7] for x in (0, 7) for y in (0, 7)]
    boxes = torch.tensor([*cells, [0, 0, 14, 14]], dtype=torch.float64).expand(4, -1, -1)
    with torch.no_grad():
        assert relative(model.encode_image(pixels), model.encode_image(pixels, visual_boxes=boxes)) <= 1e-6
        few = torch.tensor([[1, 1, 0, 0, 0]]).expand(4, -1)
        masked = model.encode_image(pixels, visual_boxes=boxes, visual_mask=few)
        assert relative(masked, model.encode_image(pixels, visual_boxes=boxes[:, :2])) <= 1e-12
        assert relative(masked, model.encode_image(pixels)) > 1e-3
    with pytest.raises(InputError, match="detector's boxes"):
        model_of(box_grid=0).encode_image(pixels)
    with pytest.raises(InputError, match="visual_boxes must be"):
        model.encode_image(pixels, visual_boxes=boxes[:2])


def test_bert_reads_padding_and_the_blocks_behind_it_do_not():
    model = model_of()
    ids, mask = torch.tensor([[3, 4, 5, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    with torch.no_grad():
        padded, plain = model.text(ids, mask), model.text(ids[:, :3])
        assert relative(padded.last_hidden_state[:, :3], plain.last_hidden_state) > 1e-3
        states = model.text(ids, mask, output_hidden_states=True).hidden_states
        assert len(states) == model.config.num_layers + model.config.text_added_layers + 1
        assert relative(padded.pooler_output, padded.last_hidden_state[:, :3].mean(1)) <= 1e-12


def towers_in_training() -> tuple[Any, dict[str, Tensor]]:
    model = build("brivl", small_config("brivl"), "image-text-momentum", seed=3, queue_size=8, momentum=0.5)
    return model.train(), brivl.small_batch().inputs


def test_pretraining_is_what_its_authors_did_and_clip_s_elsewhere():
    own = zoo.create("brivl-2", task="pretraining", device="meta")
    assert (type(own), own.options["queue_size"]) == (ImageTextMomentum, 9_600)
    assert type(zoo.create("align-base", task="pretraining", device="meta")) is ImageTextContrast


def test_both_queues_hold_the_keys_of_the_momentum_encoder():
    model, batch = towers_in_training()
    with pytest.raises(TaskError, match="no queue and no momentum encoder yet"):
        model.queue("text")
    model.start()
    with torch.no_grad():
        model.model.text_projection.second.bias.add_(1.0)
    before = model.twin.twin.text_projection.second.bias.clone()
    queues = {side: model.queue(side).keys.double() for side in ("image", "text")}
    model.before_step()
    assert torch.allclose(model.twin.twin.text_projection.second.bias, before + 0.5)
    out = model(**batch)
    keys = out.scores
    wanted = 0.0
    for side, other in (("image", "text"), ("text", "image")):
        for query, key in zip(keys[side], keys[f"{other}_key"], strict=True):
            logits = torch.cat([(query @ key)[None], queues[other] @ query]) / 0.07
            wanted = wanted - logits.log_softmax(0)[0] / len(keys[side])
    assert relative(out.loss.detach(), wanted.detach()) <= 1e-6
    out.loss.backward()
    assert not keys["text_key"].requires_grad
    model.after_step([out])
    for side in ("image", "text"):
        assert relative(model.queue(side).keys[:4].double(), keys[f"{side}_key"]) <= 1e-6
        assert int(model.queue(side).pointer) == 4
    assert relative(keys["text_key"], keys["text"].detach()) > 1e-3, "the copy is not the model"


def test_in_eval_mode_the_batch_gives_the_wrong_answers():
    model, batch = towers_in_training()
    with torch.no_grad():
        out = model.eval()(**batch)
        logits = out.encoded.image_embeds @ out.encoded.text_embeds.T / 0.07
        wanted = sum(torch.nn.functional.cross_entropy(x, torch.arange(4)) for x in (logits, logits.T))
    assert relative(out.loss, wanted) <= 1e-12
    assert model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).loss is None


@pytest.mark.parametrize("options", [{"temperature": 0}, {"queue_size": 0}, {"momentum": "half"}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError):
        zoo.create("brivl-2", task="image-text-momentum", device="meta", **options)


def test_a_file_of_theirs_loads_from_its_entry_without_the_momentum_copy(tmp_path):
    config = small_config("brivl", stem_channels=32, channel_multiple=8, stage_strides=(1, 1))
    ours = build("brivl", config, seed=2)
    theirs = {name: x.clone() for name, x in way_back("brivl", ours).items()}
    copies = {name.replace("encoder.", "encoder_mom.", 1): torch.zeros_like(x) for name, x in theirs.items()}
    theirs["textencoder.backbone.bert.pooler.dense.bias"] = torch.ones(config.hidden_size)
    torch.save({"learnable": theirs | copies, "epoch": 3}, tmp_path / "brivl.pth")
    told = zoo.maps.layouts.load("brivl").config_back(config.to_dict(), frozenset())
    again = zoo.load(tmp_path / "brivl.pth", config=told, layout="brivl")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in ours.state_dict().items())
    assert not again.load_report.random
