"""Samples of what is read besides checkpoint formats, each with its reader, for
``benchmarks.fuzz_readers``: configs, adapters, tokenizers, dumps of regions, knowledge, maps.
"""

from __future__ import annotations

import base64
import copy
import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zoo
from benchmarks.bombs import bert, part, sentencepiece
from zoo.checkpoints.adapters.files import load_adapter, save_adapter
from zoo.data.knowledge.graph import KnowledgeGraph
from zoo.data.knowledge.lexicon import EntityLexicon, EntityTable
from zoo.data.knowledge.ngrams import NGramLexicon
from zoo.data.knowledge.readers import (
    read_aliases,
    read_entity_map,
    read_openke_names,
    read_openke_triples,
    read_triples,
    read_vectors,
)
from zoo.data.regions.files import check_regions, read_regions, save_regions
from zoo.data.regions.regions import Regions
from zoo.maps import layouts
from zoo.tokenization import load_tokenizer


@dataclass(frozen=True)
class Sample:
    """What is opened, and by what; every file below ``path`` is damaged in its turn."""

    path: Path
    read: Callable[[Path], Any]
    forked: bool = False  # read in a process of its own: a library in C may end it


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "ab", "##b", "c", "é"]
SIZES: dict[str, Any] = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}


def _encoded(path: Path, spec: dict[str, Any] | None = None) -> Any:
    made = load_tokenizer(path, spec)
    return [made(text, return_lengths=True) for text in ("ab c é\u0301 5,", "b")], made.vocab_size


def _tokenizers(folder: Path) -> dict[str, Sample]:
    found: dict[str, Sample] = {}

    def add(name: str, files: dict[str, bytes | str], spec: dict[str, Any] | None = None) -> None:
        place = folder / f"tokenizer-{name}"
        place.mkdir()
        for file, content in files.items():
            (place / file).write_bytes(content.encode() if isinstance(content, str) else content)
        found[f"tokenizer {name}"] = Sample(place, lambda path: _encoded(path, spec))

    letters = {
        letter: number for number, letter in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "ab"])
    }
    config = json.dumps({"model_type": "bert", "do_lower_case": True, "model_max_length": 12})
    special = json.dumps({"cls_token": "[CLS]", "additional_special_tokens": ["c"]})
    add(
        "wordpiece",
        {"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": config, "special_tokens_map.json": special},
    )
    add(
        "bpe",
        {"vocab.json": json.dumps(letters), "merges.txt": "#version: 0.2\na b\n", "added_tokens.json": '{"<x>": 8}'},
    )
    add("fairseq", {"dict.txt": "a 5\nb 4\nab 3\n"}, {"fairseq": "dict.txt"})
    add("clip", {"bpe_simple_vocab_16e6.txt.gz": gzip.compress(b"#version\na b\nb c</w>\n")})
    add("xlm", {"codes_xnli_15": "a b 10\nab c</w> 5\n", "vocab_xnli_15": "a 5\nb 4\nab 3\nc</w> 2\n"})
    units = [0] * 256
    units[ord("a")] = ord("a") | 0x100 | (1 << 10)
    table = np.array([1024, *units], "<u4").tobytes() + b"b\0"
    plain = sentencepiece(table, trainer=b"".join(part(1, part(1, word)) for word in ("\u2581", "a", "b", "ab")))
    add("unigram", {"spiece.model": plain})
    add("sentencepiece bpe", {"spiece.model": plain + part(2, part(3, 2) + part(35, 0))})
    made = load_tokenizer(folder / "tokenizer-wordpiece")
    made.save(folder / "tokenizer-saved")
    found["tokenizer saved"] = Sample(folder / "tokenizer-saved", _encoded)
    foreign = (folder / "tokenizer-saved" / "tokenizer.json").read_bytes()
    add("json", {"tokenizer.json": foreign, "tokenizer_config.json": config})
    return found


def _models(folder: Path) -> dict[str, Sample]:
    base = zoo.create("bert-base", vocab_size=11, max_positions=16, **SIZES)
    zoo.save(base, folder / "ours")
    task = zoo.create(
        "bert-base", task="sequence-classification", num_labels=2, vocab_size=11, max_positions=16, **SIZES
    )
    zoo.save(zoo.apply(task, zoo.LoRA(rank=2)), folder / "ours-lora")
    foreign = bert(folder / "foreign")
    zoo.convert(foreign, folder / "one" / "m.safetensors")
    encoder = bert(folder / "encoder")
    (encoder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (encoder / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    (encoder / "1_Pooling").mkdir()
    (encoder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 8, "pooling_mode_mean_tokens": true}'
    )
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}

    def run(path: Path) -> Any:
        return zoo.load(path)(**inputs)

    found = {
        "our folder": Sample(folder / "ours", run),
        "our folder with techniques": Sample(folder / "ours-lora", run),
        "our folder, verified": Sample(folder / "ours", zoo.verify),
        "our single file": Sample(folder / "one", lambda path: zoo.load(path / "m.safetensors")),
        "foreign folder": Sample(foreign, run),
        "foreign folder, inspected": Sample(foreign, zoo.inspect),
        "sentence encoder": Sample(encoder, lambda path: zoo.load(path, task="sentence-embedding")(**inputs)),
    }
    adapted = zoo.apply(copy.deepcopy(base), zoo.LoRA(rank=2))
    for library in ("zoo", "peft"):
        save_adapter(adapted, folder / f"adapter-{library}", library=library)
        found[f"adapter of {library}"] = Sample(
            folder / f"adapter-{library}", lambda path: load_adapter(copy.deepcopy(base), path)
        )
    bottleneck = zoo.apply(copy.deepcopy(base), zoo.BottleneckAdapter(reduction=4))
    save_adapter(bottleneck, folder / "adapter-adapters", library="adapters")
    found["adapter of adapters"] = Sample(
        folder / "adapter-adapters", lambda path: load_adapter(copy.deepcopy(base), path)
    )
    return found


def _regions(folder: Path) -> dict[str, Sample]:
    rng = np.random.default_rng(0)
    features, boxes = rng.random((3, 4), "f4"), np.array([[0, 0, 4, 4], [1, 1, 5, 5], [0, 2, 3, 6]], "f4")

    def text(array: np.ndarray[Any, Any]) -> bytes:
        return base64.b64encode(array.tobytes())

    def read(path: Path) -> Any:
        return [regions.features.sum() for _, regions in read_regions(path)], check_regions(path)

    found: dict[str, Sample] = {}

    def add(name: str, file: str, forked: bool = False) -> Path:
        place = folder / f"regions-{name}"
        place.mkdir()
        found[f"regions {name}"] = Sample(place, lambda path: read(path / file if file else path), forked)
        return place / file

    line = b"\t".join([b"7", b"9", b"9", b"3", text(boxes), text(features)])
    add("tsv", "d.tsv").write_bytes(line + b"\n" + line.replace(b"7", b"8", 1) + b"\n")
    rest = [text(np.arange(3)), text(np.ones(3, "f4"))] * 2
    add("lxmert", "d.tsv").write_bytes(b"\t".join([b"7", b"9", b"9", *rest, b"3", text(boxes), text(features)]) + b"\n")
    np.savez(add("npz", "d.npz"), features=features, bbox=boxes, image_w=9, image_h=9)
    place = add("npy", "")
    for name, array in (("a", features), ("a_boxes", boxes), ("a_size", np.array([9, 9]))):
        np.save(place / f"{name}.npy", array)
    pictures = {"a": Regions(torch.tensor(features), torch.tensor(boxes), (9.0, 9.0))}
    save_regions(add("safetensors", "d.safetensors"), pictures)
    import h5py
    import lmdb

    values = {"features": features, "bbox": boxes, "image_width": 9, "image_height": 9, "num_boxes": 3}
    with lmdb.open(str(add("lmdb", "")), map_size=1 << 20, lock=False) as made, made.begin(write=True) as writing:
        for number in range(3):
            writing.put(b"%d" % number, pickle.dumps(values, 4))
    with h5py.File(add("hdf5 groups", "d.h5", True), "w") as file:
        for name in ("a", "b"):
            group = file.create_group(name)
            group["features"], group["bbox"] = features, boxes
            group.attrs["image_w"], group.attrs["image_h"] = 9.0, 9.0
    with h5py.File(add("hdf5 fields", "d.h5", True), "w") as file:
        file.create_dataset("features", data=np.stack([features] * 2), compression=4, shuffle=True)
        file["bbox"], file["image_w"], file["image_h"] = np.stack([boxes] * 2), np.full(2, 9.0), np.full(2, 9.0)
        file["image_id"] = ["x", "y"]
    return found


def _knowledge(folder: Path) -> dict[str, Sample]:
    found: dict[str, Sample] = {}

    def add(name: str, file: str, content: bytes | str, read: Callable[[Path], Any]) -> None:
        place = folder / f"knowledge-{name}"
        place.mkdir(exist_ok=True)
        (place / file).write_bytes(content.encode() if isinstance(content, str) else content)
        found[f"knowledge {name}"] = Sample(place, lambda path: read(path / file))

    def triples(path: Path) -> Any:
        return list(read_triples(path))

    spo, nt = "a\tis\tb\nb\thas\tc\n", '<a> <is> "b \\u00e9"@en .\n_:x <has> <c> . # end\n'
    add("spo", "k.spo", spo, triples)
    add("spo.gz", "k.spo.gz", gzip.compress(spo.encode()), triples)
    add("nt", "k.nt", nt, triples)
    add("nt.gz", "k.nt.gz", gzip.compress(nt.encode()), triples)
    noun = "00000001 03 n 01 dog 0 001 @ 00000002 n 0000 | a pet\n00000002 03 n 01 animal 0 000 | it lives\n"
    add("wordnet", "data.noun", noun, lambda path: list(read_triples(path.parent)))
    add(
        "wordnet",
        "index.noun",
        "dog n 1 0 1 0 00000001\nanimal n 1 0 1 0 00000002\n",
        lambda path: list(read_triples(path.parent)),
    )
    add("entity map", "m.txt", "a\tQ1\nb\tQ2\n", read_entity_map)
    add("aliases", "a.txt", "Q1\ta\tb\nQ2\tc\n", read_aliases)
    add("openke names", "entity2id.txt", "2\na\t0\nb\t1\n", read_openke_names)
    add("openke triples", "train2id.txt", "2\n0 1 0\n1 0 1\n", read_openke_triples)
    add("vectors", "e.vec", "0.5 1\n2 3e-1\n", read_vectors)
    add("priors", "p.tsv", "a\t5\t1,0.5,X\t2,0.25,Y\nb\t1\t3,1.0,Z\n", EntityLexicon.read)
    add("entities", "names.txt", "2\nX\t0\nY\t1\n", EntityTable.read)
    add("n-grams", "n.txt", "ab,5\nbc,3\n", lambda path: NGramLexicon.read(path, list))
    KnowledgeGraph.from_triples([("a", "is", "b"), ("b", "has", "c")]).save(folder / "graph")
    found["knowledge graph"] = Sample(folder / "graph", lambda path: len(KnowledgeGraph.open(path)))
    (folder / "map").mkdir()
    shutil.copy(Path(__file__).parents[1] / "weights" / "bert" / "hf-bert.toml", folder / "map" / "own.toml")
    found["map"] = Sample(folder / "map", lambda path: layouts.load(path / "own.toml"))
    return found


def build(folder: Path) -> dict[str, Sample]:
    """Every sample, under ``folder``."""
    folder.mkdir(parents=True)
    return {**_models(folder), **_tokenizers(folder), **_regions(folder), **_knowledge(folder)}
