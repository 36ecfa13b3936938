"""SentencePiece models as tokenizers: plain, under ALBERT's rules, or with the id order of fairseq
(XLM-R).

A ``.model`` holds pieces with scores, the algorithm (unigram or BPE), and its own normalizer: a
table of longest matches (``precompiled_charsmap``), whether runs of blanks collapse, whether a
blank is put in front. All of it is honored here.

The results equal those of the ``sentencepiece`` library, but for these gaps:

- control pieces (``<s>``, ``[MASK]``) are recognised inside a text, which then goes on as if it
  began anew; the library never sees them in a text;
- the table is applied once by the library; here the ``Precompiled`` normalizer follows the exact
  step, so where a replacement and the next character together match again ("\ufb01" + circumflex ->
  "fi" + circumflex -> "f\u00ee") it is applied twice. This is the cause of all 102 differences in
  20,000 strings drawn from odd characters; text in 532 languages holds none;
- unigram: where two cuts score alike to seven digits, single precision (the library) and double
  precision may prefer different ones: 2 of 61,576 paragraphs;
- BPE with user-defined symbols: a word that is spelled as an unused, byte or unknown piece is that
  piece where the library cuts it;
- BPE: where two ways to build the same piece overlap, the library takes the leftmost and
  ``tokenizers`` the one listed first: none seen.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from zoo.errors import CheckpointError, InputError, unknown
from zoo.tokenization.files import guarded
from zoo.tokenization.sentencepiece_file import (
    CONTROL,
    NORMAL,
    SPACE,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
)
from zoo.tokenization.tokenizer import KNOWN_INPUTS, SpecialTokens, Tokenizer
from zoo.tokenization.wordpiece import add_special, bert_frame, present, roberta_frame

MAX_CUTS = 20_000_000  # places where pieces may be joined; the largest public model has 2,000,000
NEVER = 100.0  # what a piece loses that must lose against its parts
CUT = "\ufdd0"  # no character, and never one; DigitComma marks a place with it
COMMAS = re.compile("[,\ufe10\ufe50\uff0c]")  # what becomes a comma


class LongestMatch:
    """The pre-step of a SentencePiece model: its table by the longest match at each place, as the
    SentencePiece library applies it.

    The ``Precompiled`` normalizer of ``tokenizers``, which follows, goes by grapheme clusters and
    takes the shortest match instead: on a letter with two marks, or on Hangul written in parts, it
    is wrong, and on text that went through this step it has nothing left to do. ``keep`` lists what
    is not touched: special tokens and user-defined symbols.
    """

    name = "sentencepiece"
    takes_language = False

    def __init__(self, rules: Mapping[str, str], keep: Iterable[str] = ()):
        self.rules = rules
        self.keep = tuple(sorted(keep, key=lambda text: (-len(text), text)))
        self.singles = frozenset(key for key in rules if len(key) == 1)
        self.seconds = frozenset(key[1] for key in rules if len(key) > 1)
        self.longest: dict[str, int] = {}
        for key in filter(None, rules):
            self.longest[key[0]] = max(self.longest.get(key[0], 0), len(key))

    def __call__(self, text: str, language: str | None = None) -> str:
        if text.isascii() and "\r" not in text:
            return text  # one character is one cluster here, so the table that follows is right by itself
        characters = set(text)
        singles, seconds = characters & self.singles, characters & self.seconds
        if not singles and not seconds:
            return text
        kept = [piece for piece in self.keep if piece in text]
        ways = [re.escape(piece) for piece in kept]
        ways += [f"[{re.escape(''.join(sorted(singles)))}]"] if singles else []
        ways += [f".(?=[{re.escape(''.join(sorted(seconds)))}])"] if seconds else []
        candidates = re.compile("|".join(ways), re.DOTALL)

        result: list[str] = []
        done, place = 0, 0
        while (match := candidates.search(text, place)) is not None:
            start, place = match.span()
            if match[0] in kept:
                continue
            for size in range(min(self.longest.get(text[start], 0), len(text) - start), 0, -1):
                replacement = self.rules.get(text[start : start + size])
                if replacement is not None:
                    result += [text[done:start], replacement]
                    done = place = start + size
                    break
        return "".join(result) + text[done:]

    def options(self) -> dict[str, object]:
        return {"keep": list(self.keep)}


class DigitComma:
    """ALBERT's pre-step: where the model would give a piece that ends in a digit and a comma
    ("5,"), the comma stands alone.

    As in the original, the model is asked first, and what stands before the comma in such a piece
    is asked again. The places where the text must be cut are marked, and the
    ``tokenizers.Tokenizer`` behind this step cuts there. Without the step its pieces are those of
    today's ``AlbertTokenizer`` in transformers, which knows no such rule.
    """

    name = "albert"
    takes_language = False

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend

    def __call__(self, text: str, language: str | None = None) -> str:
        text = text.replace(CUT, "")
        if not COMMAS.search(text):
            return text
        cuts: set[int] = set()
        encoding = self._ask(text)
        for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
            if len(token) < 2 or token[-1] != "," or not token[-2].isdigit():
                continue
            number = token[:-1].replace(SPACE, "")
            place = end - 1 - len(number)
            if place < start:
                continue  # characters that the normalizer made several of cannot be cut
            cuts |= {end - 1, end}
            if token[0] != SPACE:
                for piece in self._ask(number).tokens:
                    cuts.add(place)
                    place += len(piece.replace(SPACE, ""))
        return CUT.join(text[start:end] for start, end in pairwise([0, *sorted(cuts), len(text)]))

    def _ask(self, text: str) -> tokenizers.Encoding:
        return guarded(
            "the text cannot be encoded", InputError, lambda: self.backend.encode(text, add_special_tokens=False)
        )

    def options(self) -> dict[str, object]:
        return {}


def longest_match(model: SentencePieceModel, keep: Iterable[str] = ()) -> LongestMatch | None:
    """The pre-step of a model, None where it has no table."""
    if not model.charsmap:
        return None
    fixed = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind in (CONTROL, USER_DEFINED)}
    return LongestMatch(model.rules, fixed | set(keep))


def normalizer_of(
    model: SentencePieceModel,
    before: Sequence[normalizers.Normalizer] = (),
    after: Sequence[normalizers.Normalizer] = (),
) -> normalizers.Normalizer:
    """The model's own table between the steps ``before`` and ``after``, its treatment of blanks,
    and the blank in front.
    """
    symbols = changed_symbols(model)
    steps = [*before, *(normalizers.Replace(symbol, stand_in(number)) for number, symbol in enumerate(symbols))]
    if model.charsmap:
        make = lambda: normalizers.Precompiled(model.charsmap)  # noqa: E731
        steps.append(guarded(f"{model.what}: the normalizer's table is broken", CheckpointError, make))
    steps += [normalizers.Replace(stand_in(number), symbol) for number, symbol in enumerate(symbols)]
    steps += [*after, normalizers.Replace(" ", SPACE)]
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(tokenizers.Regex(f"^{SPACE}+|{SPACE}+$"), ""))
        steps.append(normalizers.Replace(tokenizers.Regex(f"{SPACE}{{2,}}"), SPACE))
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps)


# --- user-defined symbols

# 16 digits of the codes that stand for symbols while the table is applied: no characters, and never any
DIGITS = [chr(0xFDD8 + digit) for digit in range(16)]
END = "\ufdd7"


def user_symbols(model: SentencePieceModel) -> list[str]:
    """The user-defined symbols, the longest first: at each place of a text the longest is taken."""
    found = [piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == USER_DEFINED]
    return sorted(found, key=lambda piece: (-len(piece), piece))


def changed_symbols(model: SentencePieceModel) -> list[str]:
    """Those that hold something which the table would change."""
    if not model.charsmap:
        return []
    starts = {key[0] for key in model.rules if key}
    return [symbol for symbol in user_symbols(model) if starts & set(symbol)]


def stand_in(number: int) -> str:
    """A code for a symbol, which no text holds and no table changes."""
    return "".join(DIGITS[int(digit, 16)] for digit in f"{number:x}") + END


# --- the tokenizer


def vocabulary(model: SentencePieceModel) -> list[tuple[str, float]]:
    """Pieces and the scores that a unigram lattice should use.

    User-defined symbols win over any way to spell them from parts, and unused pieces lose.
    """
    normal = [score for score, kind in zip(model.scores, model.types, strict=True) if kind == NORMAL]
    highest, lowest = max(normal, default=0.0), min(normal, default=0.0)
    result = []
    for piece, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        if kind == USER_DEFINED:
            score = max(len(piece.encode()) * highest - 0.1, lowest)
        elif kind == UNUSED:
            score -= NEVER
        result.append((piece, score))
    return result


def merges_of(model: SentencePieceModel) -> list[tuple[str, str]]:
    """The merges that a BPE model's pieces imply: every way to join two pieces into a third, the
    best-scored third first.
    """
    known = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind in (NORMAL, UNUSED)}
    order = sorted(
        (-score, index)
        for index, (score, kind) in enumerate(zip(model.scores, model.types, strict=True))
        if kind == NORMAL
    )
    if (cuts := sum(map(len, known))) > MAX_CUTS:
        raise CheckpointError(
            f"{model.what} has BPE pieces of {cuts:,} characters in all; at most {MAX_CUTS:,} are read"
        )
    merges = []
    for _, index in order:
        piece = model.pieces[index]
        merges += [
            (piece[:cut], piece[cut:]) for cut in range(1, len(piece)) if piece[:cut] in known and piece[cut:] in known
        ]
    return merges


def build(
    model: SentencePieceModel,
    vocab: list[tuple[str, float]],
    unk_id: int,
    *,
    before: Sequence[normalizers.Normalizer] = (),
    after: Sequence[normalizers.Normalizer] = (),
    frame: processors.TemplateProcessing | None = None,
) -> tokenizers.Tokenizer:
    """A ``tokenizers.Tokenizer`` for the pieces in ``vocab`` (the model's own, or a family's order
    of them).
    """
    if model.space_at_end:
        raise CheckpointError(
            f"{model.what} writes blanks behind words (treat_whitespace_as_suffix), which is not supported"
        )
    algorithm: models.Model
    symbols = user_symbols(model) if model.algorithm != UNIGRAM else []
    problem = f"{model.what} is no usable model"
    if model.algorithm == UNIGRAM:
        algorithm = guarded(
            problem, CheckpointError, lambda: models.Unigram(vocab, unk_id=unk_id, byte_fallback=model.byte_fallback)
        )
    else:
        ids, merges, unk = {piece: index for index, (piece, _) in enumerate(vocab)}, merges_of(model), vocab[unk_id][0]
        algorithm = guarded(
            problem,
            CheckpointError,
            lambda: models.BPE(
                ids,
                merges,
                unk_token=unk,
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
                ignore_merges=any(len(symbol) > 1 for symbol in symbols),  # no merges lead to a symbol, it is a word
            ),
        )
    backend = tokenizers.Tokenizer(algorithm)
    backend.normalizer = normalizer_of(model, before, after)
    # a piece never reaches over the start of a word in ordinary models: cutting there changes nothing and numbers
    # the words
    by_word = SPACE in model.pieces and not any(SPACE in piece[1:] for piece in model.pieces)
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=by_word)
    backend.pre_tokenizer = words
    if symbols:
        either = tokenizers.Regex("|".join(f"(?:{_literal(symbol)})" for symbol in symbols))
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(either, behavior="isolated"), words])
    steps: list[Any] = [decoders.Replace(SPACE, " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    if frame is not None:
        backend.post_processor = frame
    controls = [piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind == CONTROL]
    backend.add_special_tokens([tokenizers.AddedToken(piece, special=True, normalized=False) for piece in controls])
    return backend


def _literal(text: str) -> str:
    """The text as a regular expression of the tokenizers library."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


# --- families

FAIRSEQ_FIXED = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
FAIRSEQ_SPECIAL = SpecialTokens(pad="<pad>", cls="<s>", sep="</s>", mask="<mask>", unk="<unk>")
MBART_LANGUAGES = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT",
    "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK",
    "tr_TR", "vi_VN", "zh_CN",
)  # fmt: skip
# besides those above
MBART_50_LANGUAGES = (
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK", "ml_IN",
    "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN", "th_TH", "tl_XX",
    "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
)  # fmt: skip
FRAMES = ("none", "bert", "roberta")


def plain(
    model: SentencePieceModel,
    *,
    frame: str = "none",
    special: SpecialTokens | None = None,
    max_length: int | None = None,
) -> Tokenizer:
    """The model as it is, ids in its own order; ``frame`` puts special tokens around as BERT or
    RoBERTa do.
    """
    vocab = vocabulary(model)
    ids = {piece: index for index, piece in enumerate(model.pieces)}
    special = special or SpecialTokens()
    if frame not in FRAMES:
        raise unknown("frame of special tokens", frame, FRAMES)
    if frame != "none":
        special = present(ids, special, model.what)
    processor = {"none": None, "bert": bert_frame, "roberta": roberta_frame}[frame]
    backend = build(model, vocab, model.unk_id, frame=processor(special, ids) if processor else None)
    step = longest_match(model)
    return Tokenizer(
        backend,
        special=special,
        pre_step=step,
        inputs=KNOWN_INPUTS if frame == "bert" else KNOWN_INPUTS[:2],
        max_length=max_length,
    )


def cleaning(lower_case: bool, keep_accents: bool, composed: bool) -> list[normalizers.Normalizer]:
    """What ALBERT and RemBERT do to a text before the model's own table.

    Accents are the marks that stand apart after NFKD and have a combining class: the vowel signs of
    Hindi and its neighbors have none and stay, as in ALBERT's own code. ``composed``: what NFKD took
    apart and no accent was is put together again, as a model's table does, which `Precompiled`,
    going by clusters, does not.
    """
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not keep_accents:
        steps += [normalizers.NFKD(), normalizers.Replace(tokenizers.Regex(f"[{_accents()}]"), "")]
    if lower_case:
        steps.append(normalizers.Lowercase())
    if composed and not keep_accents:
        steps.append(normalizers.NFC())
    return steps


@cache
def _accents() -> str:
    """The characters that have a combining class, as the inside of a character class."""
    combining = [unicodedata.combining(chr(place)) > 0 for place in range(sys.maxunicode + 1)]
    edges = [place for place, (before, here) in enumerate(pairwise([False, *combining, False])) if before != here]
    ranges = zip(edges[::2], edges[1::2], strict=True)
    return "".join(f"\\x{{{start:x}}}-\\x{{{end - 1:x}}}" for start, end in ranges)


def albert(
    model: SentencePieceModel,
    *,
    lower_case: bool = True,
    keep_accents: bool = False,
    digit_comma: bool = True,
    special: SpecialTokens,
    max_length: int | None = None,
) -> Tokenizer:
    """ALBERT: quotes of two signs made one, accents and case dropped, blanks joined, and only then
    the model; [CLS] a [SEP] b [SEP].

    ``digit_comma``: see DigitComma. The table of the model needs no pre-step: without accents, and with
    the rest composed, hardly a cluster of characters is left.
    """
    ids = {piece: index for index, piece in enumerate(model.pieces)}
    special = present(ids, special, model.what)
    before = cleaning(lower_case, keep_accents, composed=bool(model.charsmap))
    blanks = [normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Replace(tokenizers.Regex("^ | $"), "")]
    backend = build(model, vocabulary(model), model.unk_id, before=before, after=blanks, frame=bert_frame(special, ids))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(CUT, behavior="removed"), backend.pre_tokenizer]
    )
    add_special(backend, special)
    return Tokenizer(
        backend, special=special, pre_step=DigitComma(backend) if digit_comma else None, max_length=max_length
    )


def fairseq_order(model: SentencePieceModel, behind: Sequence[str], rules: str) -> list[tuple[str, float]]:
    """Pieces in fairseq's order: <s> <pad> </s> <unk> first, then those behind the model's own three
    specials, then ``behind``.
    """
    if model.types[:3] != (UNKNOWN, CONTROL, CONTROL):
        raise CheckpointError(
            f"{model.what} begins with the pieces {model.pieces[:3]}; the rules of {rules} expect <unk>, <s> and </s>, "
            "which they leave out"
        )
    added = [(piece, 0.0) for piece in behind]
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *vocabulary(model)[3:], *added]
    own = set(model.pieces[3:]) & {"<s>", "<pad>", "</s>", "<unk>", *behind}
    if own:
        raise CheckpointError(f"{model.what} has a piece {min(own)!r} of its own, which the rules of {rules} add")
    return vocab


def xlm_roberta(model: SentencePieceModel, *, max_length: int | None = None) -> Tokenizer:
    """XLM-R: fairseq's order with <mask> last; <s> a </s></s> b </s>."""
    vocab = fairseq_order(model, ["<mask>"], "XLM-R")
    ids = {piece: index for index, (piece, _) in enumerate(vocab)}
    backend = build(model, vocab, 3, frame=roberta_frame(FAIRSEQ_SPECIAL, ids))
    add_special(backend, FAIRSEQ_SPECIAL, mask_takes_space=True)
    step = longest_match(model, keep=FAIRSEQ_FIXED)
    return Tokenizer(backend, special=FAIRSEQ_SPECIAL, pre_step=step, inputs=KNOWN_INPUTS[:2], max_length=max_length)


def mbart(
    model: SentencePieceModel, *, language: str = "en_XX", fifty: bool = False, max_length: int | None = None
) -> Tokenizer:
    """mBART: fairseq's order, then the languages, then <mask>; a b </s> language.

    ``language``: that of the texts. ``fifty``: mBART-50, whose languages are 52 and whose frame is
    language a b </s>. Segments are none; a pair is one text after the other.
    """
    languages = MBART_LANGUAGES + (MBART_50_LANGUAGES if fifty else ())
    if language not in languages:
        raise unknown("language of mBART", language, languages)
    vocab = fairseq_order(model, [*languages, "<mask>"], "mBART")
    ids = {piece: index for index, (piece, _) in enumerate(vocab)}
    ends = ([language], ["</s>"]) if fifty else ([], ["</s>", language])
    frame = processors.TemplateProcessing(
        single=[*ends[0], "$A", *ends[1]],
        pair=[*ends[0], "$A", "$B:0", *ends[1]],
        special_tokens=[("</s>", ids["</s>"]), (language, ids[language])],
    )
    backend = build(model, vocab, 3, frame=frame)
    add_special(backend, FAIRSEQ_SPECIAL, mask_takes_space=True)
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in languages])
    step = longest_match(model, keep=(*FAIRSEQ_FIXED, *languages))
    return Tokenizer(backend, special=FAIRSEQ_SPECIAL, pre_step=step, inputs=KNOWN_INPUTS[:2], max_length=max_length)


def rembert(
    model: SentencePieceModel,
    *,
    lower_case: bool = False,
    keep_accents: bool = True,
    special: SpecialTokens,
    max_length: int | None = None,
) -> Tokenizer:
    """RemBERT: quotes of two signs made one, and then the model, case and accents kept unless told
    otherwise; [CLS] a [SEP] b [SEP].
    """
    ids = {piece: index for index, piece in enumerate(model.pieces)}
    special = present(ids, special, model.what)
    before = cleaning(lower_case, keep_accents, composed=bool(model.charsmap))
    backend = build(model, vocabulary(model), model.unk_id, before=before, frame=bert_frame(special, ids))
    add_special(backend, special)
    return Tokenizer(backend, special=special, pre_step=longest_match(model), max_length=max_length)
