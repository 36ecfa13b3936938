"""What the JSON files beside a vocabulary say, held against what transformers makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from tests.tokenization.test_tokenizers_sentencepiece import ALBERT_FILE, SENTENCES, train
from zoo.errors import CheckpointError
from zoo.tokenization import load_tokenizer
from zoo.tokenization.bpe import byte_letters

TOKENS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "on",
    "mat",
    "paris",
    "Paris",
    "cafe",
    "caf",
]
TOKENS += ["##é", "[", "]", "e1", "/", "你", "好", "你好"]
TEXTS = ["the <e1> cat </e1> sat", "Paris café<E1>sat </e1>", "the[MASK] cat 你好", "  on   mat <ent>", "", "<e1>"]


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def bert(tmp_path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return tmp_path


def same(folder: Path, texts: list[str] = TEXTS, kind: str | None = None) -> None:
    theirs = (getattr(transformers, kind) if kind else transformers.AutoTokenizer).from_pretrained(folder)
    for ours in (load_tokenizer(folder), saved_and_loaded(folder)):
        for text in texts:
            assert ours.encode(text).ids == theirs(text)["input_ids"], (text, ours.encode(text).tokens)
        assert ours.vocab_size == len(theirs)
        assert ours.mask_token_id == theirs.mask_token_id


def saved_and_loaded(folder: Path) -> object:
    load_tokenizer(folder).save(folder / "saved")
    return load_tokenizer(folder / "saved")


ENTITY = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
FIRST = len(TOKENS)
ADDITIONS = {
    "added_tokens": {"added_tokens.json": {"</e1>": FIRST + 1, "<e1>": FIRST, "<ent>": FIRST + 2}},
    "special in the map": {
        "added_tokens.json": {"<e1>": FIRST, "</e1>": FIRST + 1},
        "special_tokens_map.json": {"extra_special_tokens": ["<e1>", "</e1>"]},
    },
    "decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "4": {**ENTITY, "content": "[MASK]", "normalized": False},
                str(FIRST): {**ENTITY, "content": "<e1>", "normalized": False, "lstrip": True, "rstrip": True},
                str(FIRST + 1): {**ENTITY, "content": "</e1>", "special": False, "normalized": True},
            }
        },
        "added_tokens.json": {"<ent>": FIRST},  # which the decoder replaces
    },
    "additional": {"tokenizer_config.json": {"additional_special_tokens": ["<e1>", "</e1>", "cat"]}},
    "extra": {"tokenizer_config.json": {"extra_special_tokens": ["<e1>"]}},
    "map": {"special_tokens_map.json": {"additional_special_tokens": ["<ent>"], "mask_token": "[MASK]"}},
}


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("files", ADDITIONS)
def test_tokens_beside_a_vocabulary_are_added_as_transformers_adds_them(bert, files, lower_case):
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
    for name, content in {"tokenizer_config.json": {}, **ADDITIONS[files]}.items():
        write(bert, name, {**config, **content} if name == "tokenizer_config.json" else content)
    same(bert)
    ours = load_tokenizer(bert)
    added = {token.content: index for index, token in ours.backend.get_added_tokens_decoder().items() if index >= FIRST}
    assert added, "nothing was added"
    (bert / "generic").mkdir()
    ours.backend.save(str(bert / "generic" / "tokenizer.json"))
    for name, content in ADDITIONS[files].items():  # a tokenizer.json that has the tokens already
        write(bert / "generic", name, content)
    assert load_tokenizer(bert / "generic").encode(TEXTS[0]).ids == ours.encode(TEXTS[0]).ids


def test_a_mask_token_that_only_the_added_tokens_name_is_the_mask(bert):
    (bert / "vocab.txt").write_text("\n".join(t for t in TOKENS if t != "[MASK]"), encoding="utf-8")
    assert load_tokenizer(bert).mask_token_id is None
    write(bert, "added_tokens.json", {"[MASK]": FIRST - 1})
    tokenizer = load_tokenizer(bert)
    assert tokenizer.mask_token_id == FIRST - 1
    assert FIRST - 1 in tokenizer.special_token_ids
    assert tokenizer("the[MASK]cat")["input_ids"].tolist() == [[2, 4, FIRST - 1, 5, 3]]


def test_tokens_added_to_a_sentencepiece_model_stand_whole_in_a_text(tmp_path):
    file = train(tmp_path / "sentencepiece", SENTENCES, model_type="unigram", vocab_size=700)
    file = file.rename(tmp_path / "sentencepiece.bpe.model")
    plain = load_tokenizer(file)
    first = plain.vocab_size
    write(tmp_path, "added_tokens.json", {"<Eé１>": first, "</E>": first + 1})  # which the table would change
    for tokenizer in (load_tokenizer(file), saved_and_loaded(tmp_path)):
        pieces = [plain.encode(text).ids[1:-1] for text in ("the old", "baker", "é river")]
        ids = tokenizer.encode("the old <Eé１> baker</E>é river").ids
        assert ids == [0, *pieces[0], first, *pieces[1], first + 1, *pieces[2], 2]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("added_tokens.json", {"<e1>": FIRST + 3}, f"ends at {FIRST - 1}.*must have the id {FIRST}"),
        ("added_tokens.json", {"cat": 9}, "the id 9, the vocabulary gives it 6"),
        ("added_tokens.json", {"<e1>": "9"}, "whole numbers"),
        ("added_tokens.json", {"<e1>": True}, "whole numbers"),
        ("added_tokens.json", {"": FIRST}, "must be a string"),
        ("added_tokens.json", {"\ud800": FIRST}, "Unicode"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "must be an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "the id 'x'"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: "a"}}, "the id '999"),
        ("tokenizer_config.json", {"extra_special_tokens": [["<e1>"]]}, "must be a string"),
        ("special_tokens_map.json", {"additional_special_tokens": {"a": {"content": None}}}, "must be a string"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"30": {"content": 3}}}, "must be a string"),
        ("tokenizer_config.json", {"additional_special_tokens": "<e1>"}, "must be a list"),
        ("tokenizer_config.json", {"truncation_side": "middle"}, "'left' or 'right', got 'middle'"),
        ("tokenizer_config.json", {"add_prefix_space": "yes"}, None),
    ],
)
def test_odd_files_beside_a_vocabulary_are_refused_by_name(bert, name, content, says):
    write(bert, name, content)
    if says is None:  # no option of a WordPiece tokenizer, so nobody reads it
        assert load_tokenizer(bert).encode("the").ids == [2, 5, 3]
        return
    with pytest.raises(CheckpointError, match=says) as error:
        load_tokenizer(bert)
    assert name in str(error.value)


def test_tens_of_thousands_of_added_tokens_are_added_at_once(bert):
    write(bert, "added_tokens.json", {f"<e{number}>": FIRST + number for number in range(20_000)})
    tokenizer = load_tokenizer(bert)
    assert tokenizer.encode("the<e19999>cat").ids == [2, 5, FIRST + 19_999, 6, 3]
    assert tokenizer.vocab_size == FIRST + 20_000


def test_a_vocabulary_with_a_token_twice_has_no_room_for_others(bert):
    (bert / "vocab.txt").write_text("\n".join([*TOKENS, "cat"]), encoding="utf-8")
    write(bert, "added_tokens.json", {"<e1>": FIRST + 1})
    with pytest.raises(CheckpointError, match="fewer tokens than ids"):
        load_tokenizer(bert)


def test_a_token_that_the_cleaning_of_a_family_would_change_is_refused(tmp_path):
    vocab = [*byte_letters(), *(f"{letter}</w>" for letter in byte_letters()), "<|startoftext|>", "<|endoftext|>"]
    write(tmp_path, "vocab.json", {token: index for index, token in enumerate(vocab)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    write(tmp_path, "added_tokens.json", {"<e1>": len(vocab)})
    assert load_tokenizer(tmp_path).encode("a<e1>").ids[-2] == len(vocab)
    write(tmp_path, "added_tokens.json", {"<E1>": len(vocab)})
    with pytest.raises(CheckpointError, match=r"adds '<E1>', which the step 'clip'.*'<e1>'"):
        load_tokenizer(tmp_path)


# --- options

OPTIONS = [
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True},
    {"do_lower_case": True, "strip_accents": None},
    {"do_lower_case": True, "tokenize_chinese_chars": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", ["BertTokenizer", "BertTokenizerFast", "ElectraTokenizer", "PreTrainedTokenizerFast"])
def test_the_config_wins_over_tokenizer_json_where_its_class_has_options(bert, options, kind):
    for lower in (True, False):
        transformers.BertTokenizer.from_pretrained(bert, do_lower_case=lower).save_pretrained(bert / "kept")
        config = json.loads((bert / "kept" / "tokenizer_config.json").read_text(encoding="utf-8"))
        config = {name: value for name, value in config.items() if name not in ("do_lower_case", "strip_accents")}
        write(bert / "kept", "tokenizer_config.json", {**config, "tokenizer_class": kind, **options})
        same(bert / "kept")


def test_what_the_config_leaves_out_stays_as_tokenizer_json_has_it(bert):
    transformers.BertTokenizer.from_pretrained(bert, do_lower_case=False).save_pretrained(bert / "kept")
    write(bert / "kept", "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 9})
    tokenizer = load_tokenizer(bert / "kept")
    assert tokenizer.encode("Paris").tokens == ["[CLS]", "Paris", "[SEP]"]
    assert tokenizer.max_length == 9


@pytest.mark.parametrize("options", [{"do_lower_case": False}, {"keep_accents": True}, {"add_prefix_space": False}])
def test_alberts_options_win_over_its_tokenizer_json(tmp_path, options):
    train(tmp_path / "spiece", SENTENCES, model_type="unigram", vocab_size=700, **ALBERT_FILE)
    transformers.AlbertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(tmp_path / "kept", "tokenizer_config.json", {**config, **options})
    same(tmp_path / "kept", ["The river", "größere Schäden", "École [MASK] rose"])


@pytest.mark.parametrize("space", [True, False])
@pytest.mark.parametrize("kind", ["RobertaTokenizer", "GPT2Tokenizer"])
def test_the_blank_in_front_is_put_where_the_config_asks_for_it(tmp_path, kind, space):
    special = ["<|endoftext|>"] if kind == "GPT2Tokenizer" else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocab = [*special, *byte_letters(), "Ġt", "he", "Ġthe"]
    write(tmp_path, "vocab.json", {token: index for index, token in enumerate(vocab)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\n", encoding="utf-8")
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": kind, "add_prefix_space": space})
    texts = ["the the", "  the", "the\nthe", "x"]
    same(tmp_path, texts, kind)
    getattr(transformers, kind).from_pretrained(tmp_path, add_prefix_space=not space).save_pretrained(tmp_path / "kept")
    config = json.loads((tmp_path / "kept" / "tokenizer_config.json").read_text(encoding="utf-8"))
    write(tmp_path / "kept", "tokenizer_config.json", {**config, "add_prefix_space": space})
    same(tmp_path / "kept", texts)


def test_a_text_loses_the_end_that_the_config_names(bert):
    write(bert, "tokenizer_config.json", {"do_lower_case": True, "truncation_side": "left"})
    theirs = transformers.BertTokenizer.from_pretrained(bert)
    first, second = ["the cat sat on mat", "the"], ["Paris", "on mat the cat sat the"]
    for ours in (load_tokenizer(bert), saved_and_loaded(bert)):
        for pairs in (None, second):
            for limit in (4, 5, 7):
                expected = theirs(first, pairs, max_length=limit, truncation=True, padding=True, return_tensors="pt")[
                    "input_ids"
                ]
                assert torch.equal(ours(first, pairs, max_length=limit)["input_ids"], expected)
    backend = tokenizers.Tokenizer.from_str(load_tokenizer(bert).backend.to_str())
    backend.enable_truncation(4, direction="left")
    (bert / "json").mkdir()
    backend.save(str(bert / "json" / "tokenizer.json"))
    assert load_tokenizer(bert / "json").truncation_side == "left"
    write(bert / "json", "tokenizer_config.json", {"truncation_side": "right"})
    assert load_tokenizer(bert / "json").truncation_side == "right"
    saved = json.loads((bert / "saved" / "zoo_tokenizer.json").read_text(encoding="utf-8"))
    write(bert / "saved", "zoo_tokenizer.json", {**saved, "truncation_side": "up"})
    with pytest.raises(CheckpointError, match="'left' or 'right', got 'up'"):
        load_tokenizer(bert / "saved")
