"""AraBERT's cleaning of Arabic text, in front of its WordPiece: what the vocabularies were learned
from.

    ArabicCleaner.of("bert-base-arabertv02")("مَرْحَبًا بالعـــالم!!! http://example.org")    ->  "مرحبا بالعالم ! ! [رابط]"

In this order: markup, vowel marks, the stretching letter, addresses and mentions, repetitions,
blanks around whatever is no letter or digit, slashes and digits. The models named v1 and v2 read
text that Farasa, a Java program, cut into prefixes and suffixes; that step is not here: pass their
text cut.
"""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass

from zoo.errors import ConfigError

LINK, MAIL, USER = "[رابط]", "[بريد]", "[مستخدم]"
LETTERS = "\u0621-\u063a\u0641-\u064a"
DIGITS = "0-9\u0660-\u0669"

_VOWELS = re.compile("[\u064b-\u0652]")  # fathatan .. sukun
_STRETCH = "\u0640"
_TAG = re.compile(r"<[^<>]+>")
_USER = re.compile(r"@\w+")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_LINK = re.compile(r"(?:https?://|ftp://|www\.)\S+|[\w.%+~#=:@-]{2,256}\.[a-z]{2,6}\b[\w%+.~#?&/=:@-]*", re.ASCII)
_REPEATED = re.compile(r"(\D)\1{2,}", re.DOTALL)
_APART = re.compile(f"([^{LETTERS}{DIGITS}a-zA-Z\\[\\]\\s])")
_MIXED = re.compile(f"(?<=[{LETTERS}])(?=[{DIGITS}])|(?<=[{DIGITS}])(?=[{LETTERS}])")
_SIGNS = frozenset("!\"#$%'()*+,.:;-<=·>?@[\\]^_`{|}~—٪’،؟“؛”»«–…‘/&")
_HINDI = str.maketrans("٠١٢٣٤٥٦٧٨٩", "0123456789")


@dataclass(frozen=True, kw_only=True)
class ArabicCleaner:
    """Each step can be left out; `of` gives what a released model was trained with."""

    remove_markup: bool = True  # tags, and entities such as &amp;
    strip_vowels: bool = True
    strip_stretch: bool = True
    replace_addresses: bool = True  # links, mails and mentions become LINK, MAIL, USER
    mails_first: bool = True  # else a mail may be taken for a link, as the first models took it
    limit_repetition: bool = True  # of anything but digits, to two
    insert_blanks: bool = True
    drop_unknown: bool = True  # characters outside the vocabulary's alphabet
    keep_emojis: bool = False
    slash_to_dash: bool = True
    western_digits: bool = True

    @classmethod
    def of(cls, name: str, **changed: bool) -> ArabicCleaner:
        """For ``bert-{base,large}-arabertv01, -arabertv02, -arabertv02-twitter``, and others made
        from Arabic text the same way.
        """
        unknown = set(changed) - set(cls.__dataclass_fields__)
        if unknown:
            raise ConfigError(
                f"ArabicCleaner has no step {sorted(unknown)[0]!r}; it has {', '.join(cls.__dataclass_fields__)}"
            )
        if name.rsplit("/", 1)[-1] in ("bert-base-arabertv01", "bert-base-arabert"):
            first = {"remove_markup": False, "mails_first": False, "slash_to_dash": False, "western_digits": False}
            return cls(**{**first, **changed})
        return cls(**{"keep_emojis": "twitter" in name, **changed})

    def __call__(self, text: str) -> str:
        if self.remove_markup:
            text = _TAG.sub(" ", html.unescape(text))
        if self.strip_vowels:
            text = _VOWELS.sub("", text)
        if self.strip_stretch:
            text = text.replace(_STRETCH, "")
        if self.replace_addresses:
            for pattern, token in (
                [(_MAIL, MAIL), (_LINK, LINK)] if self.mails_first else [(_LINK, LINK), (_MAIL, MAIL)]
            ):
                text = pattern.sub(f" {token} ", text)
            text = _USER.sub(f" {USER} ", text)
        if self.limit_repetition:
            text = _REPEATED.sub(r"\1\1", text)
        if self.slash_to_dash:
            text = text.replace("/", "-")
        if self.western_digits:
            text = text.translate(_HINDI)
        if self.insert_blanks:
            text = _MIXED.sub(" ", _APART.sub(r" \1 ", text))
        if self.drop_unknown:
            text = "".join(sign if self._known(sign) else " " for sign in text)
        return " ".join(text.replace("\ufe0f", "").split())

    def _known(self, sign: str) -> bool:
        if sign.isspace() or sign in _SIGNS or (sign.isascii() and sign.isalnum()):
            return True
        if "\u0621" <= sign <= "\u0674":
            return True
        return self.keep_emojis and unicodedata.category(sign) in ("So", "Sk", "Cf", "Mn")
