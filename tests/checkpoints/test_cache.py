"""The cache by itself: names, locks, publishing, verifying, pruning."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import zoo.checkpoints.fetching.cache
import zoo.formats.disk
from zoo.checkpoints.fetching.cache import Cache, CacheEntry, home, locked
from zoo.errors import CheckpointError, FetchError, UnknownNameError
from zoo.formats.disk import safe_path, sha256_of, write_atomically

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "home")


def put(cache: Cache, key: str, files: dict[str, bytes], **values: str) -> CacheEntry:
    with cache.lock(key), cache.staging(key) as staging:
        folder = staging / "files"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        folder.mkdir(exist_ok=True)
        return cache.publish(key, folder, source=values.pop("source", f"file:{key}"), slug="toy", **values)  # type: ignore[arg-type]


def damage(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def test_home_is_the_users_word_and_else_the_platforms_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZOO_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("ZOO_HOME")
    monkeypatch.setattr(zoo.checkpoints.fetching.cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert home() == tmp_path / "xdg" / "zoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".cache" / "zoo"
    monkeypatch.setattr(zoo.checkpoints.fetching.cache.sys, "platform", "darwin")
    assert home() == tmp_path / "Library" / "Caches" / "zoo"
    monkeypatch.setattr(zoo.checkpoints.fetching.cache.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert home() == tmp_path / "local" / "zoo"


def test_what_is_published_is_found_with_sizes_and_hashes(cache: Cache) -> None:
    entry = put(cache, "a", {"model.bin": b"12345", "sub/config.json": b"{}"}, name="toy.one", revision="r1")
    found = cache.find("a")
    assert found == entry
    assert found is not None
    assert (found.folder / "sub" / "config.json").read_bytes() == b"{}"
    assert found.files["model.bin"].sha256 == sha256_of(found.folder / "model.bin")
    assert (found.name, found.revision, found.bytes) == ("toy.one", "r1", 7)
    assert cache.entries() == [entry]
    assert cache.find("b") is None


def test_an_entry_without_files_is_refused(cache: Cache) -> None:
    with pytest.raises(FetchError, match="no file"):
        put(cache, "a", {})
    assert cache.entries() == []


def test_the_same_contents_are_stored_once(cache: Cache) -> None:
    one, two = put(cache, "a", {"x": b"same", "y": b"other"}), put(cache, "b", {"z": b"same"})
    assert (one.folder / "x").stat().st_ino == (two.folder / "z").stat().st_ino
    assert len(list(cache.blobs.iterdir())) == 2


def test_a_file_system_without_links_gets_copies(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "links are not supported here")

    monkeypatch.setattr(zoo.checkpoints.fetching.cache.os, "link", refuse)
    entry = put(cache, "a", {"x": b"same"})
    assert (entry.folder / "x").read_bytes() == b"same"
    assert list(cache.root.rglob("*.incomplete")) == []
    assert cache.prune() == []


def test_a_damaged_blob_is_not_shared_again(cache: Cache) -> None:
    first = put(cache, "a", {"x": b"good"})
    damage(first.folder / "x", b"evil")
    assert cache.blob(first.files["x"].sha256) is None
    second = put(cache, "b", {"x2": b"good"})
    assert (second.folder / "x2").read_bytes() == b"good"
    again = put(cache, "a", {"x": b"good"})
    assert (again.folder / "x").read_bytes() == b"good"
    assert [result.problems for result in cache.verify()] == [(), ()]


def test_a_replaced_entry_leaves_the_old_files_to_their_readers(cache: Cache) -> None:
    old = put(cache, "a", {"x": b"old"})
    new = put(cache, "a", {"x": b"new"})
    assert (old.folder / "x").read_bytes() == b"old"
    assert cache.find("a") == new
    pruned = cache.prune()
    assert old.folder in [item.path for item in pruned]
    assert not old.folder.exists()
    assert (new.folder / "x").read_bytes() == b"new"


def test_verify_names_what_is_wrong_and_drop_forgets_it(cache: Cache) -> None:
    entry = put(cache, "a", {"kept": b"1", "changed": b"22", "cut": b"333", "gone": b"4444"}, name="toy.one")
    put(cache, "b", {"fine": b"5"})
    damage(entry.folder / "changed", b"2?")
    (bad,) = [result for result in cache.verify() if result.problems]
    assert bad.entry.key == "a"
    assert len(bad.problems) == 1
    assert bad.problems[0].startswith("changed has sha256")
    damage(entry.folder / "cut", b"3")
    (entry.folder / "gone").unlink()
    assert cache.find("a") is None
    (bad,) = [result for result in cache.verify(drop=True) if result.problems]
    assert sorted(problem.split()[0] for problem in bad.problems) == ["changed", "cut", "gone"]
    assert [result.entry.key for result in cache.verify()] == ["b"]


def test_an_unknown_entry_is_refused_with_the_closest(cache: Cache) -> None:
    with pytest.raises(UnknownNameError, match="empty"):
        cache.verify(["toy.one"])
    put(cache, "a", {"x": b"1"}, name="toy.one")
    with pytest.raises(UnknownNameError, match=r"'toy\.one'"):
        cache.prune(["toy.two"])


def test_prune_removes_leftovers_and_nothing_else(cache: Cache) -> None:
    entry = put(cache, "a", {"x": b"1"})
    (cache.partial("dead") / "model.bin.incomplete").write_bytes(b"12")
    (cache.stagings / "dead" / "ab").mkdir(parents=True)
    (cache.trees / "nobodys-0123").mkdir()
    (cache.trees / "nobodys-0123" / "f").write_bytes(b"123")
    (cache.blobs / ("0" * 64)).write_bytes(b"1234")
    (cache.refs / "broken.json").write_text("{")
    would = cache.prune(dry_run=True)
    assert (cache.trees / "nobodys-0123" / "f").exists()
    did = cache.prune()
    assert [item.path for item in did] == [item.path for item in would]
    assert sum(item.bytes for item in did) == 2 + 3 + 4 + 1
    assert cache.entries() == [entry]
    assert {path.name for path in cache.root.rglob("*") if path.is_file()} == {
        "x",
        "a.json",
        entry.files["x"].sha256,
        "a.lock",
        "publish.lock",
    }
    assert cache.prune() == []


def test_prune_by_name_by_age_and_altogether(cache: Cache) -> None:
    put(cache, "a", {"x": b"1"}, name="toy.one")
    put(cache, "b", {"x": b"2"}, name="toy.two")
    put(cache, "c", {"x": b"3"})
    cache.prune(["toy.one"])
    assert [entry.key for entry in cache.entries()] == ["b", "c"]
    assert len(list(cache.blobs.iterdir())) == 2
    assert cache.prune(older_than_days=1) == []
    reference = cache.refs / "b.json"
    reference.write_text(reference.read_text().replace('"fetched": "20', '"fetched": "19'))
    cache.prune(older_than_days=365)
    assert [entry.key for entry in cache.entries()] == ["c"]
    cache.prune(everything=True)
    assert cache.entries() == []
    assert [path for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_prune_leaves_alone_what_is_being_fetched(cache: Cache) -> None:
    (cache.partial("busy") / "model.bin.incomplete").write_bytes(b"12")
    with cache.lock("busy"):
        assert cache.prune() == []
    assert len(cache.prune()) == 1


def test_pruning_while_others_publish_never_takes_what_they_got(cache: Cache) -> None:
    failures: list[object] = []
    stop = threading.Event()

    def publish(number: int) -> None:
        for round_ in range(15):
            entry = put(cache, f"k{number}", {"x": b"%d %d" % (number, round_), "shared": b"shared"})
            if not entry.present():
                failures.append(entry)

    def prune() -> None:
        while not stop.is_set():
            try:
                cache.prune()
            except Exception as error:
                failures.append(error)

    workers = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
    pruner = threading.Thread(target=prune)
    for thread in [pruner, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    pruner.join()
    assert failures == []
    assert [result.problems for result in cache.verify()] == [()] * 3


def test_a_lock_keeps_others_out_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    waited: list[bool] = []
    code = "import sys, time; from pathlib import Path; from zoo.checkpoints.fetching.cache import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with locked(path, wait=False) as held:
        assert not held
    threading.Timer(0.1, holder.kill).start()
    with locked(path, waiting=lambda: waited.append(True)) as held:
        assert held
    assert waited == [True]
    holder.communicate()


def test_an_error_inside_a_lock_comes_out_of_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "a.lock"):
        raise FileNotFoundError
    with locked(tmp_path / "a.lock", wait=False) as held:
        assert held


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lock"
    lock, calls = zoo.checkpoints.fetching.cache._try_lock, []

    def removed_before_it_is_locked(descriptor: int) -> bool:
        calls.append(descriptor)
        if len(calls) < 3:
            path.unlink()
        return lock(descriptor)

    monkeypatch.setattr(zoo.checkpoints.fetching.cache, "_try_lock", removed_before_it_is_locked)
    with locked(path) as held:
        assert held
        assert len(calls) == 3
        assert path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_removed_lock_file_does_not_let_two_in(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(30):
            with locked(path):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0)
                inside.pop()
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


@given(st.text(alphabet="ab./\\:\0C~", min_size=0, max_size=12))
def test_a_safe_name_stays_in_its_folder(name: str) -> None:
    base = os.path.abspath("base")
    try:
        safe = safe_path(name)
    except CheckpointError:
        return
    path = os.path.abspath(os.path.join(base, safe))
    assert path.startswith(base + os.sep)
    assert "\\" not in safe
    assert not os.path.isabs(safe)


def test_an_atomic_write_replaces_whole_files_and_leaves_nothing_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / "f", b"old")
    monkeypatch.setattr(zoo.formats.disk.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(tmp_path / "f", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"old")]


def test_pruning_takes_unfinished_conversions_and_with_everything_the_finished_ones(tmp_path):
    cache = Cache(tmp_path)
    whole, half = tmp_path / "converted" / "bert", tmp_path / "converted" / ".bert.x.incomplete"
    for folder in (whole, half):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"1234")
    assert [item.path for item in cache.prune()] == [half]
    assert whole.is_dir()
    assert [item.path for item in cache.prune(everything=True)] == [whole]
    assert not whole.exists()
