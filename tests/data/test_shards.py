"""Tar files of pictures and their texts, as WebDataset keeps them."""

from __future__ import annotations

import io
import json
import tarfile

import numpy
import pytest
import torch
from PIL import Image

from zoo.data.batches import EpochBatches
from zoo.data.images.batches import PictureTexts
from zoo.data.images.images import Images
from zoo.data.images.shards import ShardFile, Shards
from zoo.errors import InputError


def png(color) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), color).save(file, "PNG")
    return file.getvalue()


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def two(tmp_path):
    first = {
        f"a/{n:04d}.{kind}": c for n in range(3) for kind, c in (("png", png((n, 0, 0))), ("txt", b"picture %d" % n))
    }
    second = {"7.jpg": png((7, 0, 0)), "7.json": json.dumps({"text": "seven", "size": [4, 3], "key": "no"}).encode()}
    return [
        shard(tmp_path / "0.tar", first),
        shard(tmp_path / "1.tar", second | {"__meta": b"", "8.x.y.png": png((8, 0, 0))}),
    ]


def test_samples_are_rows_by_their_numbers(two):
    samples = Shards(two)
    assert len(samples) == 5
    assert [row["key"] for row in samples] == ["a/0000", "a/0001", "a/0002", "7", "8"]
    assert [row.get("text") for row in samples] == ["picture 0", "picture 1", "picture 2", "seven", None]
    assert samples[-2]["size"] == [4, 3]
    assert str(samples[1]["image"]) == f"{two[0]}#a/0001.png"
    assert set(samples[4]) == {"key", "x.y"}
    plain = Images(resize="none", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert [round(float(plain(samples[n]["image"])[0, 0, 0, 0]) * 255) for n in range(4)] == [0, 1, 2, 7]
    assert [row["key"] for row in samples[1:4]] == ["a/0001", "a/0002", "7"]
    with pytest.raises(IndexError):
        samples[5]


def test_a_run_goes_on_at_any_sample_and_the_order_can_be_shuffled(two):
    samples = Shards(two)
    whole = list(samples)
    for start in range(6):
        assert list(samples.beginning_at(start)) == whole[start:]
    for number in numpy.random.default_rng(0).permutation(5):
        assert samples[int(number)] == whole[number]


def test_pictures_are_read_when_they_are_asked_for(two):
    row = Shards(two)[0]
    two[0].unlink()
    with pytest.raises(InputError, match="can't be read"):
        row["image"].read()


@pytest.mark.parametrize("name", ["1.pyd", "1.pickle", "1.pkl", "1.x.pth"])
def test_pickles_are_refused_by_name(tmp_path, name):
    with pytest.raises(InputError, match=rf"p\.tar#{name} is a pickle"):
        list(Shards(shard(tmp_path / "p.tar", {"1.png": png("red"), name: b"cos\nsystem\n."})))


def test_what_is_no_shard_is_refused(tmp_path, two):
    (tmp_path / "text.tar").write_text("no tar file")
    with pytest.raises(InputError, match="as a tar file"):
        len(Shards(tmp_path / "text.tar"))
    with pytest.raises(InputError, match="not there"):
        len(Shards(tmp_path / "none.tar"))
    with pytest.raises(InputError, match="at least one"):
        Shards([])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(two[0].read_bytes()[:1700])
    with pytest.raises(InputError, match=r"cut\.tar"):
        [row["image"].read() for row in Shards(cut)]
    with pytest.raises(InputError, match="apart"):
        list(Shards(shard(tmp_path / "apart.tar", {"1.png": png("red"), "2.png": png("red"), "1.txt": b"one"})))
    with pytest.raises(InputError, match="twice"):
        list(Shards(shard(tmp_path / "twice.tar", {"1.png": png("red"), "1.jpg": png("red")})))
    with pytest.raises(InputError, match="object with columns"):
        list(Shards(shard(tmp_path / "list.tar", {"1.json": b"[1]"})))
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InputError, match="no regular file"):
        list(Shards(tmp_path / "link.tar"))
    with pytest.raises(InputError, match="ends after"):
        ShardFile(str(two[0]), "1.png", two[0].stat().st_size - 3, 10).read()


# -- batches for training ----------------------------------------------------------------------------------------------


class Words:
    """A tokenizer that gives a text's length, and something that the model doesn't read."""

    def __call__(self, texts):
        return {
            "input_ids": torch.tensor([[len(text)] for text in texts]),
            "token_type_ids": torch.zeros(len(texts), 1),
        }


@pytest.fixture
def texts(two):
    tiny = Images(size=2, crop=2, mean=(0.0,) * 3, std=(1.0,) * 3)
    return PictureTexts(Shards(two)[:4], tiny, Words(), ("input_ids", "pixel_values"), batch_size=3)


def reds(batches):
    return [[round(float(red) * 255) for red in batch["pixel_values"][:, 0, 0, 0]] for batch in batches]


def test_an_epoch_has_each_sample_once_and_can_be_begun_at_any_batch(texts):
    assert (len(texts), isinstance(texts, EpochBatches)) == (2, True)
    first, second = (reds(texts.epoch(number)) for number in (0, 1))
    assert [sorted(red for batch in some for red in batch) for some in (first, second)] == [[0, 1, 2, 7]] * 2
    assert first != second
    assert first == reds(texts.epoch(0))
    assert reds(texts.epoch(0, start=1)) == first[1:]
    assert set(next(texts.epoch(0))) == {"input_ids", "pixel_values"}


def test_processes_share_a_batch(texts):
    whole = reds(texts.epoch(0))
    parts = [reds(texts.epoch(0, share=(number, 2))) for number in range(2)]
    assert sorted(parts[0][0] + parts[1][0]) == sorted(whole[0])
    assert parts[0][1] == parts[1][1] == whole[1]  # of one row each process gets that one


def test_a_sample_without_a_text_is_named(two):
    images = Images(size=2, crop=2)
    for where, lacking in ((slice(4, 5), "image"), (slice(0, 1), "caption")):
        made = PictureTexts(Shards(two)[where], images, Words(), ("pixel_values",), text="caption")
        with pytest.raises(InputError, match=f"no '{lacking}'"):
            next(made.epoch(0))
