"""The safetensors writer: the library reads it, its bytes repeat, and no half file ever stands
under a final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from tests.layouts import equal
from zoo.errors import CheckpointError, InputError
from zoo.formats import writer as module
from zoo.formats.archive import Info
from zoo.formats.writer import SafetensorsWriter, blocks, content_hash, tensor_hash, write_tensors

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
OTHERS = [
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
    torch.uint64,
]


def some(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "b.weight": torch.randn(3, 5, generator=generator),
        "a.ids": torch.arange(7),
        "a.half": torch.randn(4, generator=generator).half(),
        "c.scalar": torch.tensor(2.5),
        "d.empty": torch.zeros(0, 4),
        "e.mask": torch.tensor([True, False, True]),
        "Ω": torch.randn(2, 2, generator=generator).bfloat16(),
    }


@pytest.mark.parametrize("dtype", FLOATS + OTHERS)
def test_the_library_reads_every_dtype(tmp_path, dtype):
    tensor = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(dtype)
    write_tensors(tmp_path / "x.safetensors", {"x": tensor})
    found = load_file(tmp_path / "x.safetensors")["x"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))


def test_the_library_reads_tensors_and_metadata_back(tmp_path):
    written = write_tensors(tmp_path / "x.safetensors", some(), {"format": "pt", "zoo.source": 'ünïcode "quoted"'})
    assert equal(load_file(tmp_path / "x.safetensors"), some())
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "zoo.source": 'ünïcode "quoted"'}
    assert written.files == (tmp_path / "x.safetensors",)
    assert written.bytes == sum(tensor.numel() * tensor.itemsize for tensor in some().values())


def test_every_tensor_starts_at_a_multiple_of_its_item_size(tmp_path):
    write_tensors(tmp_path / "x.safetensors", some(), {"k": "v"})
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % some()[name].itemsize == 0


@given(order=st.permutations(sorted(some())), keys=st.permutations(["x", "y", "z"]))
@settings(max_examples=20, deadline=None)
def test_the_bytes_are_the_same_whatever_the_order_of_tensors_and_metadata(tmp_path_factory, order, keys):
    folder, tensors = tmp_path_factory.mktemp("order"), some()
    infos = {name: Info(tuple(tensors[name].shape), module.DTYPE_NAMES[tensors[name].dtype]) for name in order}
    metadata = {key: key * 2 for key in keys}
    with SafetensorsWriter(folder / "one.safetensors", infos, metadata) as writer:
        for name in order:
            writer.write(name, tensors[name])
        writer.finish(metadata)
    write_tensors(folder / "two.safetensors", tensors, {"x": "xx", "y": "yy", "z": "zz"})
    assert (folder / "one.safetensors").read_bytes() == (folder / "two.safetensors").read_bytes()


@given(
    shape=st.lists(st.integers(0, 6), min_size=0, max_size=4),
    size=st.integers(4, 64),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_blocks_are_the_elements_in_row_order_whatever_the_strides(shape, size, data):
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    view = tensor.permute(data.draw(st.permutations(range(len(shape)))))
    if view.dim() and view.shape[0] and data.draw(st.booleans()):
        view = view[data.draw(st.integers(0, view.shape[0])) :]
    pieces = list(blocks(view, size))
    assert all(piece.is_contiguous() and piece.numel() * 4 <= max(size, 4) for piece in pieces)
    assert torch.equal(torch.cat([torch.zeros(0), *pieces]), view.reshape(-1))
    assert tensor_hash(view) == hashlib.sha256(view.contiguous().numpy().tobytes()).hexdigest()


def test_one_element_out_of_a_strided_tensor_is_hashed_like_any_other():
    assert tensor_hash(torch.arange(6.0).reshape(2, 3)[1:, 2:].T) == tensor_hash(torch.tensor([[5.0]]))


def test_floats_are_cast_to_what_was_announced(tmp_path):
    with SafetensorsWriter(tmp_path / "x.safetensors", {"w": Info((2,), "F16")}) as writer:
        writer.write("w", torch.tensor([1.0, 2.0]))
        writer.finish()
    assert load_file(tmp_path / "x.safetensors")["w"].dtype == torch.float16


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_tensor_that_is_not_finite_is_refused_and_nothing_is_left(tmp_path, bad, dtype):
    if dtype == torch.float8_e4m3fn and bad != bad.__class__("nan") and bad in (float("inf"), float("-inf")):
        bad = float("nan")  # this format has no infinity
    tensor = torch.ones(9)
    tensor[7] = bad
    with pytest.raises(CheckpointError, match="'w' is not finite"):
        write_tensors(tmp_path / "x.safetensors", {"w": tensor.to(dtype)})
    assert list(tmp_path.iterdir()) == []


def test_a_value_too_large_for_the_dtype_asked_for_is_refused(tmp_path):
    with (
        pytest.raises(CheckpointError, match="in F16: the value is too large"),
        SafetensorsWriter(tmp_path / "x.safetensors", {"w": Info((1,), "F16")}) as writer,
    ):
        writer.write("w", torch.tensor([1e6]))


MISUSES = {
    "an unknown name": (lambda w: w.write("v", torch.zeros(2)), "'v' was not announced"),
    "another shape": (lambda w: w.write("w", torch.zeros(3)), "shape (3,), announced was (2,)"),
    "an integer for a float": (lambda w: w.write("w", torch.zeros(2, dtype=torch.int64)), "only floats are cast"),
    "the same twice": (lambda w: (w.write("w", torch.zeros(2)), w.write("w", torch.zeros(2))), "already"),
    "too few": (lambda w: w.finish(), "lacks 'w'"),
    "longer metadata than announced": (
        lambda w: (w.write("w", torch.zeros(2)), w.finish({"k": "v" * 99})),
        "longer than announced",
    ),
}


@pytest.mark.parametrize("what", MISUSES)
def test_a_misuse_is_an_error_and_leaves_nothing(tmp_path, what):
    act, expected = MISUSES[what]
    with (
        pytest.raises(CheckpointError) as error,
        SafetensorsWriter(tmp_path / "x.safetensors", {"w": Info((2,))}, {"k": "v"}) as writer,
    ):
        act(writer)
    assert expected in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_room_for_metadata_that_is_known_last_is_reserved(tmp_path):
    with SafetensorsWriter(
        tmp_path / "x.safetensors", {"w": Info((2,))}, {"sha": "0" * 64, "rung": "contract"}
    ) as writer:
        writer.write("w", torch.ones(2))
        writer.finish({"sha": "a" * 64, "rung": "ties"})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"sha": "a" * 64, "rung": "ties"}


def test_leaving_without_finish_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"w": torch.ones(2)})
    old = path.read_bytes()
    with SafetensorsWriter(path, {"w": Info((2,))}) as writer:
        writer.write("w", torch.zeros(2))
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


# --- shards -----------------------------------------------------------------------------------------------------------


def sharded(folder):
    """The tensors of a sharded output, read by its index, and the index."""
    index = json.loads((folder / "x.safetensors.index.json").read_text())
    tensors = {}
    for file in set(index["weight_map"].values()):
        found = load_file(folder / file)
        assert all(index["weight_map"][name] == file for name in found)
        tensors |= found
    return tensors, index


@pytest.mark.parametrize("size", [1, 40, 100])
def test_shards_hold_at_most_their_size_and_the_index_says_where(tmp_path, size):
    written = write_tensors(tmp_path / "x.safetensors", some(), {"format": "pt"}, shard_size=size)
    tensors, index = sharded(tmp_path)
    assert equal(tensors, some())
    assert index["metadata"]["total_size"] == written.bytes
    assert written.files[0].name == "x.safetensors.index.json"
    for file in written.files[1:]:
        held = load_file(file)
        assert len(held) == 1 or sum(t.numel() * t.itemsize for t in held.values()) <= size
    assert not (tmp_path / "x.safetensors").exists()


def test_a_shard_size_that_everything_fits_makes_one_file(tmp_path):
    assert write_tensors(tmp_path / "x.safetensors", some(), shard_size=10**6).files == (tmp_path / "x.safetensors",)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_sharding_repeats_byte_for_byte_and_the_content_hash_ignores_it(tmp_path):
    hashes = set()
    for name, size in (("one", 40), ("two", 40), ("three", None)):
        hashes.add(write_tensors(tmp_path / name / "x.safetensors", some(), shard_size=size).content_sha256)
    assert len(hashes) == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_writing_again_in_another_form_removes_what_the_old_one_left(tmp_path):
    path = tmp_path / "x.safetensors"
    bystander = tmp_path / "x-else.safetensors"
    bystander.write_text("not ours")
    for seed, size in enumerate([None, 40, 80, 40, None]):
        written = write_tensors(path, some(seed), shard_size=size)
        assert set(tmp_path.iterdir()) == {*written.files, bystander}
        assert equal(sharded(tmp_path)[0] if size else load_file(path), some(seed))


def test_a_shard_size_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="shard_size=0"):
        write_tensors(tmp_path / "x.safetensors", some(), shard_size=0)


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_clear_error_and_nothing_is_left(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="can't be written"):
            write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_found_out_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(CheckpointError, match="4,000 bytes are needed, 10 are free"):
        write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(1000)})


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        write_tensors(tmp_path / "file" / "x.safetensors", some())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    leftover = tmp_path / ".x.safetensors.abc.incomplete"
    leftover.write_bytes(b"half")
    with SafetensorsWriter(tmp_path / "x.safetensors", {"w": Info((2,))}) as living:
        assert not leftover.exists()
        write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(2)})
        living.write("w", torch.ones(2))
        living.finish()
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], torch.ones(2))


def write_forever(path, size):
    for seed in range(10**9):
        tensors = {f"w{i}": torch.full((1000,), float(seed % 1000)) for i in range(6)}
        write_tensors(path, tensors, {"seed": str(seed)}, shard_size=size, durable=False)


@pytest.mark.parametrize("size", [None, 9000])
def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new_state(tmp_path, size):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {f"w{i}": torch.zeros(1000) for i in range(6)}, shard_size=size)
    for attempt in range(int(os.environ.get("ZOO_KILLS", "8"))):
        child = os.fork()
        if child == 0:
            try:
                write_forever(path, size)
            finally:
                os._exit(1)
        time.sleep(0.02 + (attempt * 0.0137) % 0.05)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        tensors = sharded(tmp_path)[0] if size else load_file(path)
        assert len(tensors) == 6
        assert len({tensor[0].item() for tensor in tensors.values()}) == 1
        assert all((tensor == tensor[0]).all() for tensor in tensors.values())


def test_the_content_hash_sees_names_shapes_dtypes_and_bytes():
    def hashed(**tensors):
        infos = {name: Info(tuple(t.shape), module.DTYPE_NAMES[t.dtype]) for name, t in tensors.items()}
        return content_hash(infos, {name: tensor_hash(t) for name, t in tensors.items()})

    zero = torch.zeros(4)
    variants = [
        {"a": zero},
        {"b": zero},
        {"a": zero.reshape(2, 2)},
        {"a": zero.int()},
        {"a": zero + 1},
        {"a": zero, "b": zero},
    ]
    assert len({hashed(**variant) for variant in variants}) == len(variants)
    assert hashed(a=zero, b=zero + 1) == hashed(b=zero + 1, a=zero)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_rows_that_come_in_pieces_make_the_bytes_of_the_whole(tmp_path_factory, counts):
    folder = tmp_path_factory.mktemp("rows")
    whole = {"x": torch.arange(sum(counts) * 2.0).view(-1, 2), "y": torch.arange(sum(counts))}
    written = write_tensors(folder / "whole.safetensors", whole)
    infos = {"x": Info((sum(counts), 2), "F32"), "y": Info((sum(counts),), "I64")}
    with SafetensorsWriter(folder / "pieces.safetensors", infos) as writer:
        for x, y in zip(whole["x"].split(counts), whole["y"].split(counts), strict=True):
            writer.append("x", x)
            writer.append("y", y)
        assert writer.finish().content_sha256 == written.content_sha256
    assert (folder / "pieces.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()


def test_rows_are_held_against_what_was_announced(tmp_path):
    with SafetensorsWriter(tmp_path / "x.safetensors", {"x": Info((3, 2), "F32"), "y": Info((1,), "F32")}) as writer:
        writer.append("x", torch.ones(2, 2))
        writer.write("y", torch.ones(1))
        for name, rows, said in (
            ("x", torch.ones(2, 2), r"behind 2, announced was \(3, 2\)"),
            ("x", torch.ones(1, 3), "announced was"),
            ("y", torch.ones(1), "already"),
            ("z", torch.ones(1), "not announced"),
        ):
            with pytest.raises(CheckpointError, match=said):
                writer.append(name, rows)
        with pytest.raises(CheckpointError, match="already"):
            writer.write("x", torch.ones(3, 2))
        with pytest.raises(CheckpointError, match="lacks 'x'"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []
