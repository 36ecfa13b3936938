"""The emoji example, small: it learns from pictures made here which words belong to them, and real
emoji come out as they should.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zoo.errors import FetchError, InputError

EXAMPLES = Path(__file__).parents[2] / "examples"
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "white": (255, 255, 255),
}
PLACES = {"top": (0, 24), "bottom": (48, 24), "left": (24, 0), "right": (24, 48), "middle": (24, 24)}
SMALL = {"num_layers": 1, "hidden_size": 64, "num_heads": 2, "intermediate_size": 64, "initializer_range": 0.12}
SMALL_STREAM = {
    "image_hidden_size": 64,
    "image_num_layers": 1,
    "image_num_heads": 2,
    "image_intermediate_size": 64,
    "co_hidden_size": 64,
    "co_num_heads": 2,
    "text_connections": (0,),
    "image_connections": (0,),
}


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("emoji_retrieval")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def emoji(example):
    return importlib.import_module("emoji_pictures")


@pytest.fixture(scope="module")
def squares(emoji):
    """A square of one of five colors at one of five places, on another color: 100 pictures."""
    names, pixels = [], []
    for (color, rgb), (place, (y, x)), (behind, other) in itertools.product(
        COLORS.items(), PLACES.items(), COLORS.items()
    ):
        if color == behind:
            continue
        picture = torch.tensor(other, dtype=torch.uint8)[:, None, None].expand(3, 72, 72).clone() // 2
        picture[:, y : y + 24, x : x + 24] = torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
        names.append(f"{color} {place} on {behind}")
        pixels.append(picture)
    return emoji.Pictures(list(names), names, torch.stack(pixels))


@pytest.mark.parametrize("name", ["VisualBERT", "ViLBERT"])
def test_both_models_learn_which_words_belong_to_pictures_that_they_never_saw(example, squares, name):
    generator = torch.Generator().manual_seed(0)
    data = example.Data.of(squares, 20, generator, 60)
    family, size = example.FAMILIES[name], SMALL if name == "VisualBERT" else SMALL | SMALL_STREAM
    model = example.train(replace(family, rate=3e-3), data, 150, generator, batch=32, **size)
    own, others = example.word_loss(model, data, generator)
    assert own < 0.5 * others  # masked words are read off the picture
    table = example.scores(family, model, data, data.held_out)
    assert table.shape == (20, 20)
    one = data.held_out.take([3, 5])
    assert torch.allclose(example.scores(family, model, data, one), table[[3, 5]][:, [3, 5]], atol=1e-5)


def test_held_out_names_have_no_word_that_training_lacks(emoji, squares):
    train, held_out = emoji.split(squares, 30, torch.Generator().manual_seed(1))
    assert (len(train), len(held_out)) == (len(squares) - 30, 30)
    assert not set(train.names) & set(held_out.names)
    seen = {word for name in train.names for word in name.split()}
    assert all(word in seen for name in held_out.names for word in name.split())
    number = held_out.names.index(held_out.names[7])
    assert torch.equal(held_out.pixels[number], squares.pixels[squares.names.index(held_out.names[7])])
    with pytest.raises(InputError, match="can be kept back"):
        emoji.split(squares, 99, torch.Generator())


def test_half_of_the_captions_are_others_and_half_of_these_share_words(example, emoji, squares):
    near = emoji.alike(squares.names, 5)
    for number, row in enumerate(near.tolist()):
        assert number not in row
    picture = torch.arange(100).repeat(40)
    caption, belongs = example.captions(picture, near, torch.Generator().manual_seed(0))
    assert torch.equal(caption == picture, belongs)
    assert float(belongs.float().mean()) == pytest.approx(0.5, abs=0.03)
    close = (near[picture] == caption[:, None]).any(1)[~belongs]
    assert float(close.float().mean()) == pytest.approx(0.5 + 0.5 * 5 / 99, abs=0.04)


def test_the_report_says_chance_and_counts_both_directions(example):
    found = example.report({"perfect": torch.eye(20), "reversed": -torch.eye(20)}).splitlines()
    assert found[2].split() == ["chance", *["5.0%", "25.0%", "50.0%"] * 2]
    assert found[3].split() == ["perfect", *["100.0%"] * 6]
    assert found[4].split() == ["reversed", *["0.0%"] * 6]


def test_without_the_font_the_example_says_how_to_get_it(example, capsys, tmp_path):
    assert example.main(["--font", str(tmp_path / "none.ttf")]) == 1
    said = capsys.readouterr().err
    assert "apt-get install fonts-noto-color-emoji" in said
    assert "--font" in said


def test_real_emoji_are_drawn_named_and_told_apart(example, emoji, tmp_path):
    pytest.importorskip("PIL")
    try:
        font = emoji.font_file()
        pictures = emoji.emoji(font, 24, limit=60)
    except (InputError, FetchError) as error:
        pytest.skip(f"no pictures here: {error}")
    assert len(pictures) == 60
    assert len({bytes(picture.flatten().tolist()) for picture in pictures.pixels}) == 60
    assert pictures.names[0] == "1st place medal"
    red, green, blue = pictures.pixels[0, :, 8:14, 8:14].float().mean((1, 2)).tolist()
    assert red > green > blue  # gold
    example.draw({"one": torch.eye(60), "two": -torch.eye(60)}, pictures, font, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 5_000
