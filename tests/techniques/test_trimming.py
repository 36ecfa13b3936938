"""Vocabulary trimming: what is kept is cut as before, by every kind of tokenizer, and the smaller
model computes the same on it.
"""

from __future__ import annotations

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import zoo
from tests.strategies import randomised
from zoo.errors import InputError
from zoo.tokenization import SpecialTokens, Tokenizer
from zoo.tokenization.trim import tokens_of, trim_tokenizer

CORPUS = [
    "the lower the newest widest tower shows how low the river flows",
    "banana bandana cabana and a canal in panama, banned by bands",
    "12 345 6789 numbers, numbering and numbered; unnumbered!",
    "strasse straße Ärger über öde Flüsse naïve café",
    "der die das und oder aber niemals immer wieder weiter",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
KINDS = ("wordpiece", "unigram", "byte-bpe", "suffix-bpe", "words")


def trained(kind: str, pad: int = 0) -> Tokenizer:
    special = [*SPECIAL[1 : 1 + pad], SPECIAL[0], *SPECIAL[1 + pad :]]
    if kind == "wordpiece":
        backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False)
    elif kind == "unigram":
        backend = tokenizers.Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=160, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind == "byte-bpe":
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "suffix-bpe":
        backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(
            vocab_size=200, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
        )
    else:
        backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    roles = SpecialTokens(pad="<pad>", cls="<s>", sep="</s>", unk="<unk>", mask="<mask>")
    return Tokenizer(backend, special=roles, inputs=("input_ids", "attention_mask"), max_length=40)


TOKENIZERS = {kind: trained(kind) for kind in KINDS}
WORDS = sorted({word for line in CORPUS for word in line.split()})


@st.composite
def some_texts(draw: st.DrawFn) -> list[str]:
    word = st.one_of(st.sampled_from(WORDS), st.text("abdelnoprstuwü,1ß日", min_size=1, max_size=9))
    return draw(st.lists(st.lists(word, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=5))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(texts=some_texts())
def test_kept_texts_are_cut_as_before_and_ids_become_ranks(kind, texts):
    old = TOKENIZERS[kind]
    new, kept = trim_tokenizer(old, tokens_of(old, texts))
    assert kept == sorted(kept)
    assert new.vocab_size == len(kept)
    for text in texts:
        before, after = old.encode(text, texts[0]), new.encode(text, texts[0])
        assert after.tokens == before.tokens
        assert [kept[index] for index in after.ids] == before.ids
        assert (after.offsets, after.type_ids) == (before.offsets, before.type_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_go_where_texts_are_few_and_the_special_ones_stay(kind, tmp_path):
    old = TOKENIZERS[kind]
    new, kept = trim_tokenizer(old, tokens_of(old, CORPUS[:1]))
    assert len(kept) < old.vocab_size
    for role in ("pad", "cls", "sep", "unk", "mask"):
        assert kept[getattr(new, f"{role}_token_id")] == getattr(old, f"{role}_token_id")
    new.save(tmp_path)
    assert zoo.tokenizer(tmp_path).encode(CORPUS[0]).ids == new.encode(CORPUS[0]).ids


def test_padding_keeps_its_id_wherever_it_stands():
    for pad in range(4):
        old = trained("words", pad)
        new, _ = trim_tokenizer(old, tokens_of(old, CORPUS[3:4]))
        assert new.pad_token_id == old.pad_token_id == pad


def model_for(family: str, tokenizer: Tokenizer, task: str | None = None, **fields: object) -> torch.nn.Module:
    sizes = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 12, "max_positions": 45}
    made = zoo.create(
        family, task=task, dtype=torch.float64, vocab_size=tokenizer.vocab_size + 3, **{**sizes, **fields}
    )
    return randomised(made)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bert-base", {}),
        ("bert-base", {"tie_word_embeddings": False}),
        ("albert-base", {"embedding_size": 5}),
        ("roberta-base", {"pad_token_id": 0}),
        ("mobilebert-base", {"embedding_size": 4, "bottleneck_size": 4, "num_feed_forwards": 2}),
        ("distilbert-base", {}),
    ],
)
def test_the_smaller_model_says_the_same_of_kept_texts(family, fields):
    old = TOKENIZERS["wordpiece"]
    known = zoo.config(family).field_names()
    model = model_for(family, old, "masked-lm", **{key: value for key, value in fields.items() if key in known})
    done = zoo.trim_vocabulary(model, old, CORPUS[:2])
    first = model(**old(CORPUS[:2])).prediction_logits
    second = done.model(**done.tokenizer(CORPUS[:2])).prediction_logits
    assert torch.allclose(second, first[..., list(done.kept)], rtol=1e-12, atol=1e-12)
    assert done.held == 2
    assert done.after < done.before
    assert not done.model.training
    assert f"{len(done.kept):,} tokens stay" in str(done)


def test_rare_tokens_go_and_named_ones_stay():
    old = TOKENIZERS["words"]
    model = model_for("bert-base", old)
    done = zoo.trim_vocabulary(model, old, [*CORPUS, CORPUS[0]], least=2, keep=["niemals"])
    tokens = done.tokenizer.backend.get_vocab()
    assert "niemals" in tokens
    assert "banana" not in tokens
    assert done.held == 2  # the text that stands there twice; the others use a word that went


def test_techniques_stay_and_what_they_added_is_carried_along(tmp_path):
    old = TOKENIZERS["wordpiece"]
    model = zoo.apply(model_for("bert-base", old), zoo.FactorizedEmbedding(size=3), zoo.LoRA(rank=2))
    randomised(model)
    done = zoo.trim_vocabulary(model, old, CORPUS[:1])
    zoo.save(done.model, tmp_path, done.tokenizer)
    again = zoo.load(tmp_path)
    batch = zoo.tokenizer(tmp_path)(CORPUS[:1])
    assert torch.allclose(again(**batch).last_hidden_state, model(**old(CORPUS[:1])).last_hidden_state, atol=1e-12)


def test_what_can_not_be_trimmed_is_refused():
    old = TOKENIZERS["words"]
    with pytest.raises(InputError, match="no token"):
        zoo.trim_vocabulary(model_for("bert-base", old), old, CORPUS, keep=["zzz"])
    with pytest.raises(InputError, match="its own tokenizer"):
        zoo.trim_vocabulary(zoo.create("bert-tiny", vocab_size=20), old, CORPUS)
    with pytest.raises(InputError, match="are no tokens"):
        trim_tokenizer(old, [10_000])
    strange = model_for("bert-base", old)
    del strange.zoo_name
    assert (
        zoo.trim_vocabulary(strange, old, CORPUS).after < strange.num_parameters()
    )  # a model built by hand is trimmed too
