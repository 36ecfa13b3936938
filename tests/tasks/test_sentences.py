"""`encode` of sentence embeddings: what sentence-transformers and those who call it expect."""

from __future__ import annotations

import copy
import pickle

import numpy
import pytest
import torch

import zoo
from zoo.data.batches import like_lengths, windows
from zoo.errors import InputError
from zoo.tokenization.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "barks", "query", ":"]
TINY = {"vocab_size": len(WORDS), "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 12}
TEXTS = ["a dog barks", "cat", "a cat a dog barks barks", "", "dog dog"]


@pytest.fixture
def folder(tmp_path):
    tokenizer = wordpiece({word: number for number, word in enumerate(WORDS)}, max_length=16)
    generator = torch.Generator().manual_seed(0)
    model = zoo.create(
        "bert-base", task="sentence-embedding", generator=generator, max_positions=16, normalize=False, **TINY
    )
    return zoo.save(model, tmp_path / "model", tokenizer)


def test_encode_gives_each_texts_vector_at_its_place(folder):
    model, tokenizer = zoo.load(folder), zoo.tokenizer(folder)
    wanted = torch.cat([model(**tokenizer([text])).embedding for text in TEXTS])
    found = model.encode(TEXTS, batch_size=2)
    assert isinstance(found, numpy.ndarray)
    assert found.dtype == numpy.float32
    torch.testing.assert_close(torch.tensor(found), wanted.detach())
    assert numpy.allclose(model.encode(iter(TEXTS), batch_size=2), found, atol=1e-6)
    assert model.encode("cat").shape == (8,)
    assert numpy.allclose(model.encode("cat"), found[1], atol=1e-6)
    assert model.encode([]).shape == (0, 8)
    tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.is_inference()  # a probe may be trained on it
    listed = model.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(listed, list)
    assert torch.equal(torch.stack(listed), tensor)
    assert numpy.allclose(numpy.linalg.norm(model.encode(TEXTS, normalize_embeddings=True), axis=1), 1, atol=1e-6)
    assert numpy.allclose(model.encode(["cat"], prompt="query: "), model.encode(["query: cat"]))
    assert not numpy.allclose(model.encode(["cat"], prompt="query: "), found[1])


def test_encode_leaves_the_mode_alone_and_has_no_dropout(folder):
    model = zoo.load(folder, dropout=0.5).train()
    first = model.encode(TEXTS)
    assert numpy.array_equal(first, model.encode(TEXTS))
    assert model.training


def test_encode_shows_its_batches_on_stderr_when_asked(folder, capsys):
    model = zoo.load(folder)
    model.encode(TEXTS, show_progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Batches" in err
    model.encode(TEXTS)
    assert capsys.readouterr() == ("", "")


def test_encode_takes_batches_and_words_of_mteb(folder):
    model = zoo.load(folder)
    batches = [{"text": TEXTS[:2], "title": ["", ""]}, {"text": TEXTS[2:]}]
    about = {"task_metadata": object(), "hf_split": "test", "hf_subset": "default", "prompt_type": None}
    found = model.encode(batches, batch_size=4, **about)
    assert numpy.allclose(found, model.encode(TEXTS), atol=1e-6)
    with pytest.raises(InputError, match="encode takes no 'convert_to_numpi'"):
        model.encode(TEXTS, convert_to_numpi=True)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        model.encode(TEXTS, batch_size=0)


def test_similarity_is_the_cosine_of_all_pairs_or_of_each(folder):
    model = zoo.load(folder)
    one, other = model.encode(TEXTS[:2]), model.encode(TEXTS)
    found = model.similarity(one, other)
    assert found.shape == (2, 5)
    cosine = torch.nn.functional.cosine_similarity
    for row in range(2):
        for column in range(5):
            wanted = cosine(torch.tensor(one[row]), torch.tensor(other[column]), dim=0)
            torch.testing.assert_close(found[row, column], wanted)
    torch.testing.assert_close(model.similarity_pairwise(other, other), torch.ones(5))
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == 8


def test_the_tokenizer_is_found_where_the_weights_were(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    model = zoo.load("model")
    file = zoo.load(folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    wanted = model.encode(TEXTS)
    assert numpy.array_equal(file.encode(TEXTS), wanted)
    assert numpy.allclose(zoo.optimize(model).encode(TEXTS), wanted, atol=1e-5)
    assert numpy.array_equal(copy.deepcopy(model).encode(TEXTS), wanted)
    assert numpy.array_equal(pickle.loads(pickle.dumps(model)).encode(TEXTS), wanted)
    fresh = zoo.create("bert-base", task="sentence-embedding", max_positions=16, **TINY)
    assert fresh.tokenizer is None
    with pytest.raises(InputError, match=r"set model.tokenizer = zoo.tokenizer\(NAME\)"):
        fresh.encode(TEXTS)
    fresh.tokenizer = zoo.tokenizer(folder)
    assert fresh.encode(TEXTS).shape == (5, 8)


def test_windows_begin_small_and_batches_hold_like_lengths():
    assert [len(window) for window in windows(range(100), 3, most=12)] == [3, 6, 12, 12, 12, 12, 12, 12, 12, 7]
    assert [row for window in windows(range(100), 3, most=12) for row in window] == list(range(100))
    assert list(like_lengths([3, 9, 1, 9, 5], 2)) == [[1, 3], [4, 0], [2]]
    assert list(windows([], 3)) == []
    assert [len(window) for window in windows(range(100), 40, most=12)] == [40, 40, 20]


def test_vectors_are_as_wide_as_the_last_layer(folder):
    layers = [{"kind": "dense", "size": 6, "activation": "tanh"}, {"kind": "norm"}, {"kind": "dense", "size": 3}]
    model = zoo.create("bert-base", task="sentence-embedding", layers=layers, max_positions=16, **TINY).eval()
    model.tokenizer = zoo.tokenizer(folder)
    wanted = torch.cat([model(**model.tokenizer([text])).embedding for text in TEXTS]).detach()
    torch.testing.assert_close(torch.tensor(model.encode(TEXTS, batch_size=2)), wanted)
    assert model.encode([]).shape == (0, 3) == (0, model.get_embedding_dimension())
