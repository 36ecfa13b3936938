"""Entities as spans of words, read off tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zoo.errors import InputError


class Span(NamedTuple):
    """An entity: its type, its first and its last token (inclusive)."""

    kind: str
    first: int
    last: int


def tag_spans(tags: Sequence[str]) -> list[Span]:
    """The entities of one tagged sentence by the rules of conlleval, as seqeval's default applies
    them.

    ``B-`` and ``S-`` open an entity, and so does any other tag where none is open or the type
    changes; ``E-`` and ``S-`` close theirs. The first letter is the prefix whatever it is, the rest
    (behind a dash, if there is one) the type: the part-of-speech tags ``NOUN NOUN`` are one span of
    type ``OUN``. XTREME's figures for tagging are computed so.
    """
    spans: list[Span] = []
    start, open_prefix, open_kind = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        if not tag:
            raise InputError(f"the tag at place {place} is empty")
        prefix, kind = tag[0], tag[1:].split("-", 1)[-1] or "_"
        outside, was_outside = prefix in "O.", open_prefix in "O."
        changed = kind != open_kind
        if not was_outside and (changed or open_prefix in "ES" or (open_prefix in "BI" and prefix in "BSO")):
            spans.append(Span(open_kind, start, place - 1))
        if prefix in "BS" or (not outside and changed) or (open_prefix in "ESO" and prefix in "EI"):
            start = place
        open_prefix, open_kind = prefix, kind
    return spans
