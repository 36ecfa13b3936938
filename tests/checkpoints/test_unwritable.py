"""Targets that can't be written, and disks that fill up at any byte, are told in the zoo's errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.api.test_create import tiny
from zoo.checkpoints.adapters import save_adapter
from zoo.checkpoints.fetching.cache import home
from zoo.data.regions.files import save_regions
from zoo.errors import FetchError, ZooError
from zoo.tokenization.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(35))]


@pytest.fixture(scope="module")
def writers(tmp_path_factory) -> dict[str, Callable[[Path], Any]]:
    folder, model = tmp_path_factory.mktemp("sources"), tiny("sequence-classification", num_labels=3)
    tokenizer = wordpiece({word: number for number, word in enumerate(WORDS)})
    zoo.convert(zoo.save(model, folder / "ours", tokenizer), folder / "theirs", to="hf-bert")
    updated = zoo.apply(zoo.load(folder / "ours"), zoo.LoRA(rank=2))
    regions = zoo.Regions(torch.ones(1, 3), torch.tensor([[1.0, 1, 5, 5]]), (10, 10))
    return {
        "save": lambda out: zoo.save(model, out, tokenizer),
        "save shards": lambda out: zoo.save(model, out, shard_size=3000),
        "convert": lambda out: zoo.convert(folder / "theirs", out),
        "convert to a file": lambda out: zoo.convert(folder / "theirs", out.with_name(out.name + ".safetensors")),
        "convert --to": lambda out: zoo.convert(folder / "ours", out, to="hf-bert"),
        "save_adapter": lambda out: save_adapter(updated, out),
        "save_adapter for peft": lambda out: save_adapter(updated, out, library="peft"),
        "a tokenizer": tokenizer.save,
        "regions": lambda out: save_regions(out.with_name(out.name + ".safetensors"), {"a": regions}),
    }


NAMES = (
    *("save", "save shards", "convert", "convert to a file", "convert --to", "save_adapter", "save_adapter for peft"),
    *("a tokenizer", "regions"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_target_that_cannot_be_written_is_told(writers, tmp_path, name):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "out", Path("/proc/nowhere/out"), tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(ZooError, match=r"can't be written|is a file"):
            writers[name](place)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full_at_any_write_is_told_and_nothing_is_left(writers, tmp_path, monkeypatch, name):
    """Each call that writes fails in turn, as it would on a full disk."""
    writes = {"os.pwrite": os.pwrite, "os.fsync": os.fsync, "os.replace": os.replace}
    text, data = Path.write_text, Path.write_bytes
    left = -1

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return run

    for dotted, call in writes.items():
        monkeypatch.setattr(dotted, counted(call))
    monkeypatch.setattr(Path, "write_text", counted(text))
    monkeypatch.setattr(Path, "write_bytes", counted(data))
    for number in range(1, 40):
        left, folder, failed = number, tmp_path / str(number), None
        try:
            writers[name](folder / "out")
        except ZooError as error:
            failed = str(error)
        if failed is not None:
            assert "can't be written" in failed
            assert os.strerror(errno.ENOSPC) in failed
            if name not in ("a tokenizer", "save_adapter", "save_adapter for peft"):  # file by file, each whole or not
                assert not folder.exists() or list(folder.iterdir()) == []
        if left > 0:
            break
    assert 1 < number < 39


def test_a_user_without_a_home_is_told(monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ZOO_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(FetchError, match="set ZOO_HOME"):
        home()
