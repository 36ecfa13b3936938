"""Tiny files that ask for unbounded memory or work, and what the readers answer: ``python -m
benchmarks.bombs [WORD ...]``.

Each bomb is made in a temporary folder and read in a process of its own, under a ceiling of address
space and of time. The table says how large the file is, how long the answer took, how much memory
the process needed beyond what it had before it read, and the message. A bomb *stands* where the
process died, ran into a ceiling, raised anything but a ZooError, or took more than ``SECONDS`` or
``MEMORY``; the exit code is then 1. ``--small`` makes the siblings that the suite reads.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, MEMORY = 20.0, 1 << 30  # what an answer may take
CEILING_SECONDS, CEILING_BYTES = 60, 12 << 30  # where the process is ended
MIB = 1 << 20


@dataclass(frozen=True)
class Bomb:
    """What is made (``make(folder, scale)`` gives the path to read), and how it is ``read``."""

    make: Callable[[Path, int], Path]
    read: str
    scale: int  # how large, in the bomb's own unit
    small: int  # the same for the suite; -1 = no quick sibling shows it
    honest: bool = False  # a file that may well be read, within the bounds

    @property
    def suite(self) -> bool:
        """Whether the small sibling is quick to make."""
        return self.small > 0 or self.scale == 0


BOMBS: dict[str, Bomb] = {}


def bomb(
    name: str, read: str, scale: int, small: int | None = None, *, honest: bool = False
) -> Callable[[Callable[[Path, int], Path]], Callable[[Path, int], Path]]:
    def enter(make: Callable[[Path, int], Path]) -> Callable[[Path, int], Path]:
        BOMBS[name] = Bomb(make, read, scale, scale if small is None else small, honest)
        return make

    return enter


# --- parts


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def part(tag: int, value: bytes | str | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(tag << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(raw)) + raw


def sentencepiece(charsmap: bytes = b"", trainer: bytes = b"", pieces: int = 3) -> bytes:
    """A model of a few pieces, with a normalizer's table."""

    def piece(text: str, kind: int) -> bytes:
        return part(1, part(1, text) + b"\x15" + struct.pack("<f", -1.0) + part(3, kind))

    return piece("<unk>", 2) + b"".join(piece(f"a{i}", 1) for i in range(pieces)) + trainer + part(3, part(2, charsmap))


def safetensors(tensors: dict[str, Any], body: int) -> bytes:
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + bytes(body)


BERT = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "pad_token_id": 0,
}


def bert(folder: Path, **config: Any) -> Path:
    """A tiny BERT as transformers saves it, whose config says something else."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (30, 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
    }
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        shapes |= {f"encoder.layer.0.{name}.weight": (8, 8), f"encoder.layer.0.{name}.bias": (8,)}
    shapes |= {"encoder.layer.0.intermediate.dense.weight": (16, 8), "encoder.layer.0.intermediate.dense.bias": (16,)}
    shapes |= {"encoder.layer.0.output.dense.weight": (8, 16), "encoder.layer.0.output.dense.bias": (8,)}
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes |= {f"encoder.layer.0.{name}.weight": (8,), f"encoder.layer.0.{name}.bias": (8,)}
    shapes |= {"pooler.dense.weight": (8, 8), "pooler.dense.bias": (8,)}
    header, position = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors(header, position))
    (folder / "config.json").write_text(json.dumps({**BERT, **config}), encoding="utf-8")
    return folder


# --- configs


@bomb("config of 10^9 layers, load", "load", 10**9)
@bomb("config of 10^9 layers, inspect", "inspect", 10**9, honest=True)
def _layers(folder: Path, scale: int) -> Path:
    return bert(folder / "model", num_hidden_layers=scale)


@bomb("config of 90,000 layers, load", "load", 90_000, 20_000)
def _many_layers(folder: Path, scale: int) -> Path:
    return bert(folder / "model", num_hidden_layers=scale)


@bomb("hidden_size of 10^10", "load", 10**10)
@bomb("hidden_size of 10^10, inspect", "inspect", 10**10, honest=True)
def _hidden(folder: Path, scale: int) -> Path:
    return bert(folder / "model", hidden_size=scale + 1, num_attention_heads=7)


@bomb("vocabulary of 10^15", "load", 10**15)
def _vocabulary(folder: Path, scale: int) -> Path:
    return bert(folder / "model", vocab_size=scale)


@bomb("our config of 10^9 layers", "load", 10**9)
@bomb("our config of 10^9 layers, verify", "verify", 10**9)
@bomb("our config of 10^9 shared layers", "load", 10**9)
def _our_layers(folder: Path, scale: int) -> Path:
    import zoo

    model = zoo.create(
        "albert-base", vocab_size=30, embedding_size=8, hidden_size=8, num_heads=2, num_layers=1, intermediate_size=8
    )
    zoo.save(model, folder / "model")
    text = json.loads((folder / "model" / "config.json").read_text())
    text["config"]["num_layers"] = scale
    (folder / "model" / "config.json").write_text(json.dumps(text))
    return folder / "model"


@bomb("config of a million lists", "inspect", 15 * MIB, 4 * MIB, honest=True)
def _lists(folder: Path, scale: int) -> Path:
    made = bert(folder / "model")
    (made / "config.json").write_text('{"a": [' + ",".join(["[]"] * (scale // 3)) + "]}")
    return made


# --- files of tensors


@bomb("safetensors: repeated keys", "open", 400_000, 100_000)
def _repeated_keys(folder: Path, scale: int) -> Path:
    inner = ",".join(f'"k{i}":0' for i in range(scale))
    header = ("{" + inner + f',"k{scale - 1}":0' + "}").encode()
    (folder / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder / "m.safetensors"


@bomb("safetensors: sparse file of 9 GB", "open", 9 << 30, 200 * MIB)
def _sparse(folder: Path, scale: int) -> Path:
    path = folder / "m.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [scale // 4], "data_offsets": [0, scale]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + scale)
    return path


@bomb("safetensors: strange names, load", "load", 100_000, 3_000)
@bomb("safetensors: strange names, inspect", "inspect", 100_000, -1, honest=True)
def _strange_names(folder: Path, scale: int) -> Path:
    made = bert(folder / "model")
    file = made / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    end = max(record["data_offsets"][1] for record in header.values())
    for number in range(scale):
        name = f"encoder.layer.{number}.atention.self.kuery.{number}.weight"
        header[name] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    file.write_bytes(safetensors(header, 0) + data[8 + size :])
    return made


@bomb("zip: members that look like indexes", "open", 40_000, 5_000)
def _indexes(folder: Path, scale: int) -> Path:
    with zipfile.ZipFile(folder / "m.zip", "w") as out:
        for number in range(scale):
            out.writestr(f"{number}.index", b"")
            out.writestr(f"{number}.dat", b"")
    return folder / "m.zip"


@bomb("pickle: nested tuples as keys", "open", 560, honest=True)
def _nested_keys(folder: Path, scale: int) -> Path:
    """Four levels of 64 times the same tuple, as the key of item after item."""
    made = b"\x80\x02}(K\x01K\x02\x86q\x00"
    for level in range(1, 4):
        made += b"0(" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 63 + b"tq" + bytes([level])
    made += b"0"
    while len(made) < scale - 8:
        made += b"h\x03N"
    (folder / "m.pt").write_bytes(made + b"u.")
    return folder / "m.pt"


@bomb("pickle: keys that collide", "open", 60_000, 20_000, honest=True)
def _colliding_keys(folder: Path, scale: int) -> Path:
    """-1 and -2 have one hash, and so has every tuple of them."""
    made = bytearray(b"\x80\x02J\xff\xff\xff\xffq\x00J\xfe\xff\xff\xffq\x0100}(")
    for number in range(scale):
        made += b"(" + b"".join(b"h\x01" if number >> bit & 1 else b"h\x00" for bit in range(20)) + b"tN"
    (folder / "m.pt").write_bytes(bytes(made) + b"u.")
    return folder / "m.pt"


@bomb("pickle: one long key above refused objects", "open", 200_000, 50_000, honest=True)
def _long_paths(folder: Path, scale: int) -> Path:
    name = b"k" * 65_000
    made = bytearray(b"\x80\x02X" + struct.pack("<I", len(name)) + name + b"q\x00" + b"cevil\nThing\nq\x010")
    made += b"0" + b"}h\x00" * 90 + b"](" + b"h\x01" * scale + b"e" + b"s" * 90 + b"."
    (folder / "m.pt").write_bytes(bytes(made))
    return folder / "m.pt"


@bomb("pickle: a tree of shared lists", "open", 30, -1)
def _shared_lists(folder: Path, scale: int) -> Path:
    made = b"\x80\x02]q\x00"
    for level in range(scale):
        made += b"0](" + (b"h" + bytes([level])) * 8 + b"eq" + bytes([level + 1])
    (folder / "m.pt").write_bytes(made + b".")
    return folder / "m.pt"


@bomb("torch: a deflated storage under many tensors", "open", 20_000, 2_000, honest=True)
def _deflated_storage(folder: Path, scale: int) -> Path:
    import torch

    base = torch.zeros(4 * MIB)
    plain = io.BytesIO()
    torch.save({f"t{i}": base[i : i + 1] for i in range(scale)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(folder / "m.pt", "w", zipfile.ZIP_DEFLATED) as out:
        for info in source.infolist():
            out.writestr(info.filename, source.read(info))
    return folder / "m.pt"


@bomb("torch: overlapping strides", "open", 10**9)
def _strides(folder: Path, scale: int) -> Path:
    import torch

    torch.save({f"t{i}": torch.ones(1).expand(15 * MIB) for i in range(500)}, folder / "m.pt")
    return folder / "m.pt"


@bomb("npz: deflated zeros", "open", 40, 2)
@bomb("npz: deflated zeros, as regions", "regions", 40, -1)
def _zeros(folder: Path, scale: int) -> Path:
    path = folder / "m.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (15 * MIB // 4, 4)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for number in range(scale):
            name = ["features", "bbox", "image_w", "image_h"][number] if number < 4 else f"x{number}"
            out.writestr(f"{name}.npy", header.getvalue() + bytes(60 * MIB))
    return path


@bomb("zip of checkpoints: deflated zeros", "open", 50, 2)
def _zip(folder: Path, scale: int) -> Path:
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("model.safetensors", safetensors({}, 0))
        for number in range(scale):
            out.writestr(f"{number}.json", b" " * (900 << 10))
            out.writestr(f"{number}.bin", bytes(60 * MIB))
    return folder / "m.zip"


@bomb("tar.gz: deflated zeros", "open", 9 << 30, 100 * MIB)
def _targz(folder: Path, scale: int) -> Path:
    import tarfile

    info = tarfile.TarInfo("model.bin")
    info.size = scale
    with gzip.open(folder / "m.tar.gz", "wb", 9) as out:
        out.write(info.tobuf())
        for _ in range(min(scale, 1 << 30) // MIB):
            out.write(bytes(MIB))
    return folder / "m.tar.gz"


def _table(blocks: list[bytes], handles: list[int]) -> bytes:
    """A string table whose index names block after block, as often as ``handles`` says."""
    from zoo.formats.crc32c import masked

    out = bytearray()

    def put(block: bytes) -> bytes:
        place = varint(len(out)) + varint(len(block))
        out.extend(block + b"\0" + struct.pack("<I", masked(block + b"\0")))
        return place

    places = [put(block) for block in blocks]
    index = b"".join(b"\0\0" + varint(len(places[i])) + places[i] for i in handles) + struct.pack("<II", 0, 1)
    meta, index_place = put(struct.pack("<II", 0, 1)), put(index)
    return bytes(out) + (meta + index_place).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


@bomb("tensorflow: an index that repeats a block", "open", 100_000, 2_000)
def _repeating_index(folder: Path, scale: int) -> Path:
    entry = b"\0\0" + varint(2) + part(1, 1)
    (folder / "m.index").write_bytes(_table([entry * 5_000 + struct.pack("<II", 0, 1)], [0] * scale))
    return folder / "m.index"


@bomb("tensorflow: slices that share their bytes", "open", 3_000, 300)
def _shared_slices(folder: Path, scale: int) -> Path:
    entries = [(b"", part(1, 1))]
    rows = MIB // 4
    for number in range(scale):
        shape = part(2, part(2, part(1, rows)))
        entries.append((f"t{number:05d}".encode(), part(1, 1) + shape + part(5, MIB)))
    body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in entries) + struct.pack("<II", 0, 1)
    (folder / "m.index").write_bytes(_table([body], [0]))
    (folder / "m.data-00000-of-00001").write_bytes(bytes(MIB))
    return folder / "m.index"


def _onnx(graph: bytes) -> bytes:
    return part(1, 8) + part(2, "pytorch") + part(7, graph)


@bomb("onnx: products that share one value", "open", 4_000, 1_000)
def _onnx_nodes(folder: Path, scale: int) -> Path:
    """Every product reads every weight's neighbor, and every output is read by every addition."""
    graph = bytearray()
    for number in range(scale):
        name = f"w{number}"
        graph += part(5, part(1, 1) + part(1, 1) + part(2, 1) + part(8, name) + part(9, bytes(4)))
        graph += part(1, part(1, "x") + part(1, name) + part(2, "y") + part(4, "MatMul"))
        graph += part(1, part(1, "y") + part(1, "b") + part(2, f"z{number}") + part(4, "Add"))
    (folder / "m.onnx").write_bytes(_onnx(bytes(graph)))
    return folder / "m.onnx"


@bomb("onnx: numbers one by one", "open", 60 * MIB, 4 * MIB, honest=True)
def _onnx_numbers(folder: Path, scale: int) -> Path:
    tensor = part(1, scale) + part(2, 3) + part(8, "w.weight") + part(5, bytes(scale))
    (folder / "m.onnx").write_bytes(_onnx(part(5, tensor)))
    return folder / "m.onnx"


@bomb("a FIFO", "inspect", 0)
def _fifo(folder: Path, scale: int) -> Path:
    os.mkfifo(folder / "m.safetensors")
    return folder / "m.safetensors"


@bomb("a FIFO in a folder, as its config", "inspect", 0, honest=True)
def _fifo_config(folder: Path, scale: int) -> Path:
    made = bert(folder / "model")
    (made / "config.json").unlink()
    os.mkfifo(made / "config.json")
    return made


@bomb("a FIFO as vocabulary", "tokenizer", 0)
def _fifo_vocabulary(folder: Path, scale: int) -> Path:
    os.mkfifo(folder / "vocab.txt")
    return folder / "vocab.txt"


@bomb("a FIFO as triples", "triples", 0)
def _fifo_triples(folder: Path, scale: int) -> Path:
    os.mkfifo(folder / "k.spo")
    return folder / "k.spo"


@bomb("a device", "inspect", 0)
def _device(folder: Path, scale: int) -> Path:
    (folder / "m.safetensors").symlink_to("/dev/zero")
    return folder / "m.safetensors"


@bomb("a device as triples", "triples", 0)
def _device_triples(folder: Path, scale: int) -> Path:
    (folder / "k.spo").symlink_to("/dev/zero")
    return folder / "k.spo"


@bomb("a socket", "inspect", 0)
def _socket(folder: Path, scale: int) -> Path:
    was = Path.cwd()
    os.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("m.safetensors")
    os.chdir(was)
    return folder / "m.safetensors"


@bomb("a folder in a file's place", "tokenizer", 0)
def _folder(folder: Path, scale: int) -> Path:
    (folder / "vocab.txt").mkdir()
    return folder


# --- tokenizers


def _trie(units: list[int], strings: bytes) -> bytes:
    raw = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(raw)) + raw + strings


@bomb("sentencepiece: a trie that goes in circles", "tokenizer", 1)
def _circles(folder: Path, scale: int) -> Path:
    """One block of units: unit 1 is its own child and ends a key each time."""
    units = [0] * 256
    units[0] = 0
    units[1] = 1 | 0x100 | (1 << 10)  # label 1, ends a key; its children's base is 1 ^ 1 = 0
    (folder / "spiece.model").write_bytes(sentencepiece(_trie(units, b"abc\0")))
    return folder / "spiece.model"


@bomb("sentencepiece: a trie of many ways", "tokenizer", 1)
def _ways(folder: Path, scale: int) -> Path:
    """Every unit of one block leads back to the block."""
    units = [0] + [label | 0x100 | (label << 10) if label < 128 else 0 for label in range(1, 256)]
    (folder / "spiece.model").write_bytes(sentencepiece(_trie(units, b"abc\0")))
    return folder / "spiece.model"


@bomb("sentencepiece: a replacement for every key", "tokenizer", 8 * MIB, 2 * MIB)
def _replacements(folder: Path, scale: int) -> Path:
    units = [0] * 256
    for label in range(1, 128):
        units[label] = label | 0x100 | (label << 10)
    (folder / "spiece.model").write_bytes(sentencepiece(_trie(units, b"a" * scale + b"\0")))
    return folder / "spiece.model"


@bomb("sentencepiece: a trainer in pieces", "tokenizer", 100_000, 5_000, honest=True)
def _trainers(folder: Path, scale: int) -> Path:
    piece = part(2, part(99, bytes(1000)))
    (folder / "spiece.model").write_bytes(sentencepiece(trainer=piece * scale))
    return folder / "spiece.model"


@bomb("sentencepiece: control pieces", "tokenizer", 60_000, 11_000)
def _controls(folder: Path, scale: int) -> Path:
    (folder / "spiece.model").write_bytes(
        sentencepiece(trainer=b"".join(part(1, part(1, f"<{i}>") + part(3, 3)) for i in range(scale)))
    )
    return folder / "spiece.model"


@bomb("sentencepiece: BPE of long pieces", "tokenizer", 120_000, -1)
def _long_pieces(folder: Path, scale: int) -> Path:
    pieces = b"".join(part(1, part(1, f"{i:06d}" + "a" * 500)) for i in range(scale))
    (folder / "spiece.model").write_bytes(sentencepiece(trainer=pieces + part(2, part(3, 2))))
    return folder / "spiece.model"


@bomb("gzipped merges", "tokenizer", 255 * MIB, 70 * MIB)
def _merges(folder: Path, scale: int) -> Path:
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wb") as out:
        for _ in range(scale // MIB):
            out.write(b"a b\n" * (MIB // 4))
    return folder / "bpe_simple_vocab_16e6.txt.gz"


@bomb("vocabulary of empty lines", "tokenizer", 100 * MIB, 8 * MIB)
def _empty_lines(folder: Path, scale: int) -> Path:
    (folder / "vocab.txt").write_bytes(b"\n" * scale)
    return folder / "vocab.txt"


def _tokenizer_json(folder: Path, **parts: Any) -> Path:
    base: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(base | parts), encoding="utf-8")
    return folder


@bomb("tokenizer: a template above 9 GB", "tokenizer", 30_000, 3_000)
def _template(folder: Path, scale: int) -> Path:
    token = {"id": "a", "ids": [1] * scale, "tokens": ["a"] * scale}
    place = {"SpecialToken": {"id": "a", "type_id": 0}}
    single = [place] * scale + [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    made = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {"a": token}}
    return _tokenizer_json(folder, post_processor=made)


@bomb("tokenizer: replacements that double", "tokenizer", 34, 30)
def _doubling(folder: Path, scale: int) -> Path:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return _tokenizer_json(folder, normalizer={"type": "Sequence", "normalizers": [step] * scale})


@bomb("tokenizer: many added tokens", "tokenizer", 200_000, 5_000, honest=True)
def _added_tokens(folder: Path, scale: int) -> Path:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    (folder / "added_tokens.json").write_text(json.dumps({f"<t{i}>": i + 6 for i in range(scale)}))
    return folder


@bomb("tokenizer: padding to 10^10", "tokenizer", 10**10, honest=True)
def _padding(folder: Path, scale: int) -> Path:
    made = {
        "strategy": {"Fixed": scale},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    return _tokenizer_json(folder, padding=made)


@bomb("tokenizer: json of empty lists", "tokenizer", 100 * MIB, 30 * MIB)
def _json_lists(folder: Path, scale: int) -> Path:
    (folder / "tokenizer.json").write_text('{"a": [' + ",".join(["[]"] * (scale // 3)) + "]}")
    return folder


# --- knowledge and regions


@bomb("n-triples: one line of blank nodes", "triples", 2_000, 300)
def _blank_nodes(folder: Path, scale: int) -> Path:
    (folder / "k.nt").write_text("_:" * scale + "\n", encoding="utf-8")
    return folder / "k.nt"


@bomb("n-triples: one line of blanks", "triples", 30_000, 3_000)
def _blanks(folder: Path, scale: int) -> Path:
    (folder / "k.nt").write_text("<a> <b> <c>" + " " * scale + "x\n", encoding="utf-8")
    return folder / "k.nt"


@bomb("n-triples: gzipped, one endless line", "triples", 3 << 30, 100 * MIB)
def _endless_line(folder: Path, scale: int) -> Path:
    with gzip.open(folder / "k.nt.gz", "wb", 9) as out:
        for _ in range(scale // MIB):
            out.write(b"a" * MIB)
    return folder / "k.nt.gz"


@bomb("spo: gzipped, endless lines", "triples", 1 << 29, -1)
def _endless_lines(folder: Path, scale: int) -> Path:
    with gzip.open(folder / "k.spo.gz", "wb", 9) as out:
        for _ in range(scale // MIB):
            out.write(b"a\tb\tccc\n" * (MIB // 8))
    return folder / "k.spo.gz"


@bomb("regions: one endless line", "regions", 3 << 30, 100 * MIB)
def _tsv(folder: Path, scale: int) -> Path:
    with (folder / "d.tsv").open("wb") as file:
        file.truncate(scale)
    return folder / "d.tsv"


@bomb("hdf5: data sets that nobody stored", "regions", 10**11, 10**9)
def _hdf5(folder: Path, scale: int) -> Path:
    import h5py

    with h5py.File(folder / "d.h5", "w") as file:
        group = file.create_group("a")
        group.create_dataset("features", (scale // 4, 4), "f4")
        group.create_dataset("boxes", (scale // 4, 4), "f4")
        group.create_dataset("image_w", data=1.0)
        group.create_dataset("image_h", data=1.0)
    return folder / "d.h5"


@bomb("hdf5: deflated zeros", "regions", 800 * MIB, -1)
def _hdf5_deflated(folder: Path, scale: int) -> Path:
    import h5py

    with h5py.File(folder / "d.h5", "w") as file:
        group = file.create_group("a")
        for name in ("features", "boxes"):
            made = group.create_dataset(name, (scale // 16, 4), "f4", compression=9, chunks=(MIB, 4))
            for start in range(0, scale // 16, MIB):
                made[start : start + MIB] = 0
        group.create_dataset("image_w", data=1.0)
        group.create_dataset("image_h", data=1.0)
    return folder / "d.h5"


@bomb("lmdb: truncated", "regions", 0)
def _lmdb(folder: Path, scale: int) -> Path:
    import pickle

    import lmdb

    value = {"features": np.ones((4, 100), "f4"), "bbox": np.ones((4, 4), "f4"), "image_width": 9, "image_height": 9}
    with lmdb.open(str(folder / "d"), map_size=1 << 26) as made, made.begin(write=True) as writing:
        for number in range(40):
            writing.put(f"{number:03d}".encode(), pickle.dumps(value))
    file = folder / "d" / "data.mdb"
    os.truncate(file, file.stat().st_size // 3)
    return folder / "d"


# --- the run


def read(kind: str, path: Path) -> Any:
    """Read a file in one of the ways that the library has."""
    import zoo

    if kind == "open":
        from zoo.formats.opening import open_archive

        with open_archive(path) as archive:
            for name in archive.tensors:
                archive.read(name)
            return f"{len(archive.tensors)} tensors"
    if kind == "inspect":
        found = zoo.inspect(path)
        return found.get("why") or f"{found['tensors']} tensors, layout {found['layout']}"
    if kind == "load":
        return repr(type(zoo.load(path)))
    if kind == "verify":
        report = zoo.verify(path)
        return str(report).replace("\n", "; ")
    if kind == "tokenizer":
        made = zoo.tokenizer(path)
        return f"{len(made.encode('a a').ids)} ids"
    if kind == "regions":
        from zoo.data.regions.files import read_regions

        return f"{sum(1 for _ in read_regions(path))} pictures"
    from zoo.data.knowledge.readers import read_triples

    return f"{sum(1 for _ in read_triples(path))} triples"


def answer(name: str, path: Path) -> dict[str, Any]:
    """Read one bomb in this process."""
    import torch

    import zoo  # what is imported is no part of the cost

    torch.set_num_threads(1)
    zoo.inspect(bert(path.parent / "warm"))
    before, started = _peak(), time.perf_counter()
    try:
        said, kind = read(BOMBS[name].read, path), "read"
    except zoo.ZooError as error:
        said, kind = str(error), "refused"
    except Exception as error:
        said, kind = f"{type(error).__name__}: {error}"[:300], "raw"
    return {"outcome": kind, "seconds": time.perf_counter() - started, "memory": _peak() - before, "message": said}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (CEILING_BYTES, CEILING_BYTES))


def tried(name: str, *, small: bool = False) -> dict[str, Any]:
    """Make one bomb and read it in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        made = BOMBS[name]
        path = made.make(Path(place), made.small if small else made.scale)
        files = [path] if path.is_symlink() or not path.is_dir() else [f for f in path.rglob("*") if f.is_file()]
        size = sum(file.lstat().st_size for file in files)
        command = [sys.executable, "-m", "benchmarks.bombs", "--one", name, "--path", str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=CEILING_SECONDS, preexec_fn=_limited, check=False
            )
        except subprocess.TimeoutExpired:
            return {"outcome": "endless", "seconds": CEILING_SECONDS, "memory": 0, "message": "", "size": size}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return {"outcome": f"died ({done.returncode})", "seconds": 0, "memory": 0, "message": last[0], "size": size}
    return {**json.loads(done.stdout), "size": size}


def stands(name: str, result: dict[str, Any]) -> bool:
    allowed = ("refused", "read") if BOMBS[name].honest else ("refused",)
    return result["outcome"] not in allowed or result["seconds"] > SECONDS or result["memory"] > MEMORY


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="only the bombs whose names have one of these words")
    parser.add_argument("--small", action="store_true", help="the siblings that the suite reads")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(answer(options.one, options.path)))
        return 0
    standing = 0
    print("| bomb | bytes | outcome | seconds | MiB | message |\n| --- | --- | --- | --- | --- | --- |")
    for name in BOMBS:
        if options.words and not any(word in name for word in options.words):
            continue
        result = tried(name, small=options.small)
        bad = stands(name, result)
        standing += bad
        message = result["message"].replace("|", "/")[:200]
        outcome = f"**{result['outcome']}**" if bad else result["outcome"]
        cost = f"{result['seconds']:.1f} | {result['memory'] / MIB:.0f}"
        print(f"| {name} | {result['size']:,} | {outcome} | {cost} | {message} |", flush=True)
    print(f"\n{standing} stand")
    return 1 if standing else 0


if __name__ == "__main__":
    sys.exit(main())
