"""Words of languages that write none: a segmenter's cut, and how it marks tokens for whole-word
masking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zoo.errors import InputError
from zoo.tokenization.chinese import Segmenter as Segmenter
from zoo.tokenization.chinese import jieba_segmenter as jieba_segmenter


def mark_words(tokens: Sequence[str], words: Iterable[str], mark: str = "##") -> list[str]:
    """Tokens of one text with ``mark`` before each that goes on with a word: whole-word masking
    then takes a word's characters together.

    ``words``: the text cut by a segmenter; a token counts with the letters it stands for (without
    its own ``mark``), special tokens in brackets are passed over. Masks are made on the marked
    tokens, the model reads the unmarked ones. Raises InputError where the words are of another
    text.
    """
    if callable(words):
        raise InputError(f"words must be the text's words, got the segmenter {words!r} itself; pass segmenter(text)")
    ends, at = set(), 0
    for word in words:
        at += len("".join(word.split()))
        ends.add(at)
    marked, place = [], 0
    for token in tokens:
        if len(token) > 2 and token[0] == "[" and token[-1] == "]":
            marked.append(token)
            continue
        plain = token.removeprefix(mark)
        inside = place not in ends and place > 0
        marked.append(mark + plain if inside else token)
        place += len(plain)
    if place != at:
        raise InputError(
            f"the words make up {at} letters, the tokens {place}: they are not of one text, or one is unknown"
        )
    return marked
