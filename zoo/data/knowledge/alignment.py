"""Where entities are mentioned in a text, in characters, and which tokens that makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from zoo.errors import InputError


@dataclass(frozen=True)
class Mention:
    """``entity`` is mentioned by the characters ``start`` .. ``end`` - 1, with confidence
    ``score``.
    """

    entity: str
    start: int
    end: int
    score: float = 1.0

    def check(self, length: int) -> None:
        """Raise InputError unless the mention lies in a text of ``length`` characters."""
        if not 0 <= self.start < self.end <= length:
            raise InputError(
                f"the mention of {self.entity!r} spans the characters {self.start}..{self.end}, which must lie in "
                f"0..{length}, start first"
            )


@dataclass(frozen=True)
class TokenSpan:
    """``entity`` is mentioned by the tokens ``first`` .. ``last``, both included."""

    entity: str
    first: int
    last: int
    score: float = 1.0


def token_spans(mentions: Sequence[Mention], offsets: Sequence[tuple[int, int]], length: int) -> list[TokenSpan]:
    """The tokens that each mention covers at least in part.

    ``offsets``: (start, end) of each token in characters, (0, 0) for tokens that are none of the
    text ([CLS]); ``length``: of the text. Raises InputError for a mention outside the text or
    without a token.
    """
    spans = []
    for mention in mentions:
        mention.check(length)
        covered = [
            i for i, (start, end) in enumerate(offsets) if start < mention.end and end > mention.start and end > start
        ]
        if not covered:
            raise InputError(
                f"no token stands at the mention of {mention.entity!r} (characters {mention.start}..{mention.end}); "
                "was it cut off?"
            )
        spans.append(TokenSpan(mention.entity, covered[0], covered[-1], mention.score))
    return spans


def marked(text: str, mentions: Sequence[Mention], marks: Sequence[str]) -> tuple[str, list[Mention]]:
    """Put a mark before and behind each mention, a space between, as ERNIE (Tsinghua) shows its
    heads what they judge: ``#`` and ``$`` for the two mentions of a relation, ``。`` for the one
    whose type is asked. -> the new text, and the mentions where they stand now.

    ``marks``: one for each mention, "" for none. Raises InputError for mentions that are outside
    the text or overlap.
    """
    if len(marks) != len(mentions):
        raise InputError(f"there must be one mark for each of the {len(mentions)} mentions, got {len(marks)}")
    pieces: list[str] = []
    moved: dict[int, Mention] = {}
    at, length = 0, 0
    for number in sorted(range(len(mentions)), key=lambda number: mentions[number].start):
        mention, mark = mentions[number], marks[number]
        mention.check(len(text))
        if mention.start < at:
            raise InputError(
                f"the mention of {mention.entity!r} ({mention.start}..{mention.end}) overlaps one that ends at {at}"
            )
        before, name = text[at : mention.start] + (f"{mark} " if mark else ""), text[mention.start : mention.end]
        start = length + len(before)
        moved[number] = replace(mention, start=start, end=start + len(name))
        pieces += [before, name, f" {mark}" if mark else ""]
        length = sum(map(len, pieces))
        at = mention.end
    return "".join([*pieces, text[at:]]), [moved[number] for number in range(len(mentions))]


def whitespace_tokens(text: str) -> Iterator[tuple[int, str]]:
    """The pieces between spaces with the character they start at; only the space itself
    separates.
    """
    start = 0
    for piece in text.split(" "):
        if piece:
            yield start, piece
        start += len(piece) + 1


def first_pieces(
    text: str, mentions: Sequence[Mention], pieces: Callable[[str], Sequence[str]], threshold: float = 0.0
) -> tuple[list[str], list[str | None]]:
    """Tokens and, beside each, the entity it carries or None: an entity stands at the first piece
    of its mention (ERNIE of Tsinghua).

    The mention is the whitespace token that starts exactly where it does; its end is not looked at,
    and a mention that starts inside a token (behind a quotation mark) is lost. Of two at one place
    the last counts. ``pieces`` cuts a whitespace token; mentions scored below ``threshold`` are
    left out.
    """
    begins: dict[int, str] = {}
    for mention in mentions:
        mention.check(len(text))
        if mention.score >= threshold:
            begins[mention.start] = mention.entity
    tokens: list[str] = []
    entities: list[str | None] = []
    for start, word in whitespace_tokens(text):
        found = list(pieces(word))
        tokens += found
        entities += [begins.get(start) if i == 0 else None for i in range(len(found))]
    return tokens, entities
