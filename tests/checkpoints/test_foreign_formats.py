"""Formats that other frameworks write, from a file with all of a model's tensors to its outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import zoo
from tests.api.test_create import same, tiny
from zoo.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
IDS = torch.arange(5, 15)[None]


@pytest.fixture
def theirs(tmp_path) -> tuple[Any, Tensors, dict[str, Any]]:
    """A model, its tensors in the layout hf-bert, their config."""
    model = tiny("masked-lm")
    zoo.convert(zoo.save(model, tmp_path / "ours"), tmp_path / "theirs", to="hf-bert")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    return model, load_file(tmp_path / "theirs" / "model.safetensors"), config


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


# --- ONNX with integers behind a Gather

TABLE = "bert.embeddings.word_embeddings.weight"


def quantized(table: np.ndarray[Any, Any], columns: bool) -> tuple[np.ndarray[Any, Any], ...]:
    """uint8 numbers, scale and zero point of a table: one for all of it, or for each column."""
    low, high = (table.min(0), table.max(0)) if columns else (table.min(), table.max())
    scale = ((high - low) / 255).astype(np.float32)
    zero = np.round(-low / scale).astype(np.uint8)
    return np.clip(np.round(table / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def onnx_file(path: Path, tensors: Tensors, behind: str, columns: bool = False) -> np.ndarray[Any, Any]:
    """All tensors as initialisers, the word table in integers. -> the table that the graph computes."""
    onnx = pytest.importorskip("onnx")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    integers, scale, zero = quantized(tensors[TABLE].numpy(), columns)
    if behind == "Mul":
        scale = 2 * scale  # around zero
        integers, zero = np.round(tensors[TABLE].numpy() / scale).astype(np.int8), np.zeros_like(zero, np.int8)
    stored = [array(value.numpy(), name) for name, value in tensors.items() if name != TABLE]
    stored += [array(integers, TABLE + "_quantized")]
    nodes = [helper.make_node("Gather", [TABLE + "_quantized", "input_ids"], ["rows"], axis=0)]
    ends = {"axis": -1} if columns else {}
    if behind == "constants":
        nodes += [helper.make_node("Constant", [], [n], value=array(v)) for n, v in (("s", scale), ("z", zero))]
        nodes += [helper.make_node("DequantizeLinear", ["rows", "s", "z"], ["words"], **ends)]
    elif behind == "Mul":
        stored += [array(scale, "s")]
        nodes += [helper.make_node("Cast", ["rows"], ["floats"], to=1), helper.make_node("Mul", ["floats", "s"], ["w"])]
    elif behind == "nothing":
        nodes += [helper.make_node("Cast", ["rows"], ["words"], to=1)]
    else:
        stored += [array(scale, "s"), array(zero, "z")]
        nodes += [helper.make_node("Unsqueeze", ["rows", "axes"], ["wide"])] if behind == "Unsqueeze" else []
        start = "wide" if behind == "Unsqueeze" else "rows"
        nodes += [helper.make_node("DequantizeLinear", [start, "s", "z"], ["words"], **ends)]
        if behind == "both":  # a tied decoder makes floats of the same integers
            nodes += [helper.make_node("DequantizeLinear", [TABLE + "_quantized", "s", "z"], ["whole"], axis=1)]
    graph = helper.make_graph(nodes, "g", [], [], stored)
    onnx.save(helper.make_model(graph), path)
    return ((integers.astype(np.float32) - zero.astype(np.float32)) * scale).astype(np.float32)


@pytest.mark.parametrize("behind", ["DequantizeLinear", "Unsqueeze", "constants", "Mul", "both"])
@pytest.mark.parametrize("columns", [False, True], ids=["one scale", "a scale for each column"])
def test_a_table_of_integers_behind_a_gather_is_made_floats(behind, columns, theirs, tmp_path):
    _, tensors, config = theirs
    table = onnx_file(tmp_path / "model.onnx", tensors, behind, columns)
    wanted = zoo.load({**tensors, TABLE: torch.from_numpy(table)}, config=config, task="masked-lm")
    loaded = zoo.load(tmp_path / "model.onnx", config=config, task="masked-lm")
    found = loaded.model.embeddings.token.weight
    assert found.dtype == torch.float32
    assert torch.equal(found.detach(), torch.from_numpy(table))
    assert float((found - tensors[TABLE]).abs().max()) < 0.001
    assert torch.equal(logits(loaded), logits(wanted))
    report = zoo.convert(tmp_path / "model.onnx", tmp_path / "out.safetensors", config=config)
    assert report.checks.ok
    assert {tensor.dtype for tensor in load_file(tmp_path / "out.safetensors").values()} == {torch.float32}


def test_integers_that_nothing_makes_floats_are_refused(theirs, tmp_path):
    _, tensors, config = theirs
    onnx_file(tmp_path / "model.onnx", tensors, "nothing")
    for call in (
        lambda: zoo.load(tmp_path / "model.onnx", config=config),
        lambda: zoo.inspect(tmp_path / "model.onnx"),
    ):
        with pytest.raises(CheckpointError, match=r"quantised weights .*word_embeddings.*'Gather'.*export the model"):
            call()


# --- TensorFlow


def number(value: int) -> bytes:
    """A varint."""
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(tag: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return number(tag << 3) + number(value)
    return number(tag << 3 | 2) + number(len(value)) + value


def masked_crc(data: bytes) -> bytes:
    """CRC-32C, bit by bit, as TensorFlow stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def write_tensorflow(prefix: Path, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
    """``prefix.index`` and one shard, as `tf.train.Saver` writes them."""
    shard, records = b"", {b"": field(1, 1)}
    for name, array in sorted(arrays.items()):
        raw = np.ascontiguousarray(array).tobytes()
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        about = field(1, {"float32": 1, "int64": 9}[str(array.dtype)]) + field(2, shape)
        about += field(4, len(shard)) + field(5, len(raw)) + number(6 << 3 | 5) + masked_crc(raw)
        shard, records[name.encode()] = shard + raw, about

    out = b""

    def block(entries: dict[bytes, bytes]) -> bytes:
        nonlocal out
        body = b"".join(b"\0" + number(len(k)) + number(len(v)) + k + v for k, v in sorted(entries.items()))
        body += bytes(4) + (1).to_bytes(4, "little")
        handle = number(len(out)) + number(len(body))
        out += body + b"\0" + masked_crc(body + b"\0")
        return handle

    data, nothing = block(records), block({})
    index = block({max(records): data})
    out += (nothing + index).ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")
    prefix.with_name(prefix.name + ".index").write_bytes(out)
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(shard)


@pytest.fixture
def google(tmp_path) -> tuple[Any, dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """A model, its variables in the layout tf-bert with what an optimizer left, their config."""
    model = tiny("pretraining", activation="gelu_tanh")
    report = zoo.convert(zoo.save(model, tmp_path / "tf ours"), tmp_path / "tf.safetensors", to="tf-bert")
    arrays = {name: tensor.numpy() for name, tensor in load_file(tmp_path / "tf.safetensors").items()}
    arrays |= {name + "/adam_m": np.zeros_like(array) for name, array in list(arrays.items())[:3]}
    return model, {**arrays, "global_step": np.array(7)}, dict(report.foreign_config)


@pytest.mark.parametrize("scope", ["", "module/", "model/", "model/module/", "tower_0/bert_model/", "bert/"])
@pytest.mark.parametrize("typed", [True, False])
def test_variables_under_any_scope_are_read(scope, typed, google, tmp_path):
    model, arrays, config = google
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_tensorflow(folder / "model.ckpt-7", {scope + n if "/" in n else n: array for n, array in arrays.items()})
    (folder / "bert_config.json").write_text(json.dumps({**config, **({"model_type": "bert"} if typed else {})}))
    for source in (folder, folder / "model.ckpt-7", folder / "model.ckpt-7.index", str(folder / "model.ckpt-7")):
        loaded = zoo.load(source, task="pretraining")
        assert loaded.load_report.layout == "tf-bert"
        assert same(loaded, model)
    zoo.convert(folder / "model.ckpt-7", tmp_path / "out")
    assert same(zoo.load(tmp_path / "out", task="pretraining"), model)


# --- Keras and Flax


def named(name: str, tensor: torch.Tensor, words: dict[str, str]) -> tuple[list[str], np.ndarray[Any, Any]]:
    """A tensor's path and array there: dense matrices lie transposed under a name of their own."""
    *path, last = name.split(".")
    if last == "bias":
        return [*path, words["bias" if "LayerNorm" not in path else "shift"]], tensor.numpy()
    if "LayerNorm" in path:
        return [*path, words["norm"]], tensor.numpy()
    if path[-1].endswith("_embeddings"):
        return [*path, words.get(path[-1], words["table"])], tensor.numpy()
    return [*path, "kernel"], np.ascontiguousarray(tensor.numpy().T)


def keras_file(path: Path, tensors: Tensors, model: str, top: str = "", **how: Any) -> None:
    h5py = pytest.importorskip("h5py")
    words = {"bias": "bias", "shift": "beta", "norm": "gamma", "table": "embeddings", "word_embeddings": "weight"}
    with h5py.File(path, "w") as file:
        for name, tensor in tensors.items():
            parts, array = named(name, tensor, words)
            place = re.sub(r"/layer/(\d+)/", r"/layer_._\1/", "/".join(parts))
            place = place.replace("cls/", "mlm___cls/") if place.startswith("cls/") else place
            layer = place.partition("/")[0]
            group = file.require_group(f"{top}{layer}")
            group.create_dataset(f"{model}/{place}:0", data=array, **how)


def packed(value: Any, chunk: int) -> bytes:
    """MessagePack, with arrays as Flax writes them."""
    if isinstance(value, dict):
        body = b"".join(packed(key, chunk) + packed(part, chunk) for key, part in value.items())
        return (bytes([0x80 | len(value)]) if len(value) < 16 else b"\xde" + len(value).to_bytes(2, "big")) + body
    if isinstance(value, str):
        return b"\xd9" + bytes([len(value)]) + value.encode()
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xce" + value.to_bytes(4, "big")
    if value.size > chunk:
        pieces = [value.reshape(-1)[start : start + chunk] for start in range(0, value.size, chunk)]
        shape, chunks = (dict(zip(map(str, range(len(x))), x, strict=True)) for x in (value.shape, pieces))
        return packed({"__msgpack_chunked_array__": True, "shape": shape, "chunks": chunks}, chunk)
    raw = value.tobytes()
    body = b"\x93" + bytes([0x90 | value.ndim]) + b"".join(packed(int(size), chunk) for size in value.shape)
    body += packed(str(value.dtype), chunk) + b"\xc6" + len(raw).to_bytes(4, "big") + raw
    return b"\xc9" + len(body).to_bytes(4, "big") + b"\x01" + body


def flax_file(path: Path, tensors: Tensors, chunk: int = 1 << 20, state: bool = False) -> None:
    words = {"bias": "bias", "shift": "bias", "norm": "scale", "table": "embedding"}
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        parts, array = named(name, tensor, words)
        place = tree
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = array
    path.write_bytes(packed({"step": 7, "params": tree} if state else tree, chunk))


WRITERS: dict[str, Any] = {
    "keras": lambda path, tensors: keras_file(path, tensors, "tf_bert_for_masked_lm"),
    "keras, packed": lambda path, tensors: keras_file(
        path, tensors, "tf_bert_for_masked_lm_1", compression="gzip", shuffle=True
    ),
    "keras, a whole model": lambda path, tensors: keras_file(path, tensors, "tf_bert_for_masked_lm", "model_weights/"),
    "flax": flax_file,
    "flax, in chunks": lambda path, tensors: flax_file(path, tensors, chunk=50),
    "flax, a training state": lambda path, tensors: flax_file(path, tensors, state=True),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_weights_of_keras_and_flax_are_read(writer, theirs, tmp_path):
    model, tensors, config = theirs
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / ("tf_model.h5" if writer.startswith("keras") else "flax_model.msgpack")
    WRITERS[writer](file, tensors)
    for source in (folder, file):
        loaded = zoo.load(source, task="masked-lm")
        assert loaded.load_report.layout == "hf-bert"
        assert same(loaded, model)
    report = zoo.convert(folder, tmp_path / "out")
    assert report.checks.ok
    assert same(zoo.load(tmp_path / "out", task="masked-lm"), model)
    assert zoo.inspect(folder)["format"] == writer.partition(",")[0]
    torch.save({name: tensor * 2 for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert not same(zoo.load(folder, task="masked-lm"), model)  # torch's own file is read first, as in transformers


def test_an_hdf5_file_does_not_lead_outside(theirs, tmp_path):
    h5py = pytest.importorskip("h5py")
    _, tensors, config = theirs
    (tmp_path / "secret").write_bytes(bytes(range(64)) * 8)
    name = "bert/tf_bert_model/bert/embeddings/position_embeddings/embeddings:0"

    def external(file: Any) -> None:
        file.create_dataset(name, (16, 8), "f4", external=[(str(tmp_path / "secret"), 0, 512)])

    def elsewhere(file: Any) -> None:
        file[name] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")

    def soft(file: Any) -> None:
        file[name] = h5py.SoftLink("/bert/tf_bert_model/bert/embeddings/word_embeddings/weight:0")

    def virtual(file: Any) -> None:
        layout = h5py.VirtualLayout((16, 8), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (16, 8))
        file.create_virtual_dataset(name, layout)

    def circle(file: Any) -> None:
        file["bert/again"] = file["bert"]

    def bomb(file: Any) -> None:
        file.create_dataset(name, (1 << 20, 1 << 10), "f4", chunks=(1 << 10, 1 << 10), compression="gzip")

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.ones((16, 8), np.float32)
    for change, says in (
        (external, "stored in other files"), (elsewhere, "a link to something elsewhere"),
        (soft, "a link to something elsewhere"), (virtual, "stored in other files"), (circle, "deeper than 24"),
        (bomb, "would grow"),
    ):  # fmt: skip
        keras_file(tmp_path / "tf_model.h5", tensors, "tf_bert_model")
        with h5py.File(tmp_path / "tf_model.h5", "a") as file:
            if name in file and change is not circle:
                del file[name]
            change(file)
        with pytest.raises(CheckpointError, match=says):
            zoo.load(tmp_path / "tf_model.h5", config=config)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-9], "truncated|needs .* bytes"),
        (lambda data: data + b"\xc0", "1 bytes behind its end"),
        (lambda data: data.replace(b"float32", b"object1"), "dtype 'object1'"),
        (lambda data: b"\x81\xa1a" + b"\x91" * 200 + b"\xc0" * 9, "nested deeper"),
        (lambda data: b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 99, "truncated"),
        (lambda data: b"\x82\xa1a\xc0\xa1a\xc0" + b"\xc0" * 9, "'a' twice"),
        (lambda data: b"\x81\xa1a\xc1" + b"\xc0" * 9, "0xc1"),
    ],
)
def test_damaged_flax_files_are_refused(damage, says, theirs, tmp_path):
    _, tensors, config = theirs
    flax_file(tmp_path / "flax_model.msgpack", tensors)
    (tmp_path / "flax_model.msgpack").write_bytes(damage((tmp_path / "flax_model.msgpack").read_bytes()))
    with pytest.raises(CheckpointError, match=says):
        zoo.load(tmp_path / "flax_model.msgpack", config=config)
