"""XLM: Moses' steps for the text's language, then BPE inside words, then the vocabulary.

The first two are the pre-step: a text becomes its pieces with blanks between (``lo w er</w>``). The
``tokenizers.Tokenizer`` behind it looks pieces up. It cannot do the BPE itself: XLM's merges go
through pieces that its vocabulary does not list, and only a piece that is left at the end may be
unknown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from zoo.errors import CheckpointError, InputError, missing_extra, unknown
from zoo.tokenization.bpe import END_OF_WORD, Merge
from zoo.tokenization.files import guarded, read_lines
from zoo.tokenization.tokenizer import KNOWN_INPUTS, SpecialTokens, Tokenizer
from zoo.tokenization.wordpiece import bert_frame

FIRST = ("<s>", "</s>", "<pad>", "<unk>", *(f"<special{index}>" for index in range(10)))
UNSEGMENTED = {"zh": "Chinese", "ja": "Japanese", "th": "Thai"}  # the original cuts them with tools of their own
CACHE_SIZE = 100_000

# Full-width and typographic signs that Moses replaces before anything else
SIGNS = str.maketrans(
    {
        **dict(zip("，、∶：？！；（）％～０１２３４５６７８９", ",,::?!;()%~0123456789", strict=True)),
        **dict.fromkeys("“”《》「」", '"'),
        **dict(zip("〈〉【】━’", "<>[]-'", strict=True)),
        "…": "...",
    }
)
# Romanian as in WMT 2016: cedillas, commas and vowel marks dropped
ROMANIAN = str.maketrans("ŞşŢţȘșȚțĂăÂâÎî", "SsTtSsTtAaAaIi")


class XlmSteps:
    """Text -> BPE pieces with blanks between.

    ``language`` is the default of a call; ``lower_case`` drops case and accents, as the models of
    up to 15 languages want it.
    """

    name = "xlm"
    takes_language = True

    def __init__(self, merges: Sequence[Merge], language: str = "en", lower_case: bool = True):
        self.merges = list(merges)
        self.language = language
        self.lower_case = lower_case
        self._ranks = {merge: rank for rank, merge in enumerate(self.merges)}
        self._cache: dict[str, str] = {}
        self._moses: dict[str, tuple[Any, Any]] = {}
        self._special = re.compile("(" + "|".join(map(re.escape, FIRST)) + ")")

    def __call__(self, text: str, language: str | None = None) -> str:
        language = language or self.language
        pieces = []
        for index, part in enumerate(self._special.split(text)):
            if index % 2:
                pieces.append(part)
            else:
                pieces += [self._merge(word) for word in self.words(part, language)]
        return " ".join(pieces)

    def options(self) -> dict[str, object]:
        return {
            "language": self.language,
            "lower_case": self.lower_case,
            "merges": [" ".join(merge) for merge in self.merges],
        }

    def words(self, text: str, language: str) -> list[str]:
        """Moses' words of a text: signs replaced, punctuation normalized, control characters
        dropped, tokenized.
        """
        if not text.strip():
            return []
        if language in UNSEGMENTED:
            raise InputError(
                f"language={language!r}: {UNSEGMENTED[language]} needs a word segmenter, which is not part of the zoo; "
                "segment the text yourself, put blanks between the words, and pass a language that is written with "
                "blanks"
            )
        normalizer, tokenizer = self._moses_of(language)
        text = normalizer.normalize(self.plain_signs(text))
        text = "".join(character for character in text if not unicodedata.category(character).startswith("C"))
        if language == "ro":
            text = text.translate(ROMANIAN)
        text = " ".join(tokenizer.tokenize(text, return_str=False, escape=False))
        if self.lower_case:
            decomposed = unicodedata.normalize("NFD", text.lower())
            text = "".join(character for character in decomposed if unicodedata.category(character) != "Mn").lower()
        return [word for word in text.split(" ") if word]

    @staticmethod
    def plain_signs(text: str) -> str:
        """The text with typographic and full-width signs replaced by plain ones."""
        return re.sub(r"([。．])\s*", ". ", text).translate(SIGNS)

    def _moses_of(self, language: str) -> tuple[Any, Any]:
        if language not in self._moses:
            try:
                import sacremoses
            except ImportError as error:
                raise missing_extra("XLM's tokenizer (Moses' steps for each language)", "sacremoses", "xlm") from error
            self._moses[language] = (
                sacremoses.MosesPunctNormalizer(lang=language),
                sacremoses.MosesTokenizer(lang=language),
            )
        return self._moses[language]

    def _merge(self, word: str) -> str:
        """The pieces of one word: again and again the pair that was learnt first, everywhere in the
        word.
        """
        if word in self._cache:
            return self._cache[word]
        symbols = [*word[:-1], word[-1] + END_OF_WORD]
        while len(symbols) > 1:
            pairs = {pair for pair in pairwise(symbols) if pair in self._ranks}
            if not pairs:
                break
            best = min(pairs, key=self._ranks.__getitem__)
            merged, place = [], 0
            while place < len(symbols):
                size = 2 if tuple(symbols[place : place + 2]) == best else 1
                merged.append("".join(symbols[place : place + size]))
                place += size
            symbols = merged
        if len(self._cache) >= CACHE_SIZE:
            self._cache.clear()
        self._cache[word] = " ".join(symbols)
        return self._cache[word]


def read_original_vocabulary(path: Path) -> dict[str, int]:
    """XLM's own ``vocab`` file, ``piece count`` a line, ids from 14 on; ``lo@@`` goes on, ``low``
    ends a word and becomes ``low</w>``.
    """
    vocab = {token: index for index, token in enumerate(FIRST)}
    for number, line in enumerate(read_lines(path)):
        piece, _, count = line.rstrip(" \t").rpartition(" ")
        if not piece or not count.isdecimal():
            raise CheckpointError(f"{path}: line {number + 1} is {line[:80]!r}; a line is a piece, a blank and a count")
        if piece in FIRST:
            continue
        vocab.setdefault(piece.removesuffix("@@") if piece.endswith("@@") else piece + END_OF_WORD, len(vocab))
    if len(vocab) == len(FIRST):
        raise CheckpointError(f"{path} lists no pieces")
    return vocab


def xlm(
    vocab: Mapping[str, int],
    merges: Sequence[Merge],
    *,
    language: str = "en",
    lower_case: bool = True,
    ends: str = "hub",
    max_length: int | None = None,
    what: str = "the vocabulary",
) -> Tokenizer:
    """``ends``: the original puts </s> on both ends of a text, the hub's tokenizers <s> in front
    and </s> behind.
    """
    if ends not in ("hub", "original"):
        raise unknown("kind of ends", ends, ("hub", "original"))
    missing = [token for token in ("<s>", "</s>", "<pad>", "<unk>", "<special1>") if token not in vocab]
    if missing:
        raise CheckpointError(f"{what} lacks {', '.join(missing)}, so it is no vocabulary of XLM")
    special = SpecialTokens(
        pad="<pad>", cls="</s>" if ends == "original" else "<s>", sep="</s>", mask="<special1>", unk="<unk>"
    )
    backend = tokenizers.Tokenizer(
        guarded(f"{what} is no vocabulary", CheckpointError, lambda: models.WordLevel(dict(vocab), unk_token="<unk>"))
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    backend.post_processor = bert_frame(special, vocab)
    backend.add_special_tokens(
        [tokenizers.AddedToken(token, special=True, normalized=False) for token in FIRST if token in vocab]
    )
    return Tokenizer(
        backend,
        special=special,
        pre_step=XlmSteps(merges, language, lower_case),
        inputs=KNOWN_INPUTS[:2],
        max_length=max_length,
    )
