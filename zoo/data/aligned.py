"""Words as tokens, with the way back: which token begins a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.errors import InputError
from zoo.tokenization.files import guarded

if TYPE_CHECKING:
    from zoo.tokenization import Tokenizer


@dataclass(frozen=True)
class Words:
    """A text given word by word: ``ids`` and ``type_ids`` of its tokens, special ones included, and
    ``first``: the place of each word's first token, None where the word was cut off or has none.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    first: tuple[int | None, ...]


def encode_words(
    tokenizer: Tokenizer, words: Sequence[str], max_length: int | None = None, language: str | None = None
) -> Words:
    """Tokens of words that stand with a space between them; each goes through the tokenizer's own
    step for texts first. What doesn't fit is cut off behind.
    """
    prepared = [tokenizer.prepared(word, language).strip() for word in words]
    ends, text = [], ""
    for word in prepared:
        text = f"{text} {word}" if text else word
        ends.append(len(text))
    whole = _encoded(tokenizer, text)
    room = _room(tokenizer, max_length, pair=False)
    if room is not None and len(whole.ids) > room:
        whole.truncate(room)
    encoding = tokenizer.backend.post_process(whole, None, True)
    first: list[int | None] = [None] * len(words)
    current = 0
    for place, ((start, end), special) in enumerate(zip(encoding.offsets, encoding.special_tokens_mask, strict=True)):
        if special or end <= start:
            continue
        while current < len(words) and ends[current] < end:
            current += 1
        if current < len(words) and first[current] is None:
            first[current] = place
    return Words(tuple(encoding.ids), tuple(encoding.type_ids), tuple(first))


def _encoded(tokenizer: Tokenizer, text: str) -> Any:
    return guarded(
        "the text cannot be encoded", InputError, lambda: tokenizer.backend.encode(text, add_special_tokens=False)
    )


def _room(tokenizer: Tokenizer, max_length: int | None, pair: bool) -> int | None:
    limit = tokenizer.max_length if max_length is None else max_length
    if limit is None:
        return None
    room = limit - tokenizer.backend.num_special_tokens_to_add(pair)
    if room < 1 + pair:
        raise InputError(
            f"max_length={limit} leaves no room for the text; it must be at least {limit - room + 1 + pair}"
        )
    return room
