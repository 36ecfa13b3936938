"""Files that ask for more memory or work than they are worth, that lead outside, or whose bytes are
not those that were written.
"""

import io
import os
import pickle
import random
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import zoo
from benchmarks import bombs, fuzz_readers
from zoo.data.regions.files import read_regions
from zoo.errors import CheckpointError
from zoo.formats import lmdb_files
from zoo.formats.crc32c import crc32c
from zoo.formats.disk import open_regular
from zoo.formats.hdf5_files import open_hdf5
from zoo.formats.opening import open_archive

SLOW = 8.0  # seconds, on a busy machine; each took minutes


@pytest.mark.parametrize("name", [name for name, bomb in bombs.BOMBS.items() if bomb.suite])
def test_a_small_bomb_is_answered_at_once(tmp_path, name):
    for package in ("h5py", "lmdb"):
        if package in name:
            pytest.importorskip(package)
    bomb = bombs.BOMBS[name]
    path = bomb.make(tmp_path, bomb.small)
    started = time.perf_counter()
    refused = None
    try:
        bombs.read(bomb.read, path)
    except zoo.ZooError as error:
        refused = str(error)
    assert refused or bomb.honest
    assert time.perf_counter() - started < SLOW


# --- checksums


def test_the_castagnoli_checksum_is_that_of_its_definition():
    def by_bits(data):
        state = 0xFFFFFFFF
        for byte in data:
            state ^= byte
            for _ in range(8):
                state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
        return state ^ 0xFFFFFFFF

    assert crc32c(b"123456789") == 0xE3069283  # as RFC 3720 has it
    rng = random.Random(0)
    for size in (0, 1, 3, 4, 5, 255, 256, 257, 259, 260, 511, 513, 4_000):
        data = rng.randbytes(size)
        assert crc32c(data) == crc32c(memoryview(bytearray(data))) == by_bits(data)


def test_wide_rows_give_the_checksum_of_narrow_ones(monkeypatch):
    data = random.Random(1).randbytes(300_003)
    wide = crc32c(data)
    monkeypatch.setattr("zoo.formats.crc32c.WIDE", 64)
    assert crc32c(data) == wide


def flipped(path: Path, needle: bytes) -> None:
    """Turn one bit of the first byte of ``needle`` in a file."""
    data = bytearray(path.read_bytes())
    at = bytes(data).index(needle)
    data[at] ^= 1
    path.write_bytes(bytes(data))


WEIGHT = torch.arange(40, dtype=torch.float32).reshape(5, 8) + 0.5


def damaged_torch(path):
    torch.save({"w": WEIGHT, "v": torch.ones(3)}, path)
    flipped(path, WEIGHT.numpy().tobytes())


def damaged_npz(path):
    np.savez(path, w=WEIGHT.numpy(), v=np.ones(3))
    flipped(path, WEIGHT.numpy().tobytes())


def damaged_deflated(path):
    torch.save({"w": WEIGHT, "v": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as source:
        members = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
    crc = zlib.crc32(WEIGHT.numpy().tobytes()).to_bytes(4, "little")
    data = path.read_bytes()
    path.write_bytes(data.replace(crc, bytes([crc[0] ^ 1]) + crc[1:]))


@pytest.mark.parametrize("make", [damaged_torch, damaged_npz, damaged_deflated])
def test_a_flipped_bit_under_a_zip_checksum_is_found_when_the_tensor_is_read(tmp_path, make):
    path = tmp_path / ("m.npz" if "npz" in make.__name__ else "m.pt")
    make(path)
    with open_archive(path) as archive:
        assert archive.read("v").tolist() == [1, 1, 1]
        with pytest.raises(CheckpointError, match=r"checksum 0x\w+, stored is 0x\w+: the file is damaged"):
            archive.read("w")


def test_torch_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": WEIGHT}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_archive(tmp_path / "m.pt") as archive:
        assert torch.equal(archive.read("w"), WEIGHT)


def test_tensorflows_checksum_of_a_tensor_is_checked(tmp_path):
    source = Path(__file__).parents[1] / "golden" / "readers" / "tensorflow"
    for file in source.glob("bert_model.ckpt*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with open_archive(tmp_path / "bert_model.ckpt.index") as archive:
        whole = {name: archive.read(name) for name in archive.tensors}
    data = next(tmp_path.glob("*.data-*"))
    stored = data.read_bytes()
    there = [name for name in whole if whole[name].numel() > 8 and whole[name].numpy().tobytes() in stored]
    largest = max(there, key=lambda name: whole[name].numel())
    flipped(data, whole[largest].numpy().tobytes())
    with open_archive(tmp_path / "bert_model.ckpt.index") as archive:
        with pytest.raises(CheckpointError, match=r"has checksum 0x\w+, stored is"):
            archive.read(largest)
        others = [name for name in archive.tensors if name != largest]
        assert all(torch.equal(archive.read(name), whole[name]) for name in others)


# --- files that change while they are used


def test_a_file_that_is_overwritten_or_cut_off_does_not_reach_a_living_model(tmp_path):
    model = zoo.create("bert-base", vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    zoo.save(model, tmp_path / "m")
    loaded = zoo.load(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    os.truncate(file, 0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_mapped_model_shows_its_file(tmp_path):
    model = zoo.create("bert-base", vocab_size=50, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64)
    zoo.save(model, tmp_path / "m")
    mapped, copied = zoo.load(tmp_path / "m", mmap=True), zoo.load(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    size = file.stat().st_size
    with file.open("r+b") as out:  # in place, as nothing of ours writes
        out.seek(size - 32 * 32 * 4)
        out.write(bytes(32 * 32 * 4))
    assert any(not torch.equal(a, b) for a, b in zip(mapped.parameters(), copied.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copied.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["safetensors", "legacy", "zip"])
def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path, kind):
    tensors = {f"t{i}": torch.randn(4_000) for i in range(8)}
    path = tmp_path / "m.bin"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    with open_archive(path) as archive:
        assert all(torch.equal(archive.read(name), tensors[name]) for name in tensors)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="truncated"):
            {name: archive.read(name) for name in tensors}


def test_a_file_that_is_replaced_after_it_was_opened_is_read_as_it_was(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": WEIGHT}, path)
    with open_archive(path) as archive:
        save_file({"w": WEIGHT + 1}, tmp_path / "other.safetensors")
        os.replace(tmp_path / "other.safetensors", path)
        assert torch.equal(archive.read("w"), WEIGHT)
        path.unlink()
        assert torch.equal(archive.read("w"), WEIGHT)


PEAK = """
import resource, sys
import torch, zoo
torch.set_num_threads(1)
zoo.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = zoo.load(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_loading_takes_the_model_and_its_largest_tensor(tmp_path):
    sizes = {"vocab_size": 10_000, "hidden_size": 256, "num_heads": 4, "intermediate_size": 1024}
    model = zoo.create("bert-base", num_layers=6, **sizes)
    zoo.save(model, tmp_path / "m")
    zoo.save(zoo.create("bert-base", num_layers=1, **{**sizes, "vocab_size": 20}), tmp_path / "small")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    bytes_of = [p.numel() * 4 for p in model.parameters()]
    assert int(done.stdout) << 10 < 1.1 * (sum(bytes_of) + max(bytes_of))


# --- reaching outside


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(np.arange(64, dtype="<f4").tobytes())
    return path


def hdf5_external(h5py, path, secret):
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        group.create_dataset("features", (4, 4), "<f4", external=[(str(secret), 0, 64)])


def hdf5_virtual(h5py, path, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["x"] = np.ones((4, 4), "<f4")
    layout = h5py.VirtualLayout((4, 4), "<f4")
    layout[:] = h5py.VirtualSource(secret.with_suffix(".h5"), "x", (4, 4))
    with h5py.File(path, "w") as file:
        file.create_group("a").create_virtual_dataset("features", layout)


def hdf5_link(h5py, path, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["x"] = np.ones((4, 4), "<f4")
    with h5py.File(path, "w") as file:
        file.create_group("a")["features"] = h5py.ExternalLink(secret.with_suffix(".h5").name, "x")


def hdf5_link_of_group(h5py, path, secret):
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file.create_group("x")["features"] = np.ones((4, 4), "<f4")
    with h5py.File(path, "w") as file:
        file["a"] = h5py.ExternalLink(secret.with_suffix(".h5").name, "x")


def hdf5_soft(h5py, path, secret):
    hdf5_link(h5py, path, secret)
    with h5py.File(path, "r+") as file:
        file["a/boxes"] = h5py.SoftLink("/a/features")
        del file["a/features"]


@pytest.mark.parametrize("make", [hdf5_external, hdf5_virtual, hdf5_link, hdf5_link_of_group, hdf5_soft])
def test_an_hdf5_file_leads_nowhere_else(tmp_path, secret, make):
    h5py = pytest.importorskip("h5py")
    make(h5py, tmp_path / "d.h5", secret)
    with pytest.raises(CheckpointError, match=r"in other files|in another file|elsewhere in the file"):
        list(read_regions(tmp_path / "d.h5"))


def test_hdf5_attributes_and_texts_are_bounded(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        made = file.create_group("a")
        made.attrs["image_w"] = 7
        made["names"] = ["x", "yy"]
        file.create_group("b").attrs.create("many", np.ones(1000), dtype="f8")
        file["c"] = h5py.Empty("f4")
        file["d"] = np.zeros(2, [("x", "f4")])
    with open_hdf5(tmp_path / "d.h5") as top:
        assert top["a"].attributes == {"image_w": 7}
        assert list(top["a"]["names"][()]) == [b"x", b"yy"]
        for name in ("c", "d"):
            with pytest.raises(CheckpointError, match="holds"):
                top[name]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "fifo", "a FIFO"), (Path("/dev/null"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(CheckpointError, match=f"is {kind}, not a regular file"):
            open_regular(path)


# --- LMDB


def test_lmdb_is_read_as_its_library_reads_it(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    rng = random.Random(3)
    for count in (0, 1, 7, 600):
        folder = tmp_path / str(count)
        with lmdb.open(str(folder), map_size=1 << 27) as database:
            for _ in range(3):
                with database.begin(write=True) as writing:
                    keys = [rng.randbytes(rng.randrange(1, 120)) for _ in range(count)]
                    for key in keys:
                        writing.put(key, rng.randbytes(rng.choice((0, 1, 300, 1500, 2100, 5000))))
                    for key in rng.sample(keys, count // 3):
                        writing.delete(key)
            with database.begin() as reading:
                expected = list(reading.cursor())
        assert list(lmdb_files.read(folder)) == expected


def test_a_damaged_lmdb_ends_in_an_error_and_never_the_process(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    rng = random.Random(4)
    with lmdb.open(str(tmp_path / "d"), map_size=1 << 24) as database, database.begin(write=True) as writing:
        for number in range(60):
            writing.put(b"%03d" % number, pickle.dumps(rng.randbytes(rng.choice((30, 3000, 6000)))))
    file = tmp_path / "d" / "data.mdb"
    whole = file.read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(3):
            at = rng.randrange(len(data) // 16 * 4) if rng.random() < 0.7 else rng.randrange(len(data))
            data[at] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        file.write_bytes(bytes(data))
        try:
            read = sum(len(value) for _, value in lmdb_files.read(file))
            assert read <= len(whole)
        except CheckpointError:
            refused += 1
    assert refused > 50


# --- damage of every kind


def test_damaged_files_of_any_kind_are_read_or_refused():
    """A few of those that ``python -m benchmarks.fuzz_readers`` makes by the thousand."""
    for package in ("h5py", "lmdb"):
        pytest.importorskip(package)
    report = fuzz_readers.run(100, 5, others=True, only=lambda name: name.startswith(("tokenizer", "regions", "know")))
    assert report.crashes == []
    assert report.deaths == []
    assert report.outcomes["refused"] > 30


# --- honest files within the bounds


def test_many_tensors_of_a_deflated_storage_are_unpacked_once(tmp_path, monkeypatch):
    base, plain = torch.arange(100_000.0), io.BytesIO()
    torch.save({f"t{i}": base[i : i + 2] for i in range(50)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as out:
        for info in source.infolist():
            out.writestr(info.filename, source.read(info))
    calls = []
    real = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda *given: calls.append(given) or real(*given))
    with open_archive(tmp_path / "m.pt") as archive:
        opened = len(calls)
        assert all(archive.read(f"t{i}").tolist() == [i, i + 1] for i in range(50))
    assert len(calls) == opened + 1
