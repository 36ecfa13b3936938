"""Chinese text in words ahead of SentencePiece, as CPM reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

from tokenizers import decoders

from zoo.errors import missing_extra
from zoo.tokenization.sentence_piece import LongestMatch, build, longest_match, vocabulary
from zoo.tokenization.sentencepiece_file import SentencePieceModel
from zoo.tokenization.tokenizer import KNOWN_INPUTS, SpecialTokens, Tokenizer

Segmenter = Callable[[str], Iterable[str]]
BLANKS = {" ": "\u2582", "\n": "\u2583"}  # what CPM writes for a space and for a new line


def jieba_segmenter() -> Segmenter:
    """Chinese words by the package jieba; raises MissingExtraError where it is not installed."""
    try:
        import jieba  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise missing_extra("cutting Chinese into words", "jieba", "chinese") from None
    return lambda text: jieba.cut(text)


class SpacedWords:
    """CPM's pre-step: the words that jieba finds, with spaces between them; a space or a new line of
    the text becomes a symbol. ``then``: what the SentencePiece model does to a text before it.
    """

    name = "cpm"
    takes_language = False

    def __init__(self, then: LongestMatch | None) -> None:
        self.then, self.symbols = then, str.maketrans(BLANKS)

    @cached_property
    def segment(self) -> Segmenter:
        return jieba_segmenter()

    def __call__(self, text: str, language: str | None = None) -> str:
        words = " ".join(word.translate(self.symbols) for word in self.segment(text))  # eq: words
        return words if self.then is None else self.then(words)

    def options(self) -> dict[str, object]:
        return {"keep": None} if self.then is None else self.then.options()


def cpm(model: SentencePieceModel, *, special: SpecialTokens, max_length: int | None = None) -> Tokenizer:
    """CPM: words first, then the model as it is, without a frame. Decoding drops the spaces and writes
    the symbols for spaces and new lines back.
    """
    backend = build(model, vocabulary(model), model.unk_id)
    written = [decoders.Replace(" ", ""), *(decoders.Replace(symbol, blank) for blank, symbol in BLANKS.items())]
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), *written])  # type: ignore[arg-type]
    step = SpacedWords(longest_match(model))
    return Tokenizer(backend, special=special, pre_step=step, inputs=KNOWN_INPUTS[:2], max_length=max_length)
