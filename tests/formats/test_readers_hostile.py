"""Files made to harm: nothing in them runs, nothing they announce is believed, and only
CheckpointErrors come out.
"""

from __future__ import annotations

import collections
import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.fuzz_readers import attempt, build_samples, canary, parameters, run, targets
from zoo.errors import CheckpointError
from zoo.formats.opening import open_archive

ZIP_OR_LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
MIB = 1 << 20


@contextlib.contextmanager
def harmless(memory: int = 64 * MIB, seconds: float = 5.0):
    """The block must neither do anything to the machine, nor take much memory or time."""
    watch = canary()
    watch.caught.clear()
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with watch.watching():
        yield
    assert watch.caught == []
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10 <= memory
    assert time.perf_counter() - start < seconds


def refused(path: Path, match: str, **limits: float) -> None:
    with harmless(**limits), pytest.raises(CheckpointError, match=match):
        read_all(path)


def read_all(path: Path) -> None:
    archive = open_archive(path)
    for name in archive.tensors:
        archive.read(name)


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def zip_with(path: Path, pickled: bytes, **members: bytes) -> Path:
    """A torch zip archive around a pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in members.items():
            archive.writestr("archive/" + name.replace("__", "/"), content)
    return path


# --- nothing runs -----------------------------------------------------------------------------------------------------


@ZIP_OR_LEGACY
@pytest.mark.parametrize(
    "call",
    [
        Calls(os.system, "echo boom > canary"),
        Calls(eval, "__import__('os').system('echo boom > canary')"),
        Calls(exec, "open('canary', 'w')"),
        Calls(subprocess.Popen, ["touch", "canary"]),
        Calls(getattr, "", "join"),
        Calls(open, "canary", "w"),
        Calls(torch.load, "canary"),
        Calls(bytearray, 1 << 40),
        Calls(range, 10),
        Calls(Calls, print, "x"),
    ],
    ids=lambda call: f"{call.function.__module__}.{call.function.__qualname__}",
)
def test_a_call_in_a_pickle_is_named_and_not_made_and_the_tensors_beside_it_are_read(
    tmp_path, monkeypatch, call, zipped
):
    monkeypatch.chdir(tmp_path)
    torch.save(
        {"a": torch.ones(2), "x": call, "nested": [{"y": call}], "b": torch.zeros(1)},
        "m.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with harmless():
        archive = open_archive("m.pt")
        assert list(archive.tensors) == ["a", "b"]
        assert archive.read("a").tolist() == [1.0, 1.0]
    name = {range: "xrange"}.get(
        call.function, call.function.__qualname__
    )  # protocol 2 writes some names as Python 2 had them
    assert any(line.endswith(f".{name} (REDUCE) at x and 1 more") for line in archive.refused), archive.refused
    assert os.listdir() == ["m.pt"]


def test_what_a_refused_object_is_fed_is_kept_as_plain_data_and_its_methods_never_run(tmp_path):
    class Loud(dict):
        def __setstate__(self, state):
            raise AssertionError("ran")

        def __setitem__(self, key, value):
            raise AssertionError("ran")

        def __reduce__(self):
            return Calls, (print,), {"lr": 1}, iter([2]), iter([("key", torch.ones(1))])

    torch.save({"x": Loud()}, tmp_path / "m.pt")
    with harmless():
        archive = open_archive(tmp_path / "m.pt")
    assert archive.metadata["x"] == {"lr": 1}
    assert list(archive.tensors) == ["x.key"]


def test_a_discarded_call_is_listed_too(tmp_path):
    zip_with(tmp_path / "m.pt", b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R0}.")
    with harmless():
        assert open_archive(tmp_path / "m.pt").refused == ("os.system (REDUCE), then discarded at the top",)


def test_every_way_to_call_is_refused(tmp_path):
    ways = [
        b"cos\nsystem\nX\x01\x00\x00\x00x\x85R",
        b"cos\nsystem\nX\x01\x00\x00\x00x\x85\x81",
        b"cos\nsystem\nX\x01\x00\x00\x00x\x85}\x92",
        b"(X\x01\x00\x00\x00xios\nsystem\n",
        b"(cos\nsystem\nX\x01\x00\x00\x00xo",
        b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93X\x01\x00\x00\x00x\x85R",
        b"\x82\x01",
        b"ccopyreg\n_reconstructor\n(cos\nsystem\ncbuiltins\nobject\nNtR",
    ]
    for way in ways:
        zip_with(tmp_path / "m.pt", b"\x80\x04}X\x01\x00\x00\x00k" + way + b"}bs.")
        with harmless():
            archive = open_archive(tmp_path / "m.pt")
        assert len(archive.refused) == 1, way
        assert archive.refused[0].endswith("at k"), archive.refused


# --- lies about sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"Nr\xff\xff\xff\x7f.",  # the nine bytes: a memo index of two thousand million
        b"Nr\xff\xff\xff\xff.",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"B\xff\xff\xff\x7fx.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffx.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\xffx.",
        b"\x8b\xff\xff\xff\x7fx.",
        b"I" + b"9" * 2000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"j\xff\xff\xff\xff.",
    ],
    ids=lambda body: repr(body[:9]),
)
def test_a_tiny_pickle_that_announces_gigabytes_takes_no_memory(tmp_path, body):
    (tmp_path / "m.pdparams").write_bytes(b"\x80\x04" + body)
    zip_with(tmp_path / "m.pt", b"\x80\x04" + body)
    for name in ("m.pdparams", "m.pt"):
        with harmless(memory=16 * MIB):
            outcome = attempt(tmp_path / name)
        assert outcome == "read" if b"Nr" in body else "pickle" in outcome or "m.pdparams" in outcome


@pytest.mark.parametrize(
    ("pickled", "match"),
    [
        (b"(" * 1_100_000 + b".", "lists, dicts and objects"),
        (b"]" * 1_100_000 + b".", "lists, dicts and objects"),
        (b"\x8f" * 1_100_000 + b".", "lists, dicts and objects"),
        (b"N" * 6_100_000 + b".", "operations"),
        (b"]" + b"\x85" * 300_000 + b".", ""),
        (b"]" + b"\x85" * 100_000 + b"}q\x00" + b"0" + b"h\x00h\x00s.", ""),
        (b"]q\x00" + b"h\x00a" * 3 + b".", ""),
        (b"]" + b"q\x00]h\x00ah\x00a" * 60 + b".", ""),
        (
            b"]"
            + b"N" * 0
            + b"".join(b"q" + bytes([i]) + b"0](" + (b"h" + bytes([i])) * 10 + b"e" for i in range(20))
            + b".",
            "unfolds",
        ),
        (
            b"(" + b"N" * 100_000 + b"lq\x000" + b"cbuiltins\nlist\nh\x00\x85R0" * 2000 + b"N.",
            "lists, dicts and objects",
        ),
        (
            b"X\xff\xff\x00\x00"
            + b"a" * 65535
            + b"q\x000"
            + b"c_codecs\nencode\nh\x00X\x05\x00\x00\x00utf-8\x86R0" * 2000
            + b"N.",
            "lists, dicts",
        ),
    ],
    ids=[
        "marks",
        "lists",
        "sets",
        "nones",
        "deep tuple",
        "deep key",
        "self",
        "self twice",
        "billion laughs",
        "copied lists",
        "copied text",
    ],
)
def test_a_pickle_that_multiplies_is_stopped(tmp_path, pickled, match):
    path = zip_with(tmp_path / "m.pt", b"\x80\x02" + pickled)
    with harmless(memory=400 * MIB, seconds=30):
        outcome = attempt(path)
    assert match in outcome
    assert outcome != "crash"


def storage_pickle(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, count: int = 4, kind: str = "FloatStorage"
) -> bytes:
    """A dict with one tensor on storage 0, as torch pickles it but with any sizes."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", getattr(torch, kind), "0", "cpu", count) if value is marker else None

    marker = Calls(print)
    file = io.BytesIO()
    tensor = Calls(torch._utils._rebuild_tensor_v2, marker, offset, shape, strides, False, collections.OrderedDict())
    Pickler(file, 2).dump({"a": tensor})
    return file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (((5,), (1,)), "beyond its storage"),
        (((2, 2), (4, 1)), "beyond its storage"),
        (((4,), (1,), 1), "beyond its storage"),
        (((1 << 40, 1 << 40), (0, 0)), "too many elements"),
        (((1 << 30,), (0,)), "would grow"),
        (((-1,), (1,)), "non-negative"),
        (((2,), (-1,)), "non-negative"),
        (((2,), (1, 1)), "strides"),
        (((2,), (1,), -1), "non-negative"),
        (((1,) * 70, (1,) * 70), "short tuple"),
        (((4,), (1,), 0, 5), "holds 16 bytes"),
        (((4,), (1,), 0, 1 << 60), "holds 16 bytes"),
    ],
)
def test_a_view_that_leaves_its_storage_or_explodes_is_refused(tmp_path, arguments, match):
    refused(zip_with(tmp_path / "m.pt", storage_pickle(*arguments), data__0=bytes(16)), match)


def test_a_storage_described_twice_or_missing_is_refused(tmp_path):
    refused(zip_with(tmp_path / "m.pt", storage_pickle((4,), (1,))), "not in the archive")
    both = storage_pickle((4,), (1,))[:-1] + b"0" + storage_pickle((4,), (1,), kind="IntStorage")[2:]
    refused(zip_with(tmp_path / "n.pt", both, data__0=bytes(16)), "described twice")


# --- safetensors ------------------------------------------------------------------------------------------------------


def safetensors(header: object, body: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + body


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (safetensors({"a": entry(0, 16, [4]), "b": entry(8, 16, [2])}), "overlap"),
        (safetensors({"a": entry(0, 8, [2]), "b": entry(12, 16, [1])}), "hole"),
        (safetensors({"a": entry(0, 8, [2])}), "tail"),
        (safetensors({"a": entry(0, 32, [8])}), "truncated"),
        (safetensors({"a": entry(0, 16, [5])}), "needs 20 bytes"),
        (safetensors({"a": entry(0, 16, [2**40, 2**40])}), "needs"),
        (safetensors({"a": entry(0, 16, [4], "F31")}), "dtype"),
        (safetensors({"a": entry(0, 16, [-4])}), "shape"),
        (safetensors({"a": entry(0, 16, [True, 4])}), "shape"),
        (safetensors({"a": entry(-16, 0, [4])}), "data_offsets"),
        (safetensors({"a": {**entry(0, 16, [4]), "x": 1}}), "described by"),
        (safetensors({"a": 1}), "described by"),
        (safetensors({"a\n": entry(0, 16, [4])}), "printable"),
        (safetensors({"__metadata__": {"a": 1}, "a": entry(0, 16, [4])}), "__metadata__"),
        (
            safetensors(
                b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"I32","shape":[4],"data_offsets":[0,16]}}'
            ),
            "twice",
        ),
        (safetensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
        (safetensors(b'{"a":' + b"9" * 5000 + b"}"), "JSON"),
        (safetensors(b"{}", b"", 1 << 39), "truncated or lies"),
        (safetensors(b"{" + b" " * (17 << 20), b""), "at most"),
        (safetensors(b'{"\xff": 1}'), "JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lying_safetensors_header_is_refused(tmp_path, data, match):
    (tmp_path / "m.safetensors").write_bytes(data)
    refused(tmp_path / "m.safetensors", match, memory=80 * MIB)


# --- archives and indexes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "C:x", "\0", "http://x/y"]
)
def test_an_index_may_name_only_files_in_its_own_folder(tmp_path, name):
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    refused(index, "only plain names")


def test_an_index_and_its_shards_must_agree(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    for weight_map, match in (
        ({"a": "x.safetensors", "b": "x.safetensors"}, "'b' is not in its shard"),
        ({"b": "x.safetensors"}, "'a' is in shard"),
        ({"a": "x.safetensors", "b": "y.safetensors"}, "'a' is in two shards"),
        ({"a": "z.safetensors"}, "no such file"),
        ({}, "no weight_map"),
        ({"a": 1}, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        refused(index, match)
    index.write_text('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}')
    refused(index, "twice")


def test_zip_and_gzip_bombs_are_refused(tmp_path):
    zeros = bytes(80 * MIB)
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (20 * MIB,)})
        member.write(zeros)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", zeros)
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz", compresslevel=6) as tar:
        info = tarfile.TarInfo("model.pth")
        info.size = len(zeros)
        tar.addfile(info, io.BytesIO(zeros))
    (tmp_path / "record.tar.gz").write_bytes(gzip.compress(_long_name(100 * MIB), 6))
    del zeros
    for name in ("bomb.npz", "bomb.pt", "bomb.tar.gz"):
        refused(tmp_path / name, "would grow", memory=150 * MIB)
    refused(tmp_path / "record.tar.gz", "record", memory=64 * MIB)


def _long_name(size: int) -> bytes:
    """A tar whose first record is a file name of ``size`` bytes."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"a" * size


def test_duplicate_overlapping_and_encrypted_members_are_refused(tmp_path):
    torch.save({"a": torch.arange(3.0), "b": torch.arange(3.0)}, tmp_path / "m.pt")
    data = (tmp_path / "m.pt").read_bytes()
    central = data.index(b"PK\x01\x02")
    twice = bytearray(data)
    for start in (0, central):  # the name stands before the bytes and in the directory
        at = data.index(b"/data/1", start)
        twice[at : at + 7] = b"/data/0"
    (tmp_path / "twice.pt").write_bytes(twice)
    refused(tmp_path / "twice.pt", "two members")
    encrypted = bytearray(data)
    encrypted[central + 8] |= 1
    (tmp_path / "encrypted.pt").write_bytes(encrypted)
    refused(tmp_path / "encrypted.pt", "encrypted")
    first, second = (data.index(b"PK\x01\x02" + data[central + 4 : central + 6], at) for at in (central, central + 4))
    overlapping = bytearray(data)
    overlapping[second + 42 : second + 46] = data[first + 42 : first + 46]
    (tmp_path / "overlapping.pt").write_bytes(overlapping)
    refused(tmp_path / "overlapping.pt", "")


def test_links_and_devices_in_a_tar_are_not_followed_and_nothing_is_written(tmp_path):
    (tmp_path / "secret.pth").write_bytes(b"x")
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pth")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        for name, kind in (
            ("link.pth", tarfile.SYMTYPE),
            ("hard.pth", tarfile.LNKTYPE),
            ("pipe.pth", tarfile.FIFOTYPE),
            ("dev.pth", tarfile.CHRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.pth")
            tar.addfile(info)
        tar.add(tmp_path / "m.pth", "../../../../tmp/escaped/m.pth")
    before = set(tmp_path.rglob("*"))
    with harmless():
        assert list(open_archive(tmp_path / "m.tar.gz").tensors) == ["a"]
    assert set(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped").exists()


def test_pipes_devices_missing_and_empty_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, match in (
        ("missing", "no such file"),
        ("empty", "no known"),
        ("text", "no known"),
        ("folder", "no checkpoint"),
    ):
        refused(tmp_path / name, match)
    refused(Path("/dev/zero"), "regular")


@pytest.mark.parametrize("name", ["model.onnx"])
def test_an_onnx_model_may_name_only_files_beside_it(tmp_path, name):
    def part(tag: int, value: bytes) -> bytes:
        return bytes([tag << 3 | 2, len(value)]) + value

    tensor = (
        b"\x08\x04\x10\x01"
        + part(8, b"a.b")
        + part(13, part(1, b"location") + part(2, b"../../etc/passwd"))
        + b"\x70\x01"
    )
    (tmp_path / name).write_bytes(b"\x08\x08" + part(2, b"test-writer") + part(7, part(5, tensor)))
    refused(tmp_path / name, "only plain names")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (1,), }",
        b"[" * 5000,
        b"{'descr': '|O', ",
    ],
)
def test_the_header_of_a_numpy_file_is_matched_and_not_evaluated(tmp_path, header):
    (tmp_path / "m.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8))
    refused(tmp_path / "m.npy", "does not describe")


# --- truncation and mutation ------------------------------------------------------------------------------------------


def test_every_sample_cut_at_every_kind_of_place_is_refused_or_read(tmp_path):
    samples = build_samples(tmp_path / "samples")
    survivors: collections.Counter[str] = collections.Counter()
    for name, opened, file in targets(samples):
        data = file.read_bytes()
        places = (
            {0, 1, 4, 8, 9, 30, 128}
            | {len(data) * i // 12 for i in range(12)}
            | {len(data) - i for i in (1, 2, 4, 5, 22, 23, 48)}
        )
        places = {place for place in places if 0 <= place < len(data)}
        for place in sorted(places):
            file.write_bytes(data[:place])
            with harmless(memory=32 * MIB):
                survivors[name] += attempt(opened) == "read"
        file.write_bytes(data)
        assert attempt(opened) == "read"
    whole = {
        "plain.safetensors",
        "zip.pt",
        "legacy.pt",
        "module.pt",
        "script.pt",
        "stored.npz",
        "packed.npz",
        "one.npy",
        "bert.zip",
    }
    assert {name for name in whole if survivors[name]} == set()


@pytest.mark.parametrize("count", [500, pytest.param(4000, marks=pytest.mark.slow)])
def test_damaged_files_raise_nothing_but_checkpoint_errors(count):
    report = run(count, seed=7)
    assert report.crashes == []
    assert report.outcomes["refused"] > 0.4 * count
    assert report.outcomes["read"] > 0.1 * count
    assert report.peak_growth[0] < 64 << 10


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    start=st.sampled_from(
        [b"", b"\x80\x02", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"\x1f\x8b\x08", bytes(16), b"\x08\x07\x3a"]
    ),
)
def test_arbitrary_bytes_are_refused_or_read(tmp_path, data, start):
    (tmp_path / "m.bin").write_bytes(start + data + b".")
    with harmless():
        attempt(tmp_path / "m.bin")


def test_a_bool_that_is_neither_zero_nor_one_is_read_as_true(tmp_path):
    (tmp_path / "m.safetensors").write_bytes(safetensors({"a": entry(0, 3, [3], "BOOL")}, b"\x00\x01\x7f"))
    assert open_archive(tmp_path / "m.safetensors").read("a").tolist() == [False, True, True]
    assert open_archive(tmp_path / "m.safetensors").read("a").view(torch.uint8).tolist() == [0, 1, 1]


def test_two_tensors_of_one_name_are_refused(tmp_path):
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "two tensors called 'a.b'")
    torch.save({"a\x1b[2J": torch.ones(1)}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "printable")


def test_samples_hold_what_the_fuzzer_thinks(tmp_path):
    assert len(build_samples(tmp_path)) >= 20
    assert len(parameters()) == 14
