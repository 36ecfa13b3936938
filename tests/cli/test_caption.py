"""`zoo caption`: from pictures to captions, with regions that are made here or stand in a dump."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

import zoo
from tests.cli.test_cli import run
from tests.training.test_captions import SIZES, WORDS, words
from zoo.data.regions.files import save_regions
from zoo.data.regions.grid import cells_of, grid_regions, patches
from zoo.data.regions.regions import Regions

PLAIN = zoo.Images(resize="exact", size=224, mean=(0.0,) * 3, std=(1.0,) * 3)


def writer(folder, width):
    generator = torch.Generator().manual_seed(0)
    fields = {**SIZES, "vocab_size": len(WORDS), "visual_size": width}
    model = zoo.create("unimo-base", task="masked-lm", generator=generator, **fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    model.search = zoo.Search(num_beams=2, max_new_tokens=5, min_new_tokens=3)
    return str(zoo.save(model, folder, words()))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    torch.manual_seed(0)
    for number in range(3):
        pixels = torch.randint(0, 256, (12, 12, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{number}.png")
    writer(folder / "patches", 3 * 56**2)
    writer(folder / "cells", 8)
    return folder


@pytest.fixture
def command(monkeypatch, capsys, home):
    monkeypatch.chdir(home)

    def call(*arguments, terminal=False, model="patches"):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        return run(monkeypatch, capsys, "caption", *arguments, "--model", model)

    return call


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def captioned(folder, regions):
    """By the model itself, a picture at a time."""
    model, found = zoo.load(folder), []
    for one in regions:
        written = zoo.generate(model, **one.for_model(model.config), num_beams=2, max_new_tokens=5, min_new_tokens=3)
        found.append((zoo.tokenizer(folder).decode(written.sequences[0].tolist()), float(written.scores[0])))
    return found


def test_pictures_get_captions_by_the_settings_beside_the_model(command, home):
    names = ["0.png", "1.png", "2.png"]
    code, out, _ = command(*names, "--detector", "patch-grid")
    rows = lines(out)
    assert (code, [row["image"] for row in rows]) == (0, names)
    wanted = captioned(home / "patches", [grid_regions(PLAIN([home / n]), patches(56), size=None) for n in names])
    assert [row["caption"] for row in rows] == [text for text, _ in wanted]
    assert [row["score"] for row in rows] == pytest.approx([score for _, score in wanted], rel=1e-4)
    code, out, _ = command("0.png", "--detector", "patch-grid", "--returns", "2", "--json")
    (found,) = json.loads(out)
    assert (code, found["captions"][0], len(found["captions"])) == (0, found["caption"], 2)
    code, out, _ = command(*names, "--detector", "patch-grid", terminal=True)
    assert (code, "captions" in out, rows[0]["caption"] in out) == (0, True, True)
    code, out, _ = command(*names, "--detector", "patch-grid", "--out", "found.csv")
    assert (code, "3 rows in found.csv" in out, (home / "found.csv").read_text().count("\n")) == (0, True, 4)


def test_regions_come_from_a_dump_by_the_pictures_names(command, home):
    torch.manual_seed(1)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    some = {str(n): Regions(torch.randn(2, 8), boxes, (64.0, 64.0), format="normalised") for n in range(3)}
    save_regions(home / "dump.safetensors", some.items())
    code, out, _ = command("2.png", "0.png", "--regions", "dump.safetensors", model="cells")
    wanted = captioned(home / "cells", [some["2"], some["0"]])
    assert (code, [row["caption"] for row in lines(out)]) == (0, [text for text, _ in wanted])
    save_regions(home / "less.safetensors", [("0", some["0"])])
    code, _, err = command("0.png", "1.png", "--regions", "less.safetensors", model="cells")
    assert (code, "holds no regions of '1.png'" in err) == (1, True)


def test_the_grid_of_an_image_tower_serves(command, home):
    tower = small_tower(home / "tower")
    code, out, _ = command("0.png", "--detector", "tower", model="cells")
    pixels = zoo.images(home / "tower")([home / "0.png"])
    with torch.inference_mode():
        regions = cells_of(tower.grid(pixels), (pixels.shape[3], pixels.shape[2]))
    assert (code, lines(out)[0]["caption"]) == (0, captioned(home / "cells", [regions])[0][0])
    code, _, err = command("0.png", "--detector", "tower")
    assert (code, "are 8 wide, the model reads regions 9408 wide" in err) == (1, True)


def small_tower(folder):
    """A ResNet whose last grid is 8 wide."""
    fields = {"stem_channels": 4, "stage_channels": (4, 8), "stage_blocks": (1, 1), "bottleneck": False}
    model = zoo.create("resnet-18", generator=torch.Generator().manual_seed(0), **fields).eval()
    zoo.save(model, folder)
    return model


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("0.png",), "nothing says whose regions patches was trained on"),
        (("0.png", "--detector", "bottom-up-attention"), "a detector that is not here"),
        (("0.png", "--detector", "vit-b"), "a detector that is not here"),
        (("0.png", "--detector", "clip-vit-b-32"), "a detector that is not here"),
        (("a red dog", "--detector", "patch-grid"), "'a red dog' is no picture"),
    ],
)
def test_what_can_not_be_meant_is_refused(command, arguments, said):
    code, _, err = command(*arguments)
    assert (code, said in err) == (1, True), err
