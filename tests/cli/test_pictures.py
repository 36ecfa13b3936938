"""`zoo embed | classify | search` with pictures: files, folders and shards of them."""

from __future__ import annotations

import io
import json
import sys
import tarfile

import numpy
import pytest
import torch
from PIL import Image

import zoo
from tests import towers
from tests.cli.test_cli import run
from zoo.data.regions.grid import grid_regions, patches
from zoo.models.clip import Clip
from zoo.tokenization.wordpiece import wordpiece

TINY = {"num_layers": 1, "num_heads": 2, "hidden_size": 8, "intermediate_size": 12, "max_positions": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    zoo.register(towers.NAME, Clip, towers.CONFIG)
    folder = tmp_path_factory.mktemp("models")
    yield {"towers": towers.saved(folder / "towers"), "folder": folder}
    zoo.unregister(towers.NAME)


@pytest.fixture
def command(monkeypatch, capsys, models, tmp_path):
    monkeypatch.chdir(tmp_path)
    towers.draw(tmp_path / "pictures")

    def call(*arguments, model="towers", terminal=False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        return run(monkeypatch, capsys, *arguments, *(["--model", models.get(model, model)] if model else []))

    return call


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def vectors(paths):
    return towers.towers().encode_image(towers.IMAGES(paths), normalize=True).detach().numpy()


def test_pictures_are_embedded_like_texts(command, tmp_path):
    names = ["pictures/0.jpg", "pictures/1.png"]
    code, out, _ = command("embed", *names)
    assert (code, [row["image"] for row in lines(out)]) == (0, names)
    assert numpy.allclose([row["embedding"] for row in lines(out)], vectors(names), atol=1e-5)
    assert command("embed", *names, "--out", "v.npy")[:2] == (0, "2 rows in v.npy\n")
    assert numpy.allclose(numpy.load("v.npy"), vectors(names), atol=1e-5)
    code, out, _ = command("embed", "pictures")  # a folder
    assert [row["image"] for row in lines(out)] == [
        *("pictures/0.jpg", "pictures/1.png", "pictures/3.png", "pictures/4.jpg"),
        *("pictures/more/2.jpg", "pictures/more/5.png"),
    ]
    code, out, _ = command("embed", *names, terminal=True)
    assert (code, "cosine similarity" in out) == (0, True)


def test_a_shard_is_embedded_with_its_columns_and_a_stopped_run_goes_on(command, tmp_path, monkeypatch):
    with tarfile.open("s.tar", "w") as tar:
        for number in range(5):
            for name, content in ((f"{number}.png", picture(number)), (f"{number}.txt", b"text %d" % number)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    code, out, _ = command("embed", "s.tar")
    assert code == 0
    assert [(row["key"], row["image"], row["text"]) for row in lines(out)] == [
        (str(n), f"s.tar#{n}.png", f"text {n}") for n in range(5)
    ]
    assert numpy.allclose([row["embedding"] for row in lines(out)], vectors([picture(n) for n in range(5)]), atol=1e-5)
    broken = bytearray((tmp_path / "s.tar").read_bytes())
    place = broken.rindex(b"IDAT")
    whole = bytes(broken)
    broken[place : place + 4] = b"XXXX"
    (tmp_path / "s.tar").write_bytes(broken)
    monkeypatch.setattr("zoo.inference.bulk.CHUNK", 2)
    monkeypatch.setattr("zoo.inference.bulk.SECONDS", 0.0)
    code, _, err = command("embed", "s.tar", "--out", "v.jsonl", "--batch-size", "1")
    assert code == 1
    assert "s.tar#4.png" in err
    assert "4 rows kept" in err
    (tmp_path / "s.tar").write_bytes(whole)
    assert command("embed", "s.tar", "--out", "v.jsonl", "--batch-size", "1")[:2] == (0, "5 rows in v.jsonl\n")
    found = lines((tmp_path / "v.jsonl").read_text())
    assert [row["key"] for row in found] == [row["key"] for row in lines(out)]
    assert numpy.allclose(
        [row["embedding"] for row in found], [row["embedding"] for row in lines(out)], atol=1e-5
    )  # batches of one round otherwise


def picture(number):
    file = io.BytesIO()
    noise = numpy.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=numpy.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def test_pictures_are_labeled_with_words_that_are_given(command, tmp_path):
    code, out, _ = command("classify", "pictures/0.jpg", "pictures/1.png", "--labels", "dog,cat , red", "--scores")
    wanted = zoo.pipeline("zero-shot-image-classification", towers.towers(), labels=["dog", "cat", "red"])
    found = lines(out)
    assert code == 0
    for row in found:
        made = wanted(row["image"])
        assert row["label"] == made["label"]
        assert row["scores"] == pytest.approx(made["scores"], abs=1e-5)
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    (tmp_path / "templates.txt").write_text("a red {}.\na blue {}.\n\n")
    options = ("--labels", "labels.txt", "--templates", "templates.txt")
    code, out, _ = command("classify", "pictures/0.jpg", *options)
    made = zoo.pipeline(
        "zero-shot-image-classification",
        towers.towers(),
        labels=["dog", "cat"],
        templates=["a red {}.", "a blue {}."],
    )("pictures/0.jpg")
    (row,) = lines(out)
    assert (row["label"], row["score"]) == (made["label"], pytest.approx(made["score"], abs=1e-5))
    assert "scores" not in row
    code, out, _ = command("classify", "pictures/0.jpg", *options, terminal=True)
    assert (code, "labels" in out, "pictures/0.jpg" in out) == (0, True, True)


def test_search_finds_by_words_and_by_a_picture_and_keeps_its_index(command, tmp_path):
    code, out, err = command("search", "pictures", "a red dog", "--top", "3")
    assert code == 0
    assert "6 pictures read" in err
    rows = lines(out)
    names = [f"pictures/{name}" for name in ("0.jpg", "1.png", "3.png", "4.jpg", "more/2.jpg", "more/5.png")]
    query = towers.towers().encode_text(**towers.tokenizer()(["a red dog"]), normalize=True).detach().numpy()
    cosines = dict(zip(names, (vectors(names) @ query.T)[:, 0], strict=True))
    best = sorted(cosines, key=lambda name: -cosines[name])[:3]
    assert [(row["rank"], row["image"]) for row in rows] == list(enumerate(best, 1))
    assert [row["score"] for row in rows] == pytest.approx([cosines[name] for name in best], abs=1e-5)
    assert (tmp_path / "pictures.index.safetensors").exists()
    code, out, err = command("search", "pictures", "a red dog", "blue", "--like", "pictures/3.png", "--top", "2")
    assert (code, err) == (0, "")
    assert [row["query"] for row in lines(out)] == ["a red dog"] * 2 + ["blue"] * 2 + ["pictures/3.png"] * 2
    assert (lines(out)[4]["image"], lines(out)[4]["score"]) == ("pictures/3.png", pytest.approx(1, abs=1e-5))
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    code, out, err = command("search", "pictures", "blue", "--top", "1", "--sheet", "hits.png")
    assert code == 0
    assert "left out: pictures/bad.png is no picture" in err
    assert Image.open(tmp_path / "hits.png").size[0] > 192
    code, out, _ = command("search", "pictures", "blue", terminal=True)
    assert (code, "score" in out) == (0, True)
    assert len(json.loads(command("search", "pictures", "blue", "--json")[1])) == 5


def test_the_first_hits_are_ordered_anew_by_a_model_that_reads_words_and_regions(command, models, tmp_path):
    generator = torch.Generator().manual_seed(3)
    cross = zoo.create(
        "uniter-base",
        task="image-text-retrieval",
        generator=generator,
        vocab_size=len(towers.WORDS),
        visual_size=3 * 56**2,
        **TINY,
    ).eval()
    with torch.no_grad():
        for parameter in cross.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    folder = str(zoo.save(cross, models["folder"] / "cross", wordpiece({w: n for n, w in enumerate(towers.WORDS)})))
    code, out, _ = command(
        "search", "pictures", "a red dog", "--rerank", folder, "--detector", "patch-grid", "--top", "4"
    )
    assert code == 0
    rows = lines(out)
    names = [f"pictures/{name}" for name in ("0.jpg", "1.png", "3.png", "4.jpg", "more/2.jpg", "more/5.png")]
    scores, grids = {}, {}
    for name in names:
        plain = zoo.Images(resize="exact", size=224, mean=(0.0,) * 3, std=(1.0,) * 3)
        grids[name.removeprefix("pictures/")] = grid = grid_regions(plain(name), patches(56), size=None)
        batch = {key: value[None] for key, value in grid.for_model(cross.config).items()}
        scores[name] = float(cross(**towers.tokenizer()(["a red dog"]), **batch).logits.detach())
    best = sorted(scores, key=lambda name: -scores[name])[:4]
    assert [row["image"] for row in rows] == best
    assert [row["score"] for row in rows] == pytest.approx([scores[name] for name in best], rel=1e-4)
    refused = command("search", "pictures", "a", "--rerank", folder)
    assert (refused[0], "--detector" in refused[2]) == (1, True)
    refused = command("search", "pictures", "a", "--rerank", folder, "--detector", "bottom-up-attention")
    assert (refused[0], "a detector that is not here" in refused[2]) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("embed", "pictures/0.jpg", "some words"), "is no picture"),
        (("embed", "./empty"), "empty is a folder without pictures"),
        (("embed", "s.tar", "--engine", "ray"), "shards are read on this machine"),
        (("search", "empty", "dog"), "no picture that can be read"),
        (("classify", "pictures/0.jpg"), "--labels"),
        (("classify", "some words", "--labels", "a,b"), "for pictures"),
        (("search", "nowhere", "dog"), "is no folder"),
        (("search", "pictures"), "what is looked for"),
        (("search", "pictures", "dog", "--index", "i.npy"), "ends in"),
        (("search", "pictures", "--like", "pictures/0.jpg", "--rerank", "x"), "give words"),
    ],
)
def test_what_can_not_be_meant_is_refused(command, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "s.tar").touch()
    code, _, err = command(*arguments)
    assert (code, said in err) == (1, True), err


def test_a_model_for_texts_is_not_taken_for_pictures(command):
    code, _, err = command("embed", "pictures/0.jpg", model=None)
    assert (code, "--model" in err) == (1, True)
    code, _, err = command("search", "pictures", "dog", model=None)
    assert (code, "--model" in err) == (1, True)
