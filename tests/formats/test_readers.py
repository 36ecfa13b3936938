"""Readers against files that the real libraries wrote: every name, shape, dtype and byte must come
out as it went in.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import pickle
import shutil
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

from benchmarks.fuzz_readers import build_samples, checkpoint, lod_tensor, onnx_model, parameters
from zoo.errors import CheckpointError, UnknownNameError
from zoo.formats.archive import Archive
from zoo.formats.opening import open_archive

GOLDEN = Path(__file__).parents[1] / "golden" / "readers"
ZIP_OR_LEGACY = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value: object, path: Path, zipped: bool) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def same(read: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal in dtype, shape and every byte, NaN included."""
    canonical = torch.empty(read.shape, device="meta").stride()  # one-element dimensions have the usual strides too
    return (
        read.stride() == canonical
        and (read.dtype, read.shape) == (expected.dtype, expected.shape)
        and bytes_of(read) == bytes_of(expected)
    )


def bytes_of(tensor: torch.Tensor) -> bytes:
    if tensor.numel() == 0:
        return b""
    return tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy().tobytes()


def holds(archive: Archive, expected: dict[str, torch.Tensor]) -> bool:
    assert list(archive.tensors) == list(expected)
    for name, tensor in expected.items():
        assert archive.tensors[name].shape == tuple(tensor.shape)
        assert same(archive.read(name), tensor), name
    return True


# --- safetensors ------------------------------------------------------------------------------------------------------


def test_safetensors_come_out_as_the_library_wrote_them(tmp_path):
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in parameters().items()}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    archive = open_archive(tmp_path / "m.safetensors")
    assert archive.format == "safetensors"
    assert archive.metadata == {"format": "pt"}
    assert set(archive.tensors) == set(tensors)
    assert all(same(archive.read(name), tensor) for name, tensor in tensors.items())
    assert archive.sha256() == hashlib.sha256((tmp_path / "m.safetensors").read_bytes()).hexdigest()


def test_a_tensor_that_was_read_outlives_its_archive_and_never_writes_to_the_file(tmp_path):
    save_file({"a": torch.ones(4)}, tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    with open_archive(tmp_path / "m.safetensors") as archive:
        tensor = archive.read("a")
    tensor += 1
    assert tensor.tolist() == [2.0] * 4
    assert (tmp_path / "m.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="closed"):
        archive.read("a")


def test_a_misspelt_tensor_name_is_answered_with_the_nearest(tmp_path):
    save_file({"encoder.weight": torch.ones(1)}, tmp_path / "m.safetensors")
    with pytest.raises(UnknownNameError, match=r"encoder\.weight"):
        open_archive(tmp_path / "m.safetensors").read("encoder.wieght")


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_shards_are_read_by_their_index(tmp_path, kind):
    samples = build_samples(tmp_path)
    archive = open_archive(samples["sharded" if kind == "safetensors" else "sharded torch"])
    assert set(archive.tensors) == set(parameters())
    assert all(same(archive.read(name), tensor) for name, tensor in parameters().items())
    assert archive.format == ("safetensors" if kind == "safetensors" else "torch-zip")
    assert len(archive.files) == 3


# --- torch files ------------------------------------------------------------------------------------------------------


@ZIP_OR_LEGACY
def test_torch_files_come_out_as_torch_wrote_them(tmp_path, zipped):
    archive = open_archive(save(dict(parameters()), tmp_path / "m.pt", zipped))
    assert holds(archive, parameters())
    assert archive.refused == ()
    assert archive.group == ""


@ZIP_OR_LEGACY
def test_tensors_that_are_tied_are_told_as_aliases_and_other_views_are_not(tmp_path, zipped):
    archive = open_archive(save(dict(parameters()), tmp_path / "m.pt", zipped))
    assert archive.aliases() == [{"encoder.weight", "encoder.tied"}]


@ZIP_OR_LEGACY
def test_the_model_is_found_beside_optimizer_and_namespace(tmp_path, zipped):
    path = save(checkpoint(), tmp_path / "m.pt", zipped)
    archive = open_archive(path)
    assert holds(archive, parameters())
    assert archive.format == "fairseq"
    assert (archive.group, archive.groups) == ("model", ("model", "optimizer"))
    assert archive.metadata["args"] == {"layers": 2, "names": ["a", "b"]}
    assert archive.metadata["extra_state"] == {"epoch": 3, "note": "é"}
    assert archive.metadata["optimizer"]["param_groups"][0]["betas"] == [0.9, 0.999]
    assert archive.refused == ("argparse.Namespace at args",)
    assert list(open_archive(path, group="optimizer").tensors) == ["state.0.exp_avg"]
    assert "optimizer.state.0.exp_avg" in open_archive(path, group="").tensors
    with pytest.raises(UnknownNameError, match="optimizer"):
        open_archive(path, group="optimiser")


@ZIP_OR_LEGACY
def test_a_whole_module_gives_the_names_of_its_state_dict(tmp_path, zipped):
    module = torch.nn.TransformerEncoderLayer(4, 2, 8)
    archive = open_archive(save(module, tmp_path / "m.pt", zipped))
    assert holds(archive, dict(module.state_dict()))
    assert any("TransformerEncoderLayer" in line for line in archive.refused)


def test_torchscript_gives_parameters_and_constants(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)
            self.register_buffer("scale", torch.tensor([2.0, 3.0]))

        def forward(self, x):
            return self.linear(x) * self.scale + torch.tensor([5.0, 7.0])

    module = Scaled()
    torch.jit.trace(module, torch.ones(1, 3)).save(str(tmp_path / "m.pt"))
    archive = open_archive(tmp_path / "m.pt")
    assert archive.format == "torchscript"
    assert all(same(archive.read(name), tensor) for name, tensor in module.state_dict().items())
    constants = [archive.read(name).tolist() for name in archive.tensors if name.startswith("constants.")]
    assert constants == [[5.0, 7.0]]


def test_tensors_saved_on_other_devices_are_read_on_the_cpu(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    for device in (b"cuda:0", b"mps:0\0"[:5]):
        data = (
            (tmp_path / "m.pt")
            .read_bytes()
            .replace(b"X\x03\x00\x00\x00cpu", b"X" + len(device).to_bytes(4, "little") + device)
        )
        (tmp_path / "other.pt").write_bytes(data)
        assert device in data
        assert open_archive(tmp_path / "other.pt").read("a").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64, torch.complex128]
)
@ZIP_OR_LEGACY
def test_newer_dtypes_on_untyped_storages_come_out(tmp_path, dtype, zipped):
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    read = open_archive(save({"a": tensor}, tmp_path / "m.pt", zipped)).read("a")
    assert read.dtype == dtype
    assert bytes_of(read) == bytes_of(tensor)


def test_quantized_tensors_give_their_integers_and_say_their_scale(tmp_path):
    torch.save({"a": torch.quantize_per_tensor(torch.tensor([0.5, -1.0]), 0.5, 3, torch.qint8)}, tmp_path / "m.pt")
    archive = open_archive(tmp_path / "m.pt")
    assert archive.read("a").tolist() == [4, 1]
    assert archive.metadata["quantization"]["a"]["scale"] == 0.5
    assert archive.metadata["quantization"]["a"]["zero_point"] == 3


@st.composite
def layouts(draw):
    """A random view of a random storage: any shape, transposed, strided, offset, expanded."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]))
    tensor = torch.arange(int(np.prod([size + 2 for size in shape]))).reshape([size + 2 for size in shape]).to(dtype)
    for axis, size in enumerate(shape):
        start, step = draw(st.integers(0, 2)), draw(st.integers(1, 2))
        tensor = tensor.narrow(axis, start, size)[
            tuple(slice(None, None, step) if i == axis else slice(None) for i in range(len(shape)))
        ]
    tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
    return tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape) if draw(st.booleans()) else tensor


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.lists(layouts(), min_size=1, max_size=4), zipped=st.booleans())
def test_any_view_of_any_storage_is_read_right(tmp_path, tensors, zipped):
    expected = {f"t{i}": tensor for i, tensor in enumerate(tensors)}
    assert holds(open_archive(save(expected, tmp_path / "m.pt", zipped)), expected)


def test_xlm_files_give_parameters_and_dictionaries(tmp_path):
    words = {i: f"w{i}" for i in range(50)}
    value = {
        "model": {"module.embeddings.weight": torch.ones(2, 2)},
        "params": {"emb_dim": 2, "lang2id": {"en": 0}},
        "dico_id2word": words,
        "dico_word2id": {word: i for i, word in words.items()},
    }
    torch.save(value, tmp_path / "mlm.pth", _use_new_zipfile_serialization=False)
    archive = open_archive(tmp_path / "mlm.pth")
    assert list(archive.tensors) == ["module.embeddings.weight"]
    assert archive.metadata["params"] == value["params"]
    assert archive.metadata["dico_id2word"] == words
    assert archive.metadata["dico_word2id"] == value["dico_word2id"]


# --- TensorFlow -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert_model.ckpt", "bert_model.ckpt.index"])
def test_a_sharded_checkpoint_that_tensorflow_wrote_comes_out_with_partitioned_variables_joined(name):
    archive = open_archive(GOLDEN / "tensorflow" / name)
    expected = np.load(GOLDEN / "tensorflow" / "expected.npz")
    assert archive.format == "tensorflow"
    assert set(archive.tensors) == {key.replace("|", "/") for key in expected.files}
    for key in expected.files:
        tensor = archive.read(key.replace("|", "/"))
        assert np.array_equal(
            tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy(), expected[key]
        ), key
    assert archive.refused == ("a tensor of strings at words",)
    assert len(archive.files) == 4


def test_a_folder_and_a_zip_of_a_tensorflow_checkpoint_are_opened(tmp_path):
    samples = build_samples(tmp_path)
    whole = set(open_archive(GOLDEN / "tensorflow" / "bert_model.ckpt").tensors)
    assert set(open_archive(samples["bert.zip"]).tensors) == whole
    assert open_archive(samples["bert.zip"]).metadata == {"bert_config.json": "{}"}
    (samples["tensorflow"].parent / "expected.npz").unlink()
    assert set(open_archive(samples["tensorflow"].parent).tensors) == whole


def test_a_missing_shard_is_named(tmp_path):
    samples = build_samples(tmp_path)
    (samples["tensorflow"].parent / "bert_model.ckpt.data-00001-of-00003").unlink()
    with pytest.raises(CheckpointError, match="data-00001-of-00003"):
        open_archive(samples["tensorflow"])


# --- numpy, paddle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_numpy_archives_come_out_in_any_byte_and_memory_order(tmp_path, write):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {
        "a": matrix,
        "fortran": np.asfortranarray(matrix),
        "big": matrix.astype(">f8"),
        "flag": np.array(True),
        "none": np.zeros((0, 2), np.int16),
    }
    arrays["column"] = np.asfortranarray(matrix[:, :1])
    write(tmp_path / "m.npz", objects=np.array([{}], dtype=object), text=np.array(["x"]), **arrays)
    archive = open_archive(tmp_path / "m.npz")
    assert list(archive.tensors) == list(arrays)
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="), order="C")
        assert same(archive.read(name), torch.from_numpy(native)), name
    assert len(archive.refused) == 2


def test_a_single_array_file_is_read(tmp_path):
    np.save(tmp_path / "m.npy", np.arange(3, dtype=np.int8))
    assert open_archive(tmp_path / "m.npy").read("array").tolist() == [0, 1, 2]


@pytest.mark.parametrize("file", ["layer.pdparams", "layer2.pdparams"])
def test_files_that_paddle_wrote_come_out(file):
    archive = open_archive(GOLDEN / "paddle" / file)
    expected = np.load(GOLDEN / "paddle" / "expected.npz")
    assert archive.format == "paddle"
    assert list(archive.tensors) == expected.files
    assert all(np.array_equal(archive.read(name).numpy(), expected[name]) for name in expected.files)
    assert archive.metadata["StructuredToParameterName@@"]["linear.weight"] == "linear_0.w_0"


def test_a_folder_with_one_file_per_parameter_that_paddle_wrote_comes_out():
    archive = open_archive(GOLDEN / "paddle" / "params")
    expected = np.load(GOLDEN / "paddle" / "expected_params.npz")
    assert set(archive.tensors) == set(expected.files)
    assert all(np.array_equal(archive.read(name).numpy(), expected[name]) for name in expected.files)


@pytest.mark.parametrize("protocol", [2, 4])
def test_paddle_pairs_large_arrays_and_cut_parameters_come_out(tmp_path, protocol):
    large = np.arange(40_000, dtype=np.float32).reshape(200, 200)
    value = {
        "large": ("fc_0.w_0", large),
        "piece@@.0": np.arange(4.0),
        "piece@@.1": np.arange(2.0),
        "UnpackBigParamInfor@@": {"piece": {"OriginShape": (2, 3), "slices": ["piece@@.0", "piece@@.1"]}},
    }
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps(value, protocol))
    archive = open_archive(tmp_path / "m.pdparams")
    assert np.array_equal(archive.read("large").numpy(), large)
    assert archive.read("piece").tolist() == [[0.0, 1.0, 2.0], [3.0, 0.0, 1.0]]
    assert set(archive.tensors) == {"large", "piece"}


def test_the_eval_by_which_paddle_pickles_a_tensor_is_read_and_no_other(tmp_path):
    class Reduced:
        def __init__(self, *how):
            self.how = how

        def __reduce__(self):
            return eval, self.how

    value = {
        "a": Reduced("data", {"data": np.ones(2)}),
        "b": Reduced("data.x", {"data": np.ones(2)}),
        "c": Reduced("1 + 1"),
    }
    (tmp_path / "m.pdparams").write_bytes(pickle.dumps(value, 4))
    archive = open_archive(tmp_path / "m.pdparams")
    assert archive.read("a").tolist() == [1.0, 1.0]
    assert archive.refused == ("builtins.eval (REDUCE) at b and 1 more",)


# --- folders and archives ---------------------------------------------------------------------------------------------


def test_the_ranks_of_a_megatron_checkpoint_stand_side_by_side(tmp_path):
    archive = open_archive(build_samples(tmp_path)["megatron"])
    assert archive.format == "megatron"
    assert archive.metadata == {"iteration": 7}
    for rank in range(2):
        for name, tensor in parameters(rank).items():
            assert same(archive.read(f"mp_rank_{rank:02d}.{name}"), tensor)
    assert {"mp_rank_00.encoder.weight", "mp_rank_00.encoder.tied"} in archive.aliases()
    shutil.move(
        tmp_path / "megatron" / "mp_rank_01_model_states.pt", tmp_path / "megatron" / "mp_rank_02_model_states.pt"
    )
    with pytest.raises(CheckpointError, match="rank is missing"):
        open_archive(tmp_path / "megatron")


@pytest.mark.parametrize("name", ["mmf.tar", "mmf.tar.gz"])
def test_mmf_archives_are_read_without_unpacking(tmp_path, name):
    samples = build_samples(tmp_path)
    before = set(tmp_path.rglob("*"))
    archive = open_archive(samples[name])
    assert holds(archive, parameters())
    assert "visual_bert" in archive.metadata["config.yaml"]
    assert archive.metadata["args"] == {"layers": 2, "names": ["a", "b"]}
    assert set(tmp_path.rglob("*")) == before


def test_a_folder_with_two_checkpoints_asks_which_one_and_ignores_optimizer_files(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "checkpoint_vh.pt")
    torch.save({}, tmp_path / "training_args.bin")
    (tmp_path / "spiece.model").write_bytes(b"x")
    assert list(open_archive(tmp_path).tensors) == ["a"]
    torch.save({"b": torch.ones(1)}, tmp_path / "checkpoint_vl.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint_vh\.pt, checkpoint_vl\.pt"):
        open_archive(tmp_path)
    save_file({"c": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(open_archive(tmp_path).tensors) == ["c"]


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_onnx_initialisers_get_the_names_and_layout_of_torch(tmp_path, int8):
    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((3, 2)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
    (tmp_path / "m.onnx").write_bytes(onnx_model(int8=int8))
    archive = open_archive(tmp_path / "m.onnx")
    assert set(archive.tensors) == {"encoder.dense.weight", "encoder.dense.bias"}
    assert archive.read("encoder.dense.bias").tolist() == bias.tolist()
    step = np.abs(weight).max(0) / 127 if int8 else np.zeros(2)
    assert (np.abs(archive.read("encoder.dense.weight").numpy() - weight.T) <= step[:, None] * 0.501).all()
    assert archive.metadata["onnx"]["constants"] == ["onnx::shape"]
    assert archive.metadata["onnx"]["dequantized"] == (["encoder.dense.weight"] if int8 else [])


def test_onnx_agrees_with_the_onnx_package(tmp_path):
    onnx = pytest.importorskip("onnx")
    values = {
        "a.float": np.ones(2, np.float32),
        "a.half": np.ones(3, np.float16),
        "a.long": np.arange(3),
        "a.int8": np.array([-1, 2], np.int8),
    }
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in values.items()]
    tensors += [
        onnx.helper.make_tensor(f"{t.name}.list", t.data_type, t.dims, values[t.name].tolist()) for t in tensors
    ]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    archive = open_archive(tmp_path / "m.onnx")
    for tensor in tensors:
        assert np.array_equal(archive.read(tensor.name).numpy(), onnx.numpy_helper.to_array(tensor)), tensor.name


# --- laziness ---------------------------------------------------------------------------------------------------------


def anonymous_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) << 10


class Storage:
    """Stands for a storage of the older torch format."""

    def __init__(self, key: str, count: int):
        self.identity = ("storage", torch.FloatStorage, key, "cpu", count, None)


class Tensor:
    """Pickles as torch pickles a vector."""

    def __init__(self, key: str, count: int):
        self.key, self.count = key, count

    def __reduce__(self):
        storage = Storage(self.key, self.count)
        return torch._utils._rebuild_tensor_v2, (storage, 0, (self.count,), (1,), False, collections.OrderedDict())


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identity if isinstance(value, Storage) else None


def five_gigabytes(path: Path, kind: str) -> Path:
    """A sparse file: 40 tensors of 128 MiB, of which only the headers take room on the disk."""
    size = 1 << 25
    with path.open("wb") as file:
        if kind == "safetensors":
            header = {
                f"t{i}": {"dtype": "F32", "shape": [size], "data_offsets": [i * size * 4, (i + 1) * size * 4]}
                for i in range(40)
            }
            raw = json.dumps(header).encode()
            raw += b" " * (-len(raw) % 8)
            file.write(len(raw).to_bytes(8, "little") + raw)
            file.truncate(8 + len(raw) + 40 * size * 4)
            return path
        for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(part, file, 2)
        Pickler(file, 2).dump({f"t{i}": Tensor(str(i), size) for i in range(40)})
        pickle.dump([str(i) for i in range(40)], file, 2)
        for _ in range(40):
            file.write(size.to_bytes(8, "little"))
            file.seek(size * 4, 1)
        file.truncate()
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's count of anonymous memory")
@pytest.mark.parametrize("kind", ["safetensors", "legacy"])
def test_a_file_of_five_gigabytes_opens_at_once_in_little_memory(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("zoo.formats.opening.stored_bytes", lambda path: path.stat().st_size)  # as if it had no holes
    path = five_gigabytes(tmp_path / "m.bin", kind)
    before, start = anonymous_memory(), time.perf_counter()
    with open_archive(path) as archive:
        took = time.perf_counter() - start
        assert sum(info.nbytes for info in archive.tensors.values()) == 40 << 27
        assert anonymous_memory() - before < 100 << 20
        assert took < 1
        assert archive.read("t3")[-1] == 0
        assert anonymous_memory() - before < 300 << 20  # an unaligned tensor is copied, one of 128 MiB


def test_a_checkpoint_written_again_by_another_zip_tool_is_still_read(tmp_path):
    torch.save(dict(parameters()), tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as source,
        zipfile.ZipFile(tmp_path / "again.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    assert holds(open_archive(tmp_path / "again.pt"), parameters())


def test_other_files_beside_the_model_in_a_tar_are_left_alone(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "weights.th")
    (tmp_path / "vocab.txt").write_text("a")
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "weights.th", "weights.th")
        tar.add(tmp_path / "vocab.txt", "vocabulary/tokens.txt")
    archive = open_archive(tmp_path / "m.tar.gz")
    assert list(archive.tensors) == ["w"]
    assert archive.metadata == {}


def test_a_namespace_of_settings_alone_is_metadata_without_tensors(tmp_path):
    torch.save(argparse.Namespace(lr=0.5), tmp_path / "training_args.bin")
    archive = open_archive(tmp_path / "training_args.bin")
    assert dict(archive.tensors) == {}
    assert archive.metadata == {"lr": 0.5}


def test_levels_of_detail_of_a_paddle_parameter_are_skipped(tmp_path):
    plain = lod_tensor(np.ones(2, np.float32))
    (tmp_path / "a").write_bytes(plain)
    (tmp_path / "b").write_bytes(plain)
    assert open_archive(tmp_path).read("b").tolist() == [1.0, 1.0]
