"""What `zoo.create` converts into the cache: damage is found and mended, pruning spares what is at
work, odd records stop nobody, several users share.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zoo
import zoo.checkpoints.convert as converting
from tests.cli.test_cli import run
from tests.hub_server import HubServer, serving
from tests.kills import output, tiny
from zoo.checkpoints.convert import conversion, converted
from zoo.checkpoints.fetching.cache import Cache, locked
from zoo.checkpoints.fetching.fetch import fetch
from zoo.checkpoints.load import open_to_load
from zoo.errors import FetchError
from zoo.formats.disk import workspace
from zoo.registry.records import Record


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[HubServer]:
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    zoo.convert(zoo.save(tiny(1), tmp_path / "ours"), tmp_path / "theirs", to="hf-bert")
    with serving({f"/bert/{file.name}": file.read_bytes() for file in (tmp_path / "theirs").iterdir()}) as running:
        yield running


@pytest.fixture
def record(server) -> Record:
    config = json.loads(server.files["/bert/config.json"])
    source = f"{server.url}/bert/model.safetensors"
    return Record("bert", "bert-tiny", "one", (source,), layout="hf-bert", config=config)


def flip(file: Path, place: int = -3) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 8)


def right(folder: Path) -> bool:
    return torch.equal(output(zoo.load(folder)), output(tiny(1)))


# --- damage


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("way", ["verify", "prune", "fetch"])
def test_a_damaged_conversion_is_found_and_made_anew(damage, way, record):
    folder = converted(record)
    cache = Cache()
    assert [result.problems for result in cache.verify()] == [(), ()]
    assert cache.prune() == []
    damage(folder / "model.safetensors")
    wrong = [result for result in cache.verify() if result.problems]
    assert [result.shown for result in wrong] == [str(folder)]
    if way == "verify":
        cache.verify(drop=True)
    elif way == "prune":
        assert [item.path for item in cache.prune()] == [folder]
    else:
        fetch(record, force=True)
    assert not folder.exists()
    assert converted(record) == folder
    assert right(folder)


def test_verify_of_a_fetched_source_finds_damage_in_it_and_in_its_conversion(record):
    source = record.sources[0]
    config = record.config
    tree, folder = fetch(source), converted(record)
    assert folder.name.endswith(tree.parent.name)
    assert zoo.verify(source, layout="hf-bert", config=config).ok
    flip(folder / "model.safetensors")
    failed = zoo.verify(source, layout="hf-bert", config=config).failed
    assert (failed.name, str(folder) in failed.why) == ("binding", True)
    Cache().verify(drop=True)
    flip(tree)
    failed = zoo.verify(source, layout="hf-bert", config=config).failed
    assert "damaged" in failed.why


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_conversion_that_is_cut_short_is_made_anew_without_a_word(name, record):
    folder = converted(record)
    cut(folder / name)
    assert converted(record) == folder
    assert right(folder)


def test_a_flipped_bit_in_a_fetched_file_does_not_reach_the_conversion(record, server):
    tree = fetch(record)
    flip(tree / "model.safetensors")
    assert right(converted(record))  # it was fetched again
    assert [result.problems for result in Cache().verify()] == [(), ()]


def test_a_damaged_file_that_can_not_be_fetched_again_is_refused(record, monkeypatch):
    flip(fetch(record) / "model.safetensors")
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    with pytest.raises(FetchError, match=r"model.safetensors has sha256 .* was fetched, and can't be fetched again"):
        converted(record)
    assert Cache().conversions() == []


def test_a_source_outside_of_the_cache_is_converted_anew_once_it_changes(tmp_path, record):
    here = Record("bert", "bert-tiny", "here", (f"file:{tmp_path / 'theirs'}",), layout="hf-bert")
    first = converted(here)
    assert converted(here) == first
    assert Cache().prune() == []
    zoo.convert(zoo.save(tiny(3), tmp_path / "ours"), tmp_path / "theirs", to="hf-bert")
    assert torch.equal(output(zoo.load(converted(here))), output(tiny(3)))


# --- pruning beside work


def test_pruning_spares_a_conversion_that_runs(record):
    folder = Cache().converted / "busy"
    with locked(folder.with_name("busy.lock")), workspace(folder) as stage:
        (stage / "model.safetensors").write_bytes(b"half")
        Cache().prune(everything=True)
        assert (stage / "model.safetensors").is_file()


def test_pruning_spares_a_conversion_that_is_loaded(record):
    for _ in range(2):  # made now, and found
        with conversion(record) as folder:
            Cache().prune(everything=True)
            assert right(folder)
    assert folder in [item.path for item in Cache().prune(everything=True)]
    assert not folder.exists()


def test_those_who_create_beside_a_pruner_get_their_model(record):
    stop, failures = threading.Event(), []

    def prune() -> None:
        while not stop.is_set():
            try:
                Cache().prune(everything=True)
            except Exception as error:
                failures.append(error)

    pruner = threading.Thread(target=prune)
    pruner.start()
    got = 0
    try:
        for _ in range(8):
            try:
                with open_to_load(record, name="bert-tiny") as checkpoint:
                    got += checkpoint.layout == "zoo"
            except zoo.ZooError as error:
                failures.append(error)
    finally:
        stop.set()
        pruner.join()
    assert (got, failures) == (8, [])


def test_pruning_a_source_prunes_what_was_made_of_it(record):
    folder = converted(record)
    gone = [item.path for item in Cache().prune([record.name])]
    assert folder in gone
    assert not folder.exists()


# --- records that are none

ODD = {
    "not JSON": "{",
    "no object": "[1]",
    "nested": "[" * 100_000,
    "a huge number": '{"version": ' + "9" * 10_000 + "}",
    "another version": '{"version": 7}',
    "files of a wrong type": {"files": [1]},
    "a size that is no number": {"files": {"x": [True, "0" * 64]}},
    "an endless size": {"files": {"x": [float("inf"), "0" * 64]}},
    "a path that leads out": {"files": {"../x": [1, "0" * 64]}},
    "no hash": {"files": {"x": [1, "abc"]}},
    "no date": {"fetched": "yesterday"},
    "a date without a zone": {"fetched": "2026-01-01T00:00:00"},
    "a name that is an object": {"name": {"a": 1}},
    "facts of a wrong type": {"facts": []},
    "a tree inside a tree": {"tree": "a/b"},
    "not text": b"\xff\xfe",
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_record_breaks_no_command_and_is_listed(kind, record, monkeypatch, capsys):
    fetch(record)
    cache = Cache()
    (good,) = cache.refs.glob("*.json")
    content, bad = ODD[kind], cache.refs / "odd.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(good.read_text()), **content})
    bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, out, _ = run(monkeypatch, capsys, "cache", "list", "--json")
    listed = json.loads(out)
    assert (code, len(listed), listed[1]["record"]) == (0, 2, str(bad))
    assert listed[1]["problem"]
    code, out, _ = run(monkeypatch, capsys, "cache", "list")
    assert (code, "no record" in out) == (0, True)
    code, out, _ = run(monkeypatch, capsys, "cache", "verify", "--json")
    assert (code, [bool(found["problems"]) for found in json.loads(out)]) == (1, [True, False])
    code, out, _ = run(monkeypatch, capsys, "cache", "prune", "--older-than-days", "1", "--dry-run", "--json")
    assert (code, [found["path"] for found in json.loads(out)]) == (0, [str(bad)])
    assert fetch(record, offline=True).is_dir()
    assert run(monkeypatch, capsys, "cache", "verify", "--drop")[0] == 1
    assert run(monkeypatch, capsys, "cache", "verify")[0] == 0
    assert not bad.exists()


def test_records_whose_words_are_odd_are_shown_plainly(record, monkeypatch, capsys):
    fetch(record)
    cache = Cache()
    (good,) = cache.refs.glob("*.json")
    good.write_text(json.dumps({**json.loads(good.read_text()), "source": "[/red]\x1b[31m\ud800", "name": "[bold]"}))
    (cache.refs / os.fsdecode(b"\xff\x1b.json")).write_text("{")
    for command in ("list", "verify", "prune"):
        for more in ((), ("--json",)):
            code, out, _ = run(monkeypatch, capsys, "cache", command, *more)
            out.encode()
            assert (code, "\x1b" in out) == (1 if command == "verify" else 0, False)


def test_records_that_are_no_files_or_far_too_large_are_odd(record):
    cache = Cache()
    fetch(record)
    (cache.refs / "folder.json").mkdir()
    os.mkfifo(cache.refs / "pipe.json")
    with (cache.refs / "large.json").open("wb") as file:
        file.truncate(1 << 34)
    assert [(one.path.name, one.why.split()[0]) for one in cache.odd()] == [
        ("folder.json", "is"),
        ("large.json", "has"),
        ("pipe.json", "is"),
    ]
    cache.prune()
    assert cache.odd() == []
    assert len(cache.entries()) == 1


# --- several users


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_rights_in_a_cache_follow_the_umask(mask, record):
    before = os.umask(mask)
    try:
        converted(record)
    finally:
        os.umask(before)
    root = Cache().root
    for path in (root, *root.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        fetched = (path.is_file() and path.is_relative_to(Cache().trees)) or path.parent == Cache().blobs
        wanted = 0o777 if path.is_dir() else 0o444 if fetched else 0o666
        assert oct(mode) == oct(wanted & ~mask), path


def test_pruning_an_entry_leaves_the_rights_of_what_another_holds(tmp_path, server):
    for name in ("/a/x", "/b/x"):
        server.files[name] = b"shared"
    folders = [fetch(f"{server.url}/{name}/x").parent for name in "ab"]
    assert (folders[0] / "x").samefile(folders[1] / "x")
    Cache().prune([f"{server.url}/a/x"])
    assert stat.S_IMODE((folders[1] / "x").stat().st_mode) == 0o444


def test_a_file_that_is_a_stored_one_already_leaves_no_second_name(tmp_path):
    cache = Cache(tmp_path)
    for key in ("a", "b"):  # the second takes up what a killed first had stored
        with cache.lock(key), cache.staging(key) as staging:
            folder = staging / "files"
            folder.mkdir()
            if key == "a":
                (folder / "x").write_bytes(b"1")
            else:
                (folder / "x").hardlink_to(next(cache.blobs.iterdir()))
            entry = cache.publish(key, folder, source=key, slug=key)
        assert [file.name for file in entry.folder.iterdir()] == ["x"]


def test_a_file_of_another_user_is_copied(tmp_path, monkeypatch):
    cache, real = Cache(tmp_path), os.chmod
    monkeypatch.setattr(os, "chmod", lambda path, mode: real(path, mode) if "incomplete" in str(path) else refuse(path))

    def refuse(path: Path) -> None:
        raise PermissionError(1, "not yours", str(path))

    with cache.lock("a"), cache.staging("a") as staging:
        folder = staging / "files"
        folder.mkdir()
        (tmp_path / "theirs").write_bytes(b"1")
        (folder / "x").hardlink_to(tmp_path / "theirs")
        entry = cache.publish("a", folder, source="s", slug="toy")
    assert stat.S_IMODE((entry.folder / "x").stat().st_mode) == 0o444
    assert stat.S_IMODE((tmp_path / "theirs").stat().st_mode) != 0o444


def test_a_lock_that_another_user_made_can_be_held(tmp_path):
    (tmp_path / "a.lock").touch(0o444)
    with locked(tmp_path / "a.lock"), locked(tmp_path / "a.lock", wait=False) as again:
        assert again is False


def test_a_cache_that_is_somebody_elses_can_be_read_and_not_pruned(record, monkeypatch):
    folder, real = converted(record), os.open

    def theirs(path, flags, *mode, **options):
        if flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *mode, **options)

    for lock in [*Cache().root.rglob("*.lock")]:
        lock.unlink()
    monkeypatch.setattr(os, "open", theirs)
    assert converted(record) == folder
    assert [result.problems for result in Cache().verify()] == [(), ()]
    with pytest.raises(FetchError, match=r"can't be written \(Permission denied\); set ZOO_HOME"):
        Cache().prune(everything=True)
    assert right(folder)


def test_a_conversion_is_only_looked_at_once_it_is_whole(record, monkeypatch):
    seen: list[bool] = []
    real = converting._forward

    def forward(*arguments, **options):
        target = arguments[2].path
        seen.append(target.exists())
        return real(*arguments, **options)

    monkeypatch.setattr(converting, "_forward", forward)
    folder = converted(record)
    converted(record)
    assert seen == [False]
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
