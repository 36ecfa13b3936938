"""Two towers learn from shards of pictures and texts, and go on at the sample where they were stopped."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress

import pytest
import torch
from PIL import Image

import zoo
from tests import towers
from tests.training.test_parallel import curve
from zoo.data.images.batches import PictureTexts
from zoo.data.images.shards import Shards
from zoo.models.clip import Clip
from zoo.training import fit

WORDS = ("red", "blue", "dog", "cat", "red dog", "blue dog", "red cat", "blue cat")


@pytest.fixture
def shards(tmp_path):
    """Two shards: a picture of one color each, and the word for it."""
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for place, word in list(enumerate(WORDS))[4 * number : 4 * number + 4]:
                color = tuple(255 * (place >> bit & 1) for bit in range(3))
                picture = io.BytesIO()
                Image.new("RGB", (12, 10), color).save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("txt", f"a {word}".encode())):
                    member = tarfile.TarInfo(f"{place}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return Shards([tmp_path / "0.tar", tmp_path / "1.tar"])


@pytest.fixture(autouse=True)
def registered():
    zoo.register(towers.NAME, Clip, towers.CONFIG)
    yield
    zoo.unregister(towers.NAME)


def trained(shards, out, kill=0):
    """A run over fourteen epochs of three batches; killed behind an update where ``kill`` says so."""

    def event(row):
        if row.get("step") == kill:
            raise KeyboardInterrupt

    generator = torch.Generator().manual_seed(0)
    model = zoo.create(towers.NAME, task="image-text-contrast", generator=generator)
    data = PictureTexts(shards, towers.IMAGES, towers.tokenizer(), model.model.inputs, batch_size=3)
    with suppress(KeyboardInterrupt):
        fit(model, data, out=out, resume=True, on_event=event, epochs=14, lr=3e-3, log_every=1, save_every=2)
    return model


def test_towers_learn_from_shards_and_a_stopped_run_ends_as_a_whole_one(shards, tmp_path):
    whole = trained(shards, tmp_path / "whole")
    losses = [row["loss"] for row in curve(tmp_path / "whole")]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    trained(shards, tmp_path / "cut", kill=9)  # in the middle of an epoch
    again = trained(shards, tmp_path / "cut")
    assert [row["loss"] for row in curve(tmp_path / "cut")] == pytest.approx(losses, abs=1e-6)
    for name, tensor in whole.state_dict().items():
        assert torch.allclose(tensor, again.state_dict()[name], atol=1e-6), name
