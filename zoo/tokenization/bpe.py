"""Byte-level BPE (GPT-2, RoBERTa, CLIP) and the word lists of fairseq."""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from zoo.errors import CheckpointError, missing_extra, unknown
from zoo.formats.inflating import inflate
from zoo.tokenization.files import (
    MAX_ENTRIES,
    MAX_FILE_BYTES,
    decode_utf8,
    guarded,
    read_bytes,
    read_lines,
    split_lines,
)
from zoo.tokenization.tokenizer import KNOWN_INPUTS, SpecialTokens, Tokenizer
from zoo.tokenization.wordpiece import add_special, bert_frame, present, roberta_frame

ROBERTA_SPECIAL = SpecialTokens(pad="<pad>", cls="<s>", sep="</s>", mask="<mask>", unk="<unk>")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 49_152 - 256 - 2  # the public merges file is longer; the vocabulary of 49,408 uses this many
CLIP_LENGTH = 77
# what CLIP cuts a text into: English endings, runs of letters, single digits, runs of other signs
CLIP_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
END_OF_WORD = "</w>"

Merge = tuple[str, str]


def parse_merges(lines: Sequence[str], what: str) -> list[Merge]:
    """One merge a line, in order; a header (``#version``) and what stands behind the second blank
    (a count) are dropped.
    """
    merges = []
    for number, line in enumerate(lines):
        if (number == 0 and "#version" in line) or not line.strip():
            continue
        parts = line.rstrip(" \t").split(" ")
        if len(parts) not in (2, 3) or not parts[0] or not parts[1]:
            raise CheckpointError(
                f"{what}: line {number + 1} is {line[:80]!r}; a merge is two pieces with a blank between"
            )
        merges.append((parts[0], parts[1]))
    if len(merges) > MAX_ENTRIES:
        raise CheckpointError(f"{what} has {len(merges):,} merges")
    return merges


def read_merges(path: Path) -> list[Merge]:
    return parse_merges(read_lines(path), str(path))


def read_gzip_lines(path: Path) -> list[str]:
    """The lines of a text file that may be gzipped, unpacked at most to the size allowed for any
    tokenizer file.
    """
    data: bytes | memoryview = read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = inflate(memoryview(data), MAX_FILE_BYTES, wbits=31, what=str(path))
        except zlib.error as error:
            raise CheckpointError(f"{path} is a broken gzip file: {error}") from error
    return split_lines(decode_utf8(bytes(data), str(path)), str(path))


def bpe_model(
    vocab: Mapping[str, int], merges: Sequence[Merge], what: str, *, unk: str | None = None, suffix: str | None = None
) -> models.BPE:
    for left, right in merges:
        for piece in (left, right, left + right):
            if piece not in vocab:
                raise CheckpointError(
                    f"{what}: the merge {left!r} {right!r} needs the piece {piece!r}, which the vocabulary lacks"
                )
    options = {"unk_token": unk, "end_of_word_suffix": suffix}
    given = {name: value for name, value in options.items() if value is not None}
    return guarded(
        f"{what} is no BPE model",
        CheckpointError,
        lambda: models.BPE(dict(vocab), list(merges), fuse_unk=False, **given),
    )


def gpt2(
    vocab: Mapping[str, int],
    merges: Sequence[Merge],
    *,
    add_prefix_space: bool = False,
    max_length: int | None = None,
    what: str = "the vocabulary",
) -> Tokenizer:
    """GPT-2: bytes as letters, merged inside words that keep the blank before them; nothing is
    added around a text. ``add_prefix_space``: the first word is one like the others.
    """
    backend = tokenizers.Tokenizer(bpe_model(vocab, merges, what))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    end = "<|endoftext|>" if "<|endoftext|>" in vocab else None
    if end:
        backend.add_special_tokens([tokenizers.AddedToken(end, special=True, normalized=False)])
    return Tokenizer(backend, special=SpecialTokens(sep=end, unk=end), inputs=KNOWN_INPUTS[:2], max_length=max_length)


def roberta(
    vocab: Mapping[str, int],
    merges: Sequence[Merge],
    *,
    add_prefix_space: bool = False,
    special: SpecialTokens = ROBERTA_SPECIAL,
    max_length: int | None = None,
    what: str = "the vocabulary",
) -> Tokenizer:
    """RoBERTa: GPT-2's pieces in another id order; <s> a </s>, or <s> a </s></s> b </s>, without
    segments. ``add_prefix_space``: the first word is one like the others.
    """
    special = present(vocab, special, what)
    backend = tokenizers.Tokenizer(bpe_model(vocab, merges, what))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = roberta_frame(special, vocab)
    add_special(backend, special, mask_takes_space=True)
    return Tokenizer(backend, special=special, inputs=KNOWN_INPUTS[:2], max_length=max_length)


# --- fairseq


def read_fairseq_dictionary(path: Path) -> list[str]:
    """The symbols of a ``dict.txt``, one ``symbol count`` a line, in file order."""
    symbols = []
    for number, line in enumerate(read_lines(path)):
        line = line.rstrip(" \t")
        symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not count.lstrip("-").isdecimal():
            raise CheckpointError(
                f"{path}: line {number + 1} is {line[:80]!r}; a line of a fairseq dictionary is a symbol, a blank and "
                "a count"
            )
        symbols.append(symbol)
    if not symbols:
        raise CheckpointError(f"{path} is empty")
    if len(set(symbols)) != len(symbols):
        raise CheckpointError(f"{path} lists a symbol twice")
    return symbols


def fairseq_vocabulary(symbols: Sequence[str], mask: bool = True) -> dict[str, int]:
    """fairseq's ids: <s> <pad> </s> <unk>, the dictionary in its order, <mask> last."""
    order = ["<s>", "<pad>", "</s>", "<unk>", *symbols, *(["<mask>"] if mask else [])]
    vocab = {symbol: index for index, symbol in enumerate(order)}
    if len(vocab) != len(order):
        twice = next(symbol for symbol in order if order.count(symbol) > 1)
        raise CheckpointError(f"the dictionary lists {twice!r}, which fairseq adds by itself")
    return vocab


def reorder(gpt2_vocab: Mapping[str, int], symbols: Sequence[str], what: str) -> dict[str, int]:
    """RoBERTa's ids from GPT-2's: the symbols of its dictionary are GPT-2 ids written as
    numbers.
    """
    pieces = {index: piece for piece, index in gpt2_vocab.items()}
    named = []
    for symbol in symbols:
        if symbol.isascii() and symbol.isdecimal() and int(symbol) not in pieces:
            raise CheckpointError(f"{what} lists the GPT-2 id {symbol}, which the vocabulary of {len(pieces):,} lacks")
        named.append(pieces[int(symbol)] if symbol.isascii() and symbol.isdecimal() else symbol)
    if len(set(named)) != len(named):
        raise CheckpointError(f"{what} lists a GPT-2 id twice")
    return fairseq_vocabulary(named)


def word_list(
    symbols: Sequence[str], *, level: str = "word", mask: bool = True, max_length: int | None = None
) -> Tokenizer:
    """A fairseq model without subwords: the symbols are words between blanks, or single characters
    (proteins).
    """
    if level not in ("word", "character"):
        raise unknown("level of a fairseq dictionary", level, ("word", "character"))
    vocab = fairseq_vocabulary(symbols, mask)
    special = present(vocab, ROBERTA_SPECIAL, "the dictionary")
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    if level == "word":
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        blanks = pre_tokenizers.Split(tokenizers.Regex(r"\s+"), behavior="removed")
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [blanks, pre_tokenizers.Split(tokenizers.Regex(r"."), behavior="isolated")]
        )
        backend.decoder = decoders.Fuse()
    backend.post_processor = roberta_frame(special, vocab)
    add_special(backend, special)
    return Tokenizer(backend, special=special, inputs=KNOWN_INPUTS[:2], max_length=max_length)


# --- CLIP


class CleanCaption:
    """CLIP's cleaning: mend broken encodings (ftfy), undo HTML twice, join blanks, lower case.

    ftfy is asked only where it could change something: a text of printable ASCII characters is
    whole as it is.
    """

    name = "clip"
    takes_language = False

    def __call__(self, text: str, language: str | None = None) -> str:
        if not text.isascii() or not text.translate(_BLANKS).isprintable():
            text = _mend(text)
        text = html.unescape(html.unescape(text))
        return re.sub(r"\s+", " ", text).strip().lower()

    def options(self) -> dict[str, object]:
        return {}


_BLANKS = str.maketrans("\n\t\r", "   ")


def _mend(text: str) -> str:
    try:
        import ftfy
    except ImportError as error:
        raise missing_extra(
            "CLIP's cleaning of text with other than printable ASCII characters", "ftfy", "clip"
        ) from error
    fixed: str = ftfy.fix_text(text)
    return fixed


def byte_letters() -> list[str]:
    """The printable stand-in of each byte, in the order that CLIP's vocabulary lists them:
    printable bytes first, then the rest.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def clip_vocabulary(merges: Sequence[Merge]) -> dict[str, int]:
    """CLIP's ids: the bytes, the bytes that end a word, one for each merge, start and end of text;
    a piece listed twice has its last id.
    """
    letters = byte_letters()
    pieces = [
        *letters,
        *(letter + END_OF_WORD for letter in letters),
        *(left + right for left, right in merges),
        CLIP_START,
        CLIP_END,
    ]
    return {piece: index for index, piece in enumerate(pieces)}


def clip(
    vocab: Mapping[str, int],
    merges: Sequence[Merge],
    *,
    max_length: int | None = CLIP_LENGTH,
    what: str = "the vocabulary",
) -> Tokenizer:
    """CLIP: cleaned text, words of bytes with an end mark, BPE; <|startoftext|> a <|endoftext|>,
    zeros behind.

    A text that is cut keeps the end token in the last place, where the model looks for it.
    """
    special = present(vocab, SpecialTokens(cls=CLIP_START, sep=CLIP_END, unk=CLIP_END, pad_id=0), what)
    backend = tokenizers.Tokenizer(bpe_model(vocab, merges, what, unk=CLIP_END, suffix=END_OF_WORD))
    words = pre_tokenizers.Split(tokenizers.Regex(CLIP_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(END_OF_WORD, " ")])
    backend.post_processor = bert_frame(special, vocab)
    add_special(backend, special)
    roles = SpecialTokens(cls=CLIP_START, sep=CLIP_END, unk=CLIP_END, pad_id=0)
    return Tokenizer(backend, special=roles, pre_step=CleanCaption(), inputs=KNOWN_INPUTS[:2], max_length=max_length)
