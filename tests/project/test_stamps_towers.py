"""The stamps in six languages, on pictures and towers made here: vectors of captions, what counts as right, what is
learned, and the whole program.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import zoo
from zoo.data.images.images import Images

EXAMPLES = Path(__file__).parents[2] / "examples"
Image = pytest.importorskip("PIL.Image")
WORDS = ("red", "green", "blue", "white", "black", "gray", "pink", "brown")
TINY = {"num_layers": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "max_positions": 32}


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("stamps_towers")
    finally:
        sys.path.remove(str(EXAMPLES))


class Letters:
    """A tokenizer: [CLS], a token for each letter, [SEP]."""

    def encode(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(ids=[2, *([1] if text == "[UNK]" else [4 + ord(c) % 60 for c in text]), 3])


@pytest.fixture
def data(example):
    """64 pictures of two colors that a "tower" tells apart; the captions name them, in Chinese only every other."""
    pairs = [(one, other) for one in WORDS for other in WORDS]
    english = [f"A {one} and {other} flag." for one, other in pairs]
    captions = {"en": english, "de": [f"Fahne, {one[::-1]} {other[::-1]}" for one, other in pairs]}
    captions["zh_CN"] = [text if number % 2 else "" for number, text in enumerate(captions["de"])]
    eye = torch.eye(len(WORDS))
    seen = torch.stack([torch.cat([eye[WORDS.index(one)], eye[WORDS.index(other)]]) for one, other in pairs])
    seen = torch.stack([seen, seen + 0.1 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))])
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)).tolist()
    return example.Data(captions, seen, sorted(order[16:]), sorted(order[:16]))


def tower(captions, example):
    model = zoo.create("minilm-l6-h384", generator=torch.Generator().manual_seed(0), vocab_size=64, **TINY)
    return example.TextTower(model, Letters(), captions)


def test_a_caption_is_the_mean_of_its_own_tokens(example):
    text = tower({"en": ["a cow", "a", "a brown cow"], "de": ["eine", "", "kuh"]}, example).eval()
    alone = text.tower(torch.tensor([text.rows[0][0]])).last_hidden_state.mean(1)
    together = text(torch.tensor([1, 0, 0]), torch.tensor([0, 2, 0]))
    torch.testing.assert_close(together[2:], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(example.table_of(text).vectors[0, :1], alone, rtol=1e-4, atol=1e-5)


def test_the_share_of_unknown_pieces_leaves_the_ends_out(example):
    text = SimpleNamespace(ids={"en": [[2, 7, 8, 3], [2, 1, 3]], "de": [[2, 3]]})
    assert example.unknown_share(text, 1) == {"en": pytest.approx(1 / 3), "de": 0.0}


def test_n_grams_count_runs_of_characters_and_weigh_rare_ones_more(example):
    counts = example.n_grams(["ab", "AB"])
    assert counts.sum(1).tolist() == [4 + 3 + 2 + 1] * 2  # of " ab ", whatever the case
    assert torch.equal(counts[0], counts[1])
    given = torch.zeros(1, 3, 3)
    given[0, 0] = torch.tensor([1.0, 1, 0])
    given[0, 1] = torch.tensor([1.0, 0, 0])
    given[0, 2] = torch.tensor([1.0, 1, 1])  # held out: what only it has is known from nowhere
    found = example.weighted(given, [0, 1])[0]
    rare, unseen = torch.tensor(3 / 2).log(), torch.tensor(3.0).log()
    assert found[0].tolist() == [0.0, 1.0, 0.0]
    torch.testing.assert_close(found[2, 1] / found[2, 2], rare / unseen)


def test_equal_captions_count_as_right_in_the_language_or_in_english(example, data):
    captions = {"en": ["A cow.", "a cow", "A bull.", "A dog."], "de": ["Eine Kuh", "Das Rind", "das Rind.", ""]}
    data = replace(data, captions=captions, held_out=[0, 1, 2, 3])
    assert example.right(data, "en").int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert example.right(data, "de").int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]


def test_training_finds_held_out_pictures_and_only_the_tuned_tower_changes(example, data, monkeypatch):
    monkeypatch.setattr(example, "SIZE", 32)
    text = tower(data.captions, example)
    before = [p.clone() for p in text.parameters()]
    found = {}
    for way, steps in {"untrained": 0, "n-grams": 150, "frozen": 8, "tuned": 8}.items():
        made = example.run(way, data, lambda: text, 0, steps)
        found[way] = sum(rank < 3 for rank in made["ranks"]["de"]["t2i"]) / 16
        assert len(made["ranks"]["zh_CN"]["i2t"]) == len(example.told_in(data, "zh_CN")) < 16
        same = all(torch.equal(p, q) for p, q in zip(before, text.parameters(), strict=True))
        assert same == (way != "tuned")
    assert found["untrained"] < 0.5 < found["n-grams"]  # chance: 3 of 16
    assert [point[0] for point in made["curve"]] == list(range(1, 9))


def test_what_was_learned_is_a_dual_encoder_with_the_same_scores(example, data, tmp_path):
    text = tower(data.captions, example)
    image = zoo.create("efficientnet-lite0", stage_channels=(4,) * 7, stage_blocks=(1,) * 7, top_size=16).eval()
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        features = image(pixels).pooler_output
    model = example.Joined(text, features + 0.1, 12, torch.Generator().manual_seed(3)).eval()
    zoo.save(example.as_dual_encoder(model, text.tower, image), tmp_path)
    loaded, ids = zoo.load(tmp_path), text.rows[1][7]
    with torch.inference_mode():
        wanted = model.texts(torch.tensor([1]), torch.tensor([7])) @ model.pictures(features).T
        found = loaded(torch.tensor([ids]), pixel_values=pixels)
        torch.testing.assert_close(found.logits_per_text, wanted * model.logit_scale.exp(), rtol=1e-4, atol=1e-4)


def test_the_program_runs_the_image_tower_once_and_keeps_its_runs(example, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "stamps"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number, word in enumerate(WORDS * 3):
        noise = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((80, 80)).save(folder / f"{number}.png")
        lines = [f"A {word} thing {number}.", *(f"{name}.utf8={word[::-1]} {number}" for name in ("de", "fr", "ru"))]
        lines += [f"ja.utf8={number} {word}", f"zh_CN.utf8={number}"]
        (folder / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    calls = []

    def eyes(pixels):
        calls.append(pixels.shape)
        return SimpleNamespace(pooler_output=pixels.mean((2, 3)).repeat(1, 4))

    eyes.eval = lambda: eyes
    monkeypatch.setattr(example, "image_tower", lambda: (eyes, Images(resize="shortest", size=32)))
    words = zoo.create("minilm-l6-h384", generator=generator, vocab_size=64, **TINY)
    monkeypatch.setattr(example, "text_tower", lambda: (words, Letters()))
    monkeypatch.setattr(example, "HELD_OUT", 8)
    said = ["--stamps", str(folder), "--runs", str(tmp_path / "runs"), "--images", str(tmp_path / "images")]
    said += ["--ways", "untrained", "n-grams", "frozen", "--seeds", "0", "1", "--steps", "3"]
    assert example.main(said) == 0
    first = capsys.readouterr().out
    assert [tuple(shape) for shape in calls] == [(24, 3, 224, 224)] * 2
    assert "16 pictures to train on, 8 held out" in first
    assert "| Japanese | @1 | 12.5% |" in first
    assert "| Japanese | 8 | 0.0% |" in first
    assert "| recall@5 | frozen less n-grams, caption → picture |" in first
    for drawn in ("images/stamps-search.png", "images/stamps-search-ranks.png", "runs/towers-pictures.png"):
        assert (tmp_path / drawn).stat().st_size > 5000
    kept = json.loads((tmp_path / "runs" / "towers-frozen-3-1.json").read_text())
    assert len(kept["ranks"]["ru"]["t2i"]) == 8
    monkeypatch.setattr(example, "run", None)
    assert example.main(said) == 0
    assert (capsys.readouterr().out, len(calls)) == (first, 2)
