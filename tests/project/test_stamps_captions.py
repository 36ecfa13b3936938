"""Captions for stamps on pictures made here: what a head noun is, what captions are compared with, what is learned, and
the whole program.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import zoo
from zoo.data.images.images import Images

EXAMPLES = Path(__file__).parents[2] / "examples"
Image = pytest.importorskip("PIL.Image")
WORDS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("stamps_captions")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture
def data(example):
    """32 pictures of a color and a shape that a "tower" tells apart; of some pairs all pictures are held out."""
    pairs = [(color, shape) for color in WORDS for shape in ("ball", "box")] * 4
    grids = torch.zeros(2, len(pairs), 8, 4, 4)
    for number, (color, shape) in enumerate(pairs):
        grids[:, number, WORDS.index(color)] = 1.0
        grids[:, number, 4 + ("ball", "box").index(shape)] = 1.0
    grids += 0.05 * torch.randn(grids.shape, generator=torch.Generator().manual_seed(0))
    captions = [f"a {color} {shape}" for color, shape in pairs]
    return example.Data(captions, grids.half(), list(range(24)), list(range(24, 32)))


def test_a_head_noun_stands_before_the_first_preposition(example):
    nouns = {
        "a slice of pizza": "slice",
        "two red apples": "apple",
        "an octopus": "octopus",
        "a glass": "glass",
        "the letter b": "b",
        "": "",
        "of mice": "mice",
    }
    assert {text: example.head_noun(text) for text in nouns} == nouns


def test_what_a_model_is_compared_with(example, data):
    assert example.nearest(data) == [data.captions[number] for number in data.held_out]
    assert example.by_chance(data, "head noun").tolist() == [0.5] * 8
    best = example.constant(data, "head noun")
    assert best == data.captions[0]  # the first of those that are equally good
    right = [data.captions[number] for number in data.held_out]
    runs = [{"written": right}, {"written": right[4:] + right[:4]}]
    found = example.table(data, runs)
    assert found["UNIMO"]["chrF"].shape == (2, 8)
    assert found["UNIMO"]["chrF"][0].tolist() == [1.0] * 8
    assert torch.equal(found["blind"]["chrF"][0], found["UNIMO"]["chrF"][1])
    assert "| UNIMO less |" in example.report(found)


def test_captions_are_learned_and_the_model_reads_cells_as_they_are(example, data, monkeypatch):
    monkeypatch.setattr(example, "CELLS", 6)
    monkeypatch.setattr(example, "BATCH", 16)
    monkeypatch.setattr(example, "TINY", {**example.TINY, "num_layers": 1, "hidden_size": 32, "intermediate_size": 64})
    tokenizer = example.tokenizer_of(data)
    model = example.train(data, tokenizer, 0, 60, dropout=0.0, lr=1e-2)
    found = example.written(model, tokenizer, data, data.held_out)
    assert found == [data.captions[number] for number in data.held_out]


def test_the_program_runs_the_image_tower_once_and_keeps_its_runs(example, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "stamps"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(20):
        noise = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((80, 80)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"A {WORDS[number % 4]} thing.\n", encoding="utf-8")
    calls = []

    def grid(pixels):
        calls.append(len(pixels))
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 4)

    tower = SimpleNamespace(grid=grid)
    monkeypatch.setattr(example, "image_tower", lambda: (tower, Images(resize="shortest", size=32)))
    monkeypatch.setattr(example, "HELD_OUT", 6)
    monkeypatch.setattr(example, "BATCH", 4)
    monkeypatch.setattr(example, "TINY", {**example.TINY, "num_layers": 1, "hidden_size": 16, "intermediate_size": 16})
    said = ["--stamps", str(folder), "--runs", str(tmp_path / "runs"), "--images", str(tmp_path / "images")]
    said += ["--seeds", "0", "1", "--steps", "2"]
    assert example.main(said) == 0
    first = capsys.readouterr().out
    assert sum(calls) == 40
    assert "14 pictures to train on, 6 held out" in first
    assert "| nearest | " in first
    assert (tmp_path / "images" / "stamps-captions.png").is_file()
    assert (tmp_path / "runs" / "captions-pictures.png").is_file()
    monkeypatch.setattr(example, "train", None)
    assert example.main(said) == 0
    assert capsys.readouterr().out == first
    model = zoo.load(tmp_path / "runs" / "captions-2-1")
    assert (model.task, model.search.num_beams) == ("masked-lm", 3)
