"""A corpus on disk gives every token back, in an order that any place is reached in; a run over it goes on
after a stop.
"""

from __future__ import annotations

import csv
import json

import numpy
import pytest
import torch

import zoo
from tests.cli.test_cli import zoo_command  # noqa: F401
from tests.training.test_loop import SIZES, rows, tokenizer  # noqa: F401
from zoo.data.collate import MaskedLMCollator
from zoo.data.corpus import Corpus, MaskedCorpus, write_corpus
from zoo.errors import InputError
from zoo.training import fit

TEXTS = [row["text"] for row in rows(200)]


@pytest.fixture
def folder(tokenizer, tmp_path):  # noqa: F811
    write_corpus(TEXTS, tokenizer, tmp_path / "corpus", shard=100)
    return tmp_path / "corpus"


def test_blocks_hold_every_token_in_order_over_all_files(tokenizer, folder):  # noqa: F811
    wanted = [n for text in TEXTS for n in (*tokenizer.backend.encode(text, add_special_tokens=False).ids, 3)]
    corpus = Corpus(folder, 11)
    assert len(corpus.files) > 5
    assert len(corpus) == len(wanted) // 9
    blocks = [corpus[number] for number in range(len(corpus))]
    assert {(block[0], block[-1], len(block)) for block in blocks} == {(2, 3, 11)}
    assert [n for block in blocks for n in block[1:-1]] == wanted[: len(blocks) * 9]
    with pytest.raises(IndexError):
        corpus[len(corpus)]


def batches(folder, tokenizer, epoch, start=0, share=(0, 1)):  # noqa: F811
    collator = MaskedLMCollator(mask_id=4, vocab_size=45, special_ids=tokenizer.special_token_ids)
    return MaskedCorpus(Corpus(folder, 11), collator, 8, 5).epoch(epoch, start, share)


def originals(batch):
    return torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"]).tolist()


def test_an_epoch_has_each_block_once_and_any_place_is_reached(tokenizer, folder):  # noqa: F811
    whole = [originals(batch) for batch in batches(folder, tokenizer, 1)]
    corpus = Corpus(folder, 11)
    assert sorted(block for batch in whole for block in batch) == sorted(corpus[n] for n in range(len(corpus)))
    assert [originals(batch) for batch in batches(folder, tokenizer, 1, 3)] == whole[3:]
    assert [originals(batch) for batch in batches(folder, tokenizer, 2)] != whole
    parts = [list(map(originals, batches(folder, tokenizer, 1, share=(number, 2)))) for number in (0, 1)]
    for batch, left, right in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted((left + right)[: len(batch)])  # a process without a block takes the first


def test_an_interrupted_run_over_a_corpus_goes_on_with_the_same_curve(tokenizer, folder, tmp_path):  # noqa: F811
    """Masks are drawn from the generator that is written down: the batches skipped must not draw."""

    def run(out, stop=0, resume=False):
        model = zoo.create("bert-base", task="masked-lm", generator=torch.Generator().manual_seed(0), **SIZES)
        collator = MaskedLMCollator(mask_id=4, vocab_size=45, special_ids=tokenizer.special_token_ids)

        def event(row):
            if row["step"] == stop:
                raise KeyboardInterrupt

        corpus = MaskedCorpus(Corpus(folder, 11), collator, 16, 5)
        given = {"out": tmp_path / out, "resume": resume, "on_event": event, "log_every": 1, "save_every": 2}
        fit(model, corpus, tokenizer=tokenizer, steps=12, batch_size=16, lr=1e-3, **given)
        with (tmp_path / out / "training" / "log.csv").open() as file:
            return [row["loss"] for row in csv.DictReader(file)]

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=7)
    assert run("cut", resume=True) == whole
    assert len(whole) == 12


def test_rows_with_masks_go_on_with_the_same_curve_too(tokenizer, tmp_path):  # noqa: F811
    def run(out, stop=0, resume=False):
        model = zoo.create("bert-base", task="masked-lm", generator=torch.Generator().manual_seed(0), **SIZES)

        def event(row):
            if row["step"] == stop:
                raise KeyboardInterrupt

        given = {"out": tmp_path / out, "resume": resume, "on_event": event, "log_every": 1, "save_every": 2}
        return fit(model, rows(64), tokenizer=tokenizer, steps=8, batch_size=8, lr=1e-3, **given)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", stop=5)
    rest = run("cut", resume=True)
    assert [row["loss"] for row in rest.history] == [row["loss"] for row in whole.history]


def test_what_is_no_corpus_is_refused(tokenizer, folder, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="holds a corpus already"):
        write_corpus(TEXTS, tokenizer, folder)
    with pytest.raises(InputError, match="no texts"):
        write_corpus([], tokenizer, tmp_path / "none")
    with pytest.raises(InputError, match="no finished corpus"):
        Corpus(tmp_path / "none", 8)
    with pytest.raises(InputError, match="too few"):
        Corpus(folder, 100_000)
    path = folder / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="write the corpus anew"):
        Corpus(folder, 8)
    (folder / "index.json").write_text("[1]")
    with pytest.raises(InputError, match=r"index\.json can't be read"):
        Corpus(folder, 8)


def test_large_vocabularies_take_four_bytes(tmp_path):
    from zoo.tokenization.wordpiece import wordpiece

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"t{n}" for n in range(70_000))]
    large = wordpiece({token: number for number, token in enumerate(tokens)})
    write_corpus(["t69999 t1"], large, tmp_path)
    assert Corpus(tmp_path, 5)[0] == [2, 70_004, 6, 3, 3]
    assert numpy.fromfile(tmp_path / "tokens-00000.bin", dtype="<u4").tolist() == [70_004, 6, 3]


def test_the_commands_from_texts_to_a_model(zoo_command, tokenizer, tmp_path):  # noqa: F811
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    tokenizer.save(tmp_path / "tokenizer")
    given = ("--tokenizer", str(tmp_path / "tokenizer"))
    code, out, _ = zoo_command("tokenize", str(tmp_path / "texts.txt"), *given, "--out", str(tmp_path / "corpus"))
    assert code == 0
    assert out.startswith("200 documents")
    sizes = [part for name, value in SIZES.items() if name != "vocab_size" for part in ("--set", f"{name}={value}")]
    options = (*given, "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "model"), "--length", "16")
    code, out, err = zoo_command(
        "pretrain", "albert-base", *options, "--steps", "6", "--batch-size", "8", *sizes, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["steps"] == 6
    assert zoo.load(tmp_path / "model").task == "masked-lm"
    code, _, err = zoo_command(
        "tokenize", str(tmp_path / "texts.txt"), *given, "--out", str(tmp_path / "c2"), "--column", "body"
    )
    assert code == 1
    assert "no text in a column" in err
