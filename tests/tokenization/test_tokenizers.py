"""The wrapper, WordPiece, SMILES and tokenizer.json: held against transformers' BertTokenizer and
the models' own rules.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from zoo.errors import CheckpointError, ConfigError, InputError, UnknownNameError, ZooError
from zoo.tokenization import Tokenizer, load_tokenizer
from zoo.tokenization.arabic import ArabicCleaner
from zoo.tokenization.wordpiece import wordpiece

LETTERS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-éèüßñçøåÉαβγωжщя你好世界学习คำ日本語"
)
PIECES = [
    "hello",
    "world",
    "play",
    "##ing",
    "##ed",
    "un",
    "##able",
    "the",
    "The",
    "cafe",
    "café",
    "##é",
    "strasse",
    "Hello",
    "don",
    "hell",
]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory) -> Path:
    tokens = (
        SPECIALS
        + list(dict.fromkeys(LETTERS))
        + [f"##{letter}" for letter in dict.fromkeys(LETTERS) if letter.isalnum()]
        + PIECES
    )
    path = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    return path


def texts() -> st.SearchStrategy[str]:
    """Words of the vocabulary, letters it has, and any character at all, with all sorts of
    blanks.
    """
    words = st.sampled_from(
        [
            *PIECES,
            "unplayable",
            "HELLO",
            "[MASK]",
            "[SEP]",
            "İstanbul",
            "ΣΑΣ",
            "e\u0301",
            "\u00a0",
            "\u3000",
            "\t\n",
            "\u200b",
            "\ufffd",
            "\x00",
        ]
    )
    letters = st.text(st.sampled_from(LETTERS + "  "), max_size=12)
    anything = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
    return st.lists(words | letters | anything, max_size=8).map(" ".join)


OPTIONS = [
    (lower, accents, chinese) for lower in (True, False) for accents in (None, True, False) for chinese in (True, False)
]


@pytest.fixture(scope="session")
def wordpiece_pairs(vocab_file):
    ours = {
        o: load_tokenizer(
            vocab_file,
            {"wordpiece": "vocab.txt", "lower_case": o[0], "chinese": o[2]}
            | ({} if o[1] is None else {"strip_accents": o[1]}),
        )
        for o in OPTIONS
    }
    theirs = {
        o: BertTokenizer.from_pretrained(
            vocab_file.parent, do_lower_case=o[0], strip_accents=o[1], tokenize_chinese_chars=o[2]
        )
        for o in OPTIONS
    }
    return ours, theirs


@settings(max_examples=150, deadline=None)
@given(option=st.sampled_from(OPTIONS), text=texts(), pair=st.none() | texts().filter(bool))
def test_wordpiece_equals_transformers_on_random_text(wordpiece_pairs, option, text, pair):
    ours, theirs = (side[option] for side in wordpiece_pairs)
    expected = theirs(text, pair, return_token_type_ids=True)
    encoding = ours.encode(text, pair)
    assert encoding.ids == expected["input_ids"]
    assert encoding.type_ids == expected["token_type_ids"]
    assert ours.decode(encoding.ids) == theirs.decode(encoding.ids, skip_special_tokens=True)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(texts(), texts()), min_size=1, max_size=4),
    pairs=st.booleans(),
    length=st.integers(3, 24),
    fixed=st.booleans(),
)
def test_batches_are_cut_and_padded_like_transformers(wordpiece_pairs, rows, pairs, length, fixed):
    ours, theirs = (side[True, None, True] for side in wordpiece_pairs)
    first, second = [row[0] for row in rows], [row[1] for row in rows] if pairs else None
    padding = "max_length" if fixed else True
    batch = ours(first, second, max_length=length, padding=padding)
    expected = theirs(
        first,
        second,
        max_length=length,
        padding=padding,
        truncation=True,
        return_tensors="pt",
        return_token_type_ids=True,
    )
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids"]
    for name, tensor in batch.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, expected[name]), name


def test_lower_casing_follows_the_config_beside_then_the_letters_of_the_vocabulary(tmp_path):
    cased, uncased = [*SPECIALS, "Hello", "hello", "WORLD"], [*SPECIALS, "hello", "world"]
    for tokens, config, expected in [
        (cased, None, ["Hello"]),
        (uncased, None, ["hello"]),
        (cased, {"do_lower_case": True}, ["hello"]),
        (uncased, {"do_lower_case": False}, ["[UNK]"]),
    ]:
        (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
        (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        assert load_tokenizer(tmp_path).encode("Hello").tokens[1:-1] == expected


@pytest.mark.parametrize("behind", ["", " ", "\t ", " \r"])
def test_blanks_behind_the_lines_of_a_vocabulary_are_none_of_its_tokens(tmp_path, behind):
    tokens = [*SPECIALS, "hello", "the", "##re", "\u2028", "the", "world"]
    (tmp_path / "vocab.txt").write_text(
        "\ufeff" + "".join(f"{t}{behind}\n" for t in tokens), encoding="utf-8", newline=""
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("hello there world").ids == [2, 5, 9, 7, 10, 3]
    assert (tokenizer.vocab_size, tokenizer.pad_token_id) == (11, 0)
    assert tokenizer.token_to_id("\u2028") == 8  # a separator of Unicode that is an entry itself


@pytest.mark.parametrize("behind", ["", " ", "\t", "\r"])
def test_blanks_behind_merges_and_counts_change_nothing(tmp_path, behind):
    (tmp_path / "dict.txt").write_text(
        "".join(f"{w} 5{behind}\n" for w in ("a\u2028b", "the")), encoding="utf-8", newline=""
    )
    assert load_tokenizer(tmp_path).encode("the").ids == [0, 5, 2]
    vocab = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "abb"])}
    (tmp_path / "vocab.json").write_text("\ufeff" + json.dumps(vocab), encoding="utf-8")
    merges = "".join(line + behind + "\n" for line in ("#version: 0.2", "a b", "ab b"))
    (tmp_path / "merges.txt").write_text("\ufeff" + merges, encoding="utf-8", newline="")
    assert load_tokenizer(tmp_path).encode("abb").ids == [0, 7, 2]


def test_special_tokens_absent_from_the_vocabulary_get_no_new_id(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\nhello\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 4
    assert tokenizer.mask_token_id is None
    assert tokenizer.pad_token_id is None
    with pytest.raises(InputError, match="no padding token"):
        tokenizer(["hello", "hello hello"])


SMILES_VOCAB = [*SPECIALS, *"cCNOFnos()=#123.", "Cl", "Br", ">>", "[Na+]", "[C@H]", "%10", "~"]


def test_smiles_are_cut_into_atoms_bonds_and_brackets_with_case_kept(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(SMILES_VOCAB) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)  # recognised by its entries
    encoding = tokenizer.encode("Cc1ccC%10(=O)[Na+].[K+]>>Clc[MASK]Br")
    assert encoding.tokens == [
        "[CLS]",
        *"Cc1ccC",
        "%10",
        *"(=O)",
        "[Na+]",
        ".",
        "[UNK]",
        ">>",
        "Cl",
        "c",
        "[MASK]",
        "Br",
        "[SEP]",
    ]
    assert tokenizer.decode(tokenizer.encode("CC(=O)Cl>>c1ccN").ids) == "CC(=O)Cl>>c1ccN"


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [*SMILES_VOCAB[5:], "B", "l", "r", "[", "]", "%", "%(123)", "|", "x", " ", "@@", ">", "[nH]", "9", "%4"]
        ),
        max_size=20,
    )
)
def test_smiles_tokens_equal_the_rule_of_the_chemistry_models(tmp_path_factory, parts):
    path = tmp_path_factory.getbasetemp() / "smiles-vocab.txt"
    path.write_text("\n".join(SMILES_VOCAB) + "\n", encoding="utf-8")
    text = "".join(parts)
    # the same rule spelled as the longest token at each place, one alternative at a time
    two, one = ("Cl", "Br", ">>"), set("BCNOSPFIbcnosp().=#-+\\/:~@?>*$0123456789")
    expected, place = [], 0
    while place < len(text):
        bracket = re.match(r"\[[^\]]+\]", text[place:])
        ring = re.match(r"%\d\d", text[place:], re.ASCII)
        size = (
            len((bracket or ring)[0])
            if bracket or ring
            else 2
            if text.startswith(two, place)
            else int(text[place] in one)
        )
        expected += [text[place : place + size]] if size else []
        place += max(size, 1)
    known = set(SMILES_VOCAB)
    tokenizer = load_tokenizer(path, {"smiles": path.name, "pattern": "rxnmapper"})
    assert tokenizer.encode(text).tokens[1:-1] == [token if token in known else "[UNK]" for token in expected]


def test_a_saved_tokenizer_comes_back_the_same(vocab_file, tmp_path):
    tokenizer = load_tokenizer(vocab_file, {"wordpiece": "vocab.txt", "lower_case": True, "max_length": 77})
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == ["tokenizer.json", "zoo_tokenizer.json"]
    assert (again.special, again.inputs, again.max_length, again.vocab_size) == (
        tokenizer.special,
        tokenizer.inputs,
        77,
        tokenizer.vocab_size,
    )
    assert again.encode("Hello [MASK]!", "un").ids == tokenizer.encode("Hello [MASK]!", "un").ids


def test_the_padding_and_truncation_inside_a_tokenizer_json_are_arguments_here(vocab_file, tmp_path):
    backend = load_tokenizer(vocab_file, {"wordpiece": "vocab.txt"}).backend
    backend.enable_padding(length=50)
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer.encode("hello the world un").ids) == 6
    assert tokenizer("hello the world un")["input_ids"].shape == (1, 6)
    assert tokenizer.special.mask == "[MASK]"
    assert "token_type_ids" in tokenizer.inputs


def test_a_tokenizer_json_without_segments_makes_no_token_type_ids(tmp_path):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4}, unk_token="<unk>")
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert list(tokenizer("a", return_lengths=True)) == ["input_ids", "attention_mask", "lengths"]
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 1, None)


def test_bad_calls_are_refused_saying_why(vocab_file):
    tokenizer = load_tokenizer(vocab_file)
    for call, words in [
        (lambda: tokenizer([]), "no texts"),
        (lambda: tokenizer(["a", "b"], ["c"]), "2 texts and 1 pairs"),
        (lambda: tokenizer("a", max_length=1), "at least 2"),
        (lambda: tokenizer("a", padding="max_length"), "max_length"),
        (lambda: tokenizer("a", padding="left"), "'left'"),
        (lambda: tokenizer(["a", "a a"], padding=False), "equally long"),
        (lambda: tokenizer("a a a", max_length=3, truncation=False), "text 0 has 5 tokens"),
        (lambda: tokenizer("a", language="en"), "same for every language"),
        (lambda: tokenizer.encode(3), "got int"),
        (lambda: tokenizer.encode("\ud800"), "surrogate"),
        (lambda: tokenizer.decode([-1]), "-1"),
    ]:
        with pytest.raises(InputError, match=words):
            call()
    assert tokenizer.id_to_token(10**12) is None
    assert tokenizer.token_to_id("no such token") is None


def test_bad_files_and_specs_are_refused_saying_why(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("[UNK]\nhello\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"cls token '\[CLS\]'"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_tokenizer(tmp_path, {"json": "tokenizer.json"})
    with pytest.raises(ConfigError, match="names one kind"):
        load_tokenizer(tmp_path, {"vocab": "vocab.txt"})
    with pytest.raises(ConfigError, match="inside the folder"):
        load_tokenizer(tmp_path, {"wordpiece": "../vocab.txt"})
    with pytest.raises(UnknownNameError, match="lower_case"):
        load_tokenizer(tmp_path, {"wordpiece": "vocab.txt", "lowercase": True})
    with pytest.raises(ConfigError, match="must be bool, got 1"):
        load_tokenizer(tmp_path, {"wordpiece": "vocab.txt", "lower_case": 1})
    vocab.write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        load_tokenizer(tmp_path)
    vocab.unlink()
    with pytest.raises(CheckpointError, match="no tokenizer that is known"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ZooError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, zoo.tokenization; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_roles_are_special(vocab_file):
    tokenizer: Tokenizer = load_tokenizer(vocab_file)
    assert tokenizer.special_token_ids == {0, 1, 2, 3, 4}
    assert tokenizer.encode("hello").special_tokens_mask == [1, 0, 1]


# --- Arabic -----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet="اب ةـ\u064e\u06510٣a/@.!😀[]<>", max_size=30), st.booleans())
@settings(deadline=None, derandomize=True, max_examples=80)
def test_cleaned_arabic_has_no_vowel_marks_no_stretching_and_single_blanks(text, keep):
    cleaned = ArabicCleaner.of("bert-base-arabertv02", keep_emojis=keep)(text)
    assert not set(cleaned) & set("\u064e\u0651ـ٣/")
    assert cleaned == " ".join(cleaned.split())
    assert keep or "😀" not in cleaned
    assert "اااا" not in cleaned


def test_each_cleaning_of_arabic_is_that_of_its_model():
    text = "راسل me@x.com أو @user و/أو ٣٣٣٣ههههه"
    assert ArabicCleaner.of("bert-base-arabertv02")(text) == "راسل [بريد] أو [مستخدم] و - أو 3333 هه"
    assert ArabicCleaner.of("bert-base-arabertv01")(text) == "راسل [رابط] أو [مستخدم] و / أو ٣٣٣٣ هه"
    assert ArabicCleaner.of("bert-base-arabertv02", replace_addresses=False, insert_blanks=False)("@user!") == "@user!"
    with pytest.raises(ConfigError, match=r"'vowels'.*strip_vowels"):
        ArabicCleaner.of("bert-base-arabertv02", vowels=True)


LONG = st.lists(st.text("abcdexyz.", min_size=1, max_size=6), min_size=1, max_size=8)


@given(LONG, LONG, st.integers(5, 20), st.integers(0, 12), st.sampled_from(["left", "right"]))
def test_windows_cover_a_text_and_lead_back_to_its_characters(asked, words, length, overlap, side):
    characters = "abcdexyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), "ab", "."]
    tokenizer = wordpiece({token: number for number, token in enumerate(vocabulary)})
    tokenizer.truncation_side = side
    question, passage = " ".join(asked), " ".join(words)
    whole = tokenizer.backend.encode(passage, add_special_tokens=False)
    first = tokenizer.backend.encode(question, add_special_tokens=False).ids
    kept = min(len(first), (length - 3) // 2)  # a question takes at most half of what fits
    seen, offsets = {}, []
    for window in tokenizer.windows(question, passage, overlap=overlap, max_length=length):
        assert len(window.ids) <= length
        of = window.sequence_ids
        begin = window.special_tokens_mask.index(1, 1)
        assert window.ids[1:begin] == (first[:kept] if side == "right" else first[len(first) - kept :])
        offsets.append([offset for offset, s in zip(window.offsets, of, strict=True) if s == 1])
        seen |= {offset: i for i, offset, s in zip(window.ids, window.offsets, of, strict=True) if s == 1}
    assert seen == dict(zip(whole.offsets, whole.ids, strict=True))
    room = length - 3 - kept
    for before, after in pairwise(offsets):
        assert len(set(before) & set(after)) == min(overlap, room // 2)
    with pytest.raises(InputError, match="max_length=4 leaves no room for the text; it must be at least 5"):
        tokenizer.windows(question, passage, max_length=4)
