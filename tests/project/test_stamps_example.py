"""The stamps example on pictures made here: what is read of a folder, what counts as right, and the whole program."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

from zoo.errors import InputError
from zoo.tasks.metrics.vision import retrieval_ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
Image = pytest.importorskip("PIL.Image")
COLORS = {"red": (255, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("stamps_retrieval")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def stamps(example):
    return importlib.import_module("stamps")


@pytest.fixture
def folder(tmp_path):
    """A stripe of one of four colors at one of six places beside transparency, and twins of two of them."""
    for number, ((name, color), place) in enumerate(itertools.product(COLORS.items(), range(6))):
        picture = Image.new("RGBA", (60, 60), (*color, 255))
        picture.paste((10, 10, 10, 255), (place * 10, 0, place * 10 + 10, 60))
        path = tmp_path / "kinds" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
        path.with_suffix(".txt").write_text(f"A {name} flag.\nde.utf8=Eine Fahne.\nxx=no\nfr.utf8=\n", encoding="utf-8")
        if number in (3, 20):
            twin = path.with_name(f"{number}-again.png")
            picture.resize((90, 90)).save(twin)
            twin.with_suffix(".txt").write_text("The same.", encoding="utf-8")
    picture.save(tmp_path / "kinds" / "silent.png")
    return tmp_path


def test_a_folder_gives_pictures_with_captions_and_twins_once(stamps, folder):
    found = stamps.stamps(folder, side=48)
    assert len(found) == 24
    assert found.captions[0] == {"en": "A red flag.", "de": "Eine Fahne."}
    assert found.texts("fr") == [""] * 24
    assert found.paths[0] == "kinds/00.png"
    assert found.pixels.shape == (24, 3, 48, 48)
    assert found.pixels[0, :, 24, 40].tolist() == [255, 0, 0]
    assert stamps.stamps(folder).paths == stamps.stamps(folder, side=9).paths == found.paths
    train, rest = stamps.split(found, 5, torch.Generator().manual_seed(0))
    assert sorted(train.paths + rest.paths) == found.paths
    assert len(rest) == 5
    with pytest.raises(InputError, match="must lie between 1 and 23"):
        stamps.split(found, 24, torch.Generator())


def test_what_is_transparent_is_gray_and_a_narrow_picture_keeps_its_shape(stamps, tmp_path):
    picture = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (10, 10, 90, 30))  # 80 x 20
    picture.save(tmp_path / "a.png")
    pixels = stamps.picture(tmp_path / "a.png", 40)
    assert pixels[:, 0, 0].tolist() == list(stamps.BACKGROUND)
    red = (pixels == torch.tensor([255, 0, 0])[:, None, None]).all(0)
    assert (int(red.any(1).sum()), int(red.any(0).sum())) == (10, 40)


def test_a_folder_without_stamps_says_how_to_get_them(stamps, tmp_path):
    with pytest.raises(InputError, match="apt-get download tuxpaint-stamps-default"):
        stamps.stamps_folder(tmp_path)


def test_of_equal_captions_each_counts_as_right(example):
    right = example.belongs(["a cow", "a dog", "a cow"])
    assert right.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    scores = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [1.0, 3.0, 2.0]])
    assert retrieval_ranks(scores, right) == {"t2i": [0, 1, 1], "i2t": [1, 2, 0]}
    with pytest.raises(InputError, match="each text needs an image"):
        retrieval_ranks(scores, torch.zeros(3, 3, dtype=torch.bool))


def test_chance_is_the_mean_over_all_orders(example):
    right = example.belongs(["a", "b", "a", "a"])
    for at in (1, 2):
        wanted = [
            sum(any(row[place] for place in order[:at]) for order in itertools.permutations(range(4))) / 24
            for row in right.tolist()
        ]
        assert example.chance(right, at, 1) == pytest.approx(sum(wanted) / 4)


def test_an_interval_is_as_wide_as_pictures_and_seeds_differ(example):
    generator = torch.Generator().manual_seed(0)
    assert example.interval(torch.full((3, 50), 0.5), generator) == (0.5, 0.5, 0.5)
    draws = torch.rand(1, 400, generator=generator).round().double()
    mean, low, high = example.interval(draws, generator)
    assert low < mean < high
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.1)  # one seed: the spread of 400 coins
    apart = torch.tensor([[0.0], [1.0]]).expand(2, 400).double()
    _, low, high = example.interval(apart, generator)
    assert (low, high) == (0.0, 1.0)  # two seeds that disagree on every picture


def test_the_program_keeps_its_runs_and_reports_them(example, folder, tmp_path, monkeypatch, capsys):
    original = example.data
    monkeypatch.setattr(example, "data", lambda given: original(given, 6))
    said = ["--stamps", str(folder), "--steps", "2", "--seeds", "0", "--models", "VisualBERT", "ViLBERT"]
    said += ["--runs", str(tmp_path / "runs"), "--images", str(tmp_path / "images")]
    assert example.main(said) == 0
    first = capsys.readouterr().out
    assert "18 pictures to train on, 6 held out" in first
    assert "| VisualBERT less ViLBERT |" in first
    assert (tmp_path / "images" / "stamps-retrieval.png").stat().st_size > 5000
    kept = json.loads((tmp_path / "runs" / "VisualBERT-2-0.json").read_text())
    assert len(kept["t2i"]) == len(kept["i2t"]) == 6
    monkeypatch.setattr(example, "ranks_of", None)  # nothing is trained again
    assert example.main(said) == 0
    assert capsys.readouterr().out == first
    counts = [json.loads(path.read_text())["parameters"] for path in (tmp_path / "runs").iterdir()]
    assert max(counts) <= 1.2 * min(counts)


def test_adversarial_steps_follow_plain_ones_and_are_compared_on_the_same_pictures(
    example, folder, tmp_path, monkeypatch, capsys
):
    original = example.data
    monkeypatch.setattr(example, "data", lambda given: original(given, 6))
    said = ["--stamps", str(folder), "--steps", "10", "--seeds", "0", "--adversarial"]
    said += ["--runs", str(tmp_path / "runs"), "--images", str(tmp_path / "images")]
    assert example.main(said) == 0
    assert "| UNITER, adversarial less UNITER |" in capsys.readouterr().out
    assert (tmp_path / "images" / "stamps-adversarial-curves.png").stat().st_size > 5000
    on, off = (
        json.loads((tmp_path / "runs" / f"{name}-10-0.json").read_text()) for name in ("UNITER-adversarial", "UNITER")
    )
    assert on["curve"][:8] == off["curve"][:8]  # step, loss in training, loss and accuracy of held-out pairs
    assert on["curve"][8][0] == 9
    assert on["curve"][8][1] == off["curve"][8][1]  # the first pass of the first such step is a plain one
    assert all(one != other for one, other in zip(on["curve"][9][1:3], off["curve"][9][1:3], strict=True))


def test_held_out_pairs_are_right_where_the_names_are_equal(example, folder, stamps):
    given = example.data(stamps.stamps(folder), 12)  # four names for twelve pictures
    name, right = example.held_out_pairs(given, times=50)
    names = given.held_out.names
    same = torch.tensor([names[i] == names[j % 12] for j, i in enumerate(name.tolist())])
    assert torch.equal(right, same)
    assert 0.5 < right.double().mean() < 0.8
