"""CPM's tokenizer held against jieba and the sentencepiece library, put together as CPM's code does."""

from __future__ import annotations

import sys
import unicodedata

import jieba
import pytest
import sentencepiece

from tests.tokenization.test_tokenizers_sentencepiece import train
from zoo.errors import MissingExtraError
from zoo.tokenization import load_tokenizer
from zoo.tokenization.chinese import jieba_segmenter

TEXTS = [
    "面包师黎明即起，去看小船是否还浮在水上。",
    "今天天气很好。\n我们 去公园散步吧！",
    "CPM 是一个中文语言模型，有 26 亿参数。",
    "第一行\n\n第三行  两个空格",
    "",
]
SYMBOLS = str.maketrans(" \n", "\u2582\u2583")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("cpm")
    words = [" ".join(word.translate(SYMBOLS) for word in jieba.cut(text)) for text in TEXTS[:4]]
    train(
        place / "spiece",
        words * 20,
        model_type="unigram",
        vocab_size=110,
        user_defined_symbols=["<cls>", "<sep>", "<pad>", "<mask>", "<eod>"],
        character_coverage=1.0,
    )
    return place


def test_ids_are_those_of_jiebas_words_in_sentencepiece(folder):
    tokenizer = load_tokenizer(folder, {"sentencepiece": "spiece.model", "rules": "cpm"})
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    for text in TEXTS:
        wanted = model.encode(" ".join(word.translate(SYMBOLS) for word in jieba.cut(text, cut_all=False)))
        assert tokenizer.encode(text).ids == wanted
        assert tokenizer.decode(wanted) == unicodedata.normalize("NFKC", text)
    assert tokenizer.special.pad == "<pad>"
    assert tokenizer.special.mask == "<mask>"
    whole = model.encode(TEXTS[1].translate(SYMBOLS))
    assert tokenizer.encode(TEXTS[1]).ids != whole, "words alone make a difference"


def test_a_saved_tokenizer_cuts_words_too(folder, tmp_path):
    tokenizer = load_tokenizer(folder, {"sentencepiece": "spiece.model", "rules": "cpm"})
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert again.encode(text).ids == tokenizer.encode(text).ids
        assert again.decode(again.encode(text).ids) == unicodedata.normalize("NFKC", text)


def test_a_folder_that_names_cpms_tokenizer_is_recognised(folder, tmp_path):
    (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CpmTokenizer"}')
    assert load_tokenizer(tmp_path).pre_step.name == "cpm"


def test_without_jieba_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MissingExtraError, match="chinese"):
        jieba_segmenter()
