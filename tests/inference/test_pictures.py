"""Pictures through models: vectors, labels given as words, and an index that is kept."""

from __future__ import annotations

import os

import numpy
import pytest
import torch
from PIL import Image

import zoo
from tests import towers
from zoo.data.images.images import Images
from zoo.data.images.sheet import contact_sheet
from zoo.errors import InputError, TaskError
from zoo.inference.picture_index import PictureIndex, list_pictures
from zoo.inference.pipeline.pictures import picture_vectors, text_vectors

NAMES = ["0.jpg", "1.png", "3.png", "4.jpg", "more/2.jpg", "more/5.png"]


@pytest.fixture(scope="module")
def model():
    return towers.towers()


@pytest.fixture
def pictures(tmp_path):
    towers.draw(tmp_path / "pictures")
    return tmp_path / "pictures"


def test_a_picture_becomes_a_vector_of_unit_length_whatever_the_batch(model, pictures):
    paths = [pictures / name for name in NAMES]
    wanted = model.encode_image(towers.IMAGES(paths), normalize=True).detach()
    for batch_size in (1, 4, 32):
        pipeline = zoo.pipeline("image-embedding", model, batch_size=batch_size)
        found = numpy.stack([row["embedding"] for row in pipeline(paths)])
        assert numpy.allclose(found, wanted, atol=1e-6)
    assert numpy.allclose(pipeline(paths[2])["embedding"], wanted[2], atol=1e-6)
    assert numpy.allclose(pipeline(paths[2].read_bytes())["embedding"], wanted[2], atol=1e-6)
    image = picture_vectors(model.image, towers.IMAGES(paths)).detach()  # a tower alone: what it pools
    assert torch.allclose(image.norm(dim=1), torch.ones(6))


def test_no_more_than_one_batch_of_pictures_is_read_ahead(model):
    read = []

    def rows():
        for number in range(100):
            read.append(number)
            yield numpy.full((9, 9, 3), number, numpy.uint8)

    stream = zoo.pipeline("image-embedding", model, batch_size=4)(rows())
    next(stream)
    assert len(read) == 4


def test_labels_are_compared_by_the_mean_of_their_sentences(model, pictures):
    labels, templates = ["dog", "cat", "red"], ["a photo of a {}.", "a {} of {}"]
    pipeline = zoo.pipeline("zero-shot-image-classification", model, labels=labels, templates=templates)
    found = pipeline(pictures / "1.png")
    image = model.encode_image(towers.IMAGES(pictures / "1.png"), normalize=True)
    each = []
    for label in labels:
        sentences = [f"a photo of a {label}.", f"a {label} of {label}"]
        vectors = torch.cat([model.encode_text(**towers.tokenizer()([text]), normalize=True) for text in sentences])
        mean = vectors.mean(0)
        each.append(mean / mean.norm())
    scores = (model.logit_scale.exp() * image @ torch.stack(each).T).softmax(-1)[0]
    assert list(found["scores"]) == labels
    assert numpy.allclose(list(found["scores"].values()), scores.detach(), atol=1e-5)
    assert (found["label"], found["score"]) == max(found["scores"].items(), key=lambda item: item[1])


def test_towers_of_the_sigmoid_loss_give_each_label_its_own_probability(pictures):
    model = towers.towers(logit_bias=True)
    with torch.no_grad():
        model.logit_bias.fill_(-2.0)
    found = zoo.pipeline("zero-shot-image-classification", model, labels=["dog", "dog of cat"])(pictures / "0.jpg")
    alone = zoo.pipeline("zero-shot-image-classification", model, labels=["dog"])(pictures / "0.jpg")
    assert found["scores"]["dog"] == pytest.approx(alone["scores"]["dog"], abs=1e-6)
    assert alone["score"] < 1


def test_what_can_not_be_compared_is_refused(model):
    for labels, said in (
        ([], "at least one"),
        ("dog", "list of words"),
        (["dog", "dog"], "twice"),
        (["", "a"], "list"),
    ):
        with pytest.raises(InputError, match=said):
            zoo.pipeline("zero-shot-image-classification", model, labels=labels)
    for templates in ([], "a {}", ["a photo"]):
        with pytest.raises(InputError, match="template"):
            zoo.pipeline("zero-shot-image-classification", model, labels=["dog"], templates=templates)
    with pytest.raises(TaskError, match="reads no pictures"):
        zoo.pipeline("image-embedding", zoo.create("bert-tiny"))
    with pytest.raises(TaskError, match="text tower"):
        zoo.pipeline("zero-shot-image-classification", model.image, labels=["dog"], images=towers.IMAGES)
    with pytest.raises(InputError, match=r"zoo\.images"):
        zoo.pipeline("image-embedding", model.image)
    with pytest.raises(InputError, match="a picture"):
        zoo.pipeline("image-embedding", model)(7)


# -- the index ---------------------------------------------------------------------------------------------------------


def embed_with(model, read):
    def embed(paths):
        read.extend(path.name for path in paths)
        return picture_vectors(model, towers.IMAGES(paths))

    return embed


def kinds():
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return ["index.safetensors"]
    return ["index.safetensors", "index.parquet"]


@pytest.mark.parametrize("kind", kinds())
def test_only_new_and_changed_pictures_are_read_again(model, pictures, tmp_path, kind):
    file, read = tmp_path / kind, []

    def updated():
        read.clear()
        index = PictureIndex.read(file, pictures, {"model": "tiny"})
        index.update(list_pictures(pictures), embed_with(model, read), batch_size=2)
        index.write(file)
        return index

    first = updated()
    assert first.names == sorted(NAMES)
    assert len(read) == 6
    assert torch.allclose(first.vectors, picture_vectors(model, towers.IMAGES([pictures / n for n in first.names])))
    again = updated()
    assert read == []
    assert torch.equal(again.vectors, first.vectors)
    Image.new("RGB", (30, 30), "red").save(pictures / "1.png")
    Image.new("RGB", (30, 30), "blue").save(pictures / "new.png")
    (pictures / "0.jpg").unlink()
    (pictures / "bad.png").write_bytes(b"no picture")
    (pictures / ".hidden.png").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("no picture")
    changed = updated()
    assert sorted(set(read)) == ["1.png", "bad.png", "new.png"]
    assert changed.names == sorted([*NAMES[1:], "new.png"])
    assert list(changed.unreadable) == ["bad.png"]
    assert "format" in changed.unreadable["bad.png"][1]
    kept = changed.names.index("3.png")
    assert torch.equal(changed.vectors[kept], first.vectors[first.names.index("3.png")])
    updated()
    assert read == []  # the unreadable one neither, until it changes


def test_what_was_read_before_it_was_stopped_is_kept(model, pictures, tmp_path):
    index = PictureIndex(pictures)
    seen = []

    def stopped(paths):
        if len(seen) >= 4:
            raise KeyboardInterrupt
        return embed_with(model, seen)(paths)

    with pytest.raises(KeyboardInterrupt):
        index.update(list_pictures(pictures), stopped, batch_size=2)
    assert len(index) == 4
    rest = []
    assert index.update(list_pictures(pictures), embed_with(model, rest), batch_size=2) == 2
    assert not set(rest) & set(seen)
    assert index.names == sorted(NAMES)


def test_hits_are_those_of_the_highest_cosine(model, pictures):
    index = PictureIndex(pictures)
    index.update(list_pictures(pictures), embed_with(model, []))
    queries = torch.cat(list(text_vectors(model, ["a red dog", "blue"], batch_size=1))).detach()
    found = index.search(queries, top=3)
    for query, hits in zip(queries, found, strict=True):
        cosines = {name: float(query @ vector) for name, vector in zip(index.names, index.vectors, strict=True)}
        wanted = sorted(cosines.items(), key=lambda item: -item[1])[:3]
        assert [name for name, _ in hits] == [name for name, _ in wanted]
        assert [score for _, score in hits] == pytest.approx([score for _, score in wanted], abs=1e-6)
    assert len(index.search(queries, top=50)[0]) == 6
    assert PictureIndex(pictures).search(queries, top=5) == [[], []]
    with pytest.raises(InputError, match="top"):
        index.search(queries, top=0)


def test_an_index_of_another_model_and_what_is_no_index_are_refused(model, pictures, tmp_path):
    index = PictureIndex(pictures, {"model": "one", "files": [("a", 1)]})
    index.update(list_pictures(pictures), embed_with(model, []))
    index.write(tmp_path / "i.safetensors")
    PictureIndex.read(tmp_path / "i.safetensors", pictures, {"model": "one", "files": [["a", 1]]})
    with pytest.raises(InputError, match="made with model = 'one', now it is 'two'"):
        PictureIndex.read(tmp_path / "i.safetensors", pictures, {"model": "two", "files": [["a", 1]]})
    zoo.save(zoo.create("bert-tiny"), tmp_path / "model")
    with pytest.raises(InputError, match="no index of pictures"):
        PictureIndex.read(tmp_path / "model" / "model.safetensors", pictures, {})
    for name, said in (("index.npy", "ends in"), ("nowhere/i.parquet", "not there")):
        with pytest.raises(InputError, match=said):
            PictureIndex.read(tmp_path / name, pictures, {})
    if os.geteuid():
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(InputError, match="--index"):
            index.write(tmp_path / "shut" / "i.safetensors")


# -- a contact sheet ---------------------------------------------------------------------------------------------------


def test_a_contact_sheet_shows_the_pictures_in_rows(tmp_path):
    red, blue = (Image.new("RGB", (50, 30), color) for color in ("red", "blue"))
    contact_sheet(
        [red, blue, red], ["one", "two", "a very long name " * 9], tmp_path / "s.png", columns=2, title="reds"
    )
    sheet = Images(resize="none", mean=(0.0,) * 3, std=(1.0,) * 3)(tmp_path / "s.png")[0]
    assert sheet.shape[1] > sheet.shape[2]  # two columns, two rows, a title
    reds = (sheet == torch.tensor([1.0, 0.0, 0.0])[:, None, None]).all(0)
    blues = (sheet == torch.tensor([0.0, 0.0, 1.0])[:, None, None]).all(0)
    assert (int(reds.sum()), int(blues.sum())) == (2 * 50 * 30, 50 * 30)
    middle = sheet.shape[2] // 2
    assert int(reds[:, middle:].sum()) == 0
    for pictures, captions, out in (([], [], "s.png"), ([red], [], "s.png"), ([red], ["a"], "s.jpg")):
        with pytest.raises(InputError):
            contact_sheet(pictures, captions, tmp_path / out)
