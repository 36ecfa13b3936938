"""Files that are broken or forged: whatever happens, a ZooError says so, soon, and without a crash
of the library beneath.
"""

from __future__ import annotations

import base64
import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from zoo.errors import CheckpointError, ZooError
from zoo.tokenization import load_tokenizer
from zoo.tokenization.sentencepiece_file import parse_sentencepiece, rules_of

ROUNDS = int(os.environ.get("ZOO_TOKENIZER_FUZZ", "60"))  # mutated files of each kind; set it higher for a long run
SENTENCES = [
    "the old baker lost 12 sacks, and £450",
    "der Bäcker stand früh auf",
    "пекарь встал на рассвете",
    "面包师黎明即起",
] * 3


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def message(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def piece(text: str, score: float = 0.0, kind: int = 1) -> bytes:
    return message(
        1, message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + varint(3 << 3) + varint(kind)
    )


TINY = (
    piece("<unk>", kind=2)
    + piece("<s>", kind=3)
    + piece("</s>", kind=3)
    + piece("▁", -1.0)
    + piece("a", -2.0)
    + piece("▁a", -1.5)
)


def trie(units: list[int], strings: bytes = b"x\0") -> bytes:
    units = units + [0] * (-len(units) % 256)
    return struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + strings


def test_a_model_written_by_hand_is_read():
    model = parse_sentencepiece(TINY + message(3, b"\x18\x00"))  # add_dummy_prefix = false
    assert model.pieces == ("<unk>", "<s>", "</s>", "▁", "a", "▁a")
    assert model.types[:3] == (2, 3, 3)
    assert not model.add_dummy_prefix
    assert model.remove_extra_whitespaces


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ("no pieces", b""),
        ("claims", TINY[:-3]),
        ("ten bytes", b"\xff" * 11),
        ("wire type 3", b"\x0b"),
        ("number 0", b"\x02\x00"),
        ("claims 5 bytes", b"\x0a\x05"),
        ("claims", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("lists a piece twice", TINY + piece("a")),
        ("piece 6 has 0 characters", TINY + piece("")),
        ("5000 characters", TINY + piece("b" * 5000)),
        ("score nan", TINY + piece("b", float("nan"))),
        ("score inf", TINY + piece("b", float("inf"))),
        ("type 9", TINY + piece("b", kind=9)),
        ("has 2", TINY + piece("?", kind=2)),
        ("model type 4", TINY + message(2, b"\x18\x04")),
        ("0 byte pieces", TINY + message(2, varint(35 << 3) + b"\x01")),
        ("escape_whitespaces", TINY + message(3, b"\x28\x00")),
        ("not UTF-8", TINY + message(1, message(1, b"\xff"))),
        ("2 bytes", TINY + message(3, message(2, b"ab"))),
        ("claims", TINY + message(3, message(2, struct.pack("<I", 2**31) + b"abc\0"))),
        ("outside itself", TINY + message(3, message(2, trie([0x1FFFFF << 10])))),
        ("no end", TINY + message(3, message(2, trie([0], b"x")))),
    ],
)
def test_forged_models_are_refused_by_name(words, data):
    with pytest.raises(CheckpointError, match=words):
        parse_sentencepiece(data)


def test_a_table_that_points_outside_or_goes_in_circles_is_refused():
    leaf = [0] * 256
    leaf[0] = 1 << 10  # the root's children lie at 0 ^ 1 ^ byte
    leaf[1 ^ ord("a")] = ord("a") | 0x100 | ((1 ^ ord("a") ^ 200) << 10)  # a key ends here, its value at 200
    leaf[200] = 0x80000000 | 0
    assert dict(rules_of(trie(leaf))) == {"a": "x"}
    leaf[200] = 0x80000000 | 77
    with pytest.raises(CheckpointError, match="outside its replacements"):
        rules_of(trie(leaf))
    circle = [0] * 256
    for byte in range(1, 256):
        circle[byte] = byte | byte << 10  # every unit leads back to the first block: endless keys
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="ways through it"):
        rules_of(trie(circle))
    assert time.monotonic() - started < 20


def test_a_forged_table_inside_a_tokenizer_json_is_met_when_it_is_read(tmp_path):
    blob = base64.b64encode(trie([0x1FFFFF << 10])).decode()
    content = {
        **dict.fromkeys(("truncation", "padding", "pre_tokenizer", "post_processor", "decoder")),
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": blob}]},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="outside itself"):
        load_tokenizer(tmp_path)


def originals(folder: Path) -> dict[str, tuple[bytes, dict[str, object]]]:
    """One good file of each kind with the spec that reads it."""
    result: dict[str, tuple[bytes, dict[str, object]]] = {}
    for kind, rule in (("unigram", "nmt_nfkc"), ("bpe", "identity")):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_prefix=str(folder / kind),
            model_type=kind,
            vocab_size=90,
            hard_vocab_limit=False,
            minloglevel=2,
            normalization_rule_name=rule,
        )
        result[f"{kind}.model"] = (
            (folder / f"{kind}.model").read_bytes(),
            {"sentencepiece": f"{kind}.model", "rules": "plain"},
        )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##n", "a", "b", "é", "面"]
    result["vocab.txt"] = ("\n".join(words).encode(), {"wordpiece": "vocab.txt"})
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    result["tokenizer.json"] = (backend.to_str().encode(), {"json": "tokenizer.json"})
    result["vocab.json"] = (
        json.dumps(
            {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "a", "b", "ab", "Ġ", "Ġa", "<mask>"])}
        ).encode(),
        {"bpe": ["vocab.json", "merges.txt"], "rules": "roberta"},
    )
    result["merges.txt"] = (
        b"#version: 0.2\na b\n\xc4\xa0 a\n",
        {"bpe": ["vocab.json", "merges.txt"], "rules": "roberta"},
    )
    result["dict.txt"] = (b"A 10\nC 9\nD 8\n", {"fairseq": "dict.txt"})
    result["tokenizer_config.json"] = (
        b'{"do_lower_case": true, "model_max_length": 512, "pad_token": "[PAD]"}',
        {"wordpiece": "vocab.txt"},
    )
    return result


def mutate(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(len(changed) + 1)
        way = draw.randrange(6)
        if way == 0 and changed:
            changed[min(place, len(changed) - 1)] ^= 1 << draw.randrange(8)
        elif way == 1:
            del changed[place:]
        elif way == 2:
            del changed[place : place + draw.randrange(1, 9)]
        elif way == 3:
            changed[place:place] = draw.choice(
                (b"\xff", b"\x80", b"\0", b'"', b"{", b"[", b"\n", b"1e999", b"-1", b"null", b"\xed\xa0\x80")
            )
        elif way == 4:
            changed[place:place] = changed[max(0, place - draw.randrange(1, 40)) : place]
        elif changed:
            changed[min(place, len(changed) - 1)] = draw.choice((0, 0x7F, 0x80, 0xFF))
    return bytes(changed)


def test_mutated_files_are_read_or_refused_with_a_zoo_error(tmp_path):
    good = originals(tmp_path)
    draw = random.Random(1)
    outcomes = {"read": 0, "refused": 0}
    for name, (data, spec) in good.items():
        if name == "unigram.model":  # half of its bytes are one table; strike the rest and the table's head as often
            places = [data.index(b"nmt_nfkc"), len(data)]
        for round_ in range(
            ROUNDS // 4 if name == "unigram.model" else ROUNDS
        ):  # its table takes half a second to check
            for other, (content, _) in good.items():
                (tmp_path / other).write_bytes(content)
            if name == "unigram.model" and round_ % 2:
                cut = places[0] + draw.randrange(60)
                (tmp_path / name).write_bytes(mutate(data[:cut], draw) + data[cut:])
            else:
                (tmp_path / name).write_bytes(mutate(data, draw))
            try:
                tokenizer = load_tokenizer(tmp_path, spec)
                for text in ("the ab ń e\u0301\u0302 가 面\r\n a", "ＡＢ①"):
                    tokenizer.encode(text, "a")
                outcomes["read"] += 1
            except ZooError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > ROUNDS, outcomes


def test_a_panic_of_the_library_becomes_a_zoo_error():
    from zoo.tokenization.files import guarded

    class PanicException(BaseException):
        """What the library raises when its own code gives up; it is no Exception."""

    def panic() -> None:
        raise PanicException("index out of bounds")

    with pytest.raises(CheckpointError, match="index out of bounds"):
        guarded("the file", CheckpointError, panic)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded("the file", CheckpointError, stop)


def test_a_file_too_large_for_a_tokenizer_is_not_read(tmp_path):
    with open(tmp_path / "vocab.txt", "wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(CheckpointError, match="of such a file are read"):
        load_tokenizer(tmp_path)


def test_a_zip_bomb_of_merges_is_not_unpacked(tmp_path):
    code = (
        "import sys; from pathlib import Path; from zoo.errors import CheckpointError; from zoo.tokenization import "
        "load_tokenizer\n"
        "folder = Path(sys.argv[1])\n"
        "try:\n    load_tokenizer(folder, {'clip': 'bomb.gz'})\nexcept CheckpointError as error:\n    print(error)\n"
    )
    import zlib

    packer = zlib.compressobj(9, wbits=31)
    block = b"\0" * 2**24
    data = b"".join(packer.compress(block) for _ in range(40)) + packer.flush()
    (tmp_path / "bomb.gz").write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "would grow from" in result.stdout, result.stderr
