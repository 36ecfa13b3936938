"""A label for each word of a text, and the entities that the labels make."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tokenizers
import torch

from zoo.data.spans import tag_spans
from zoo.data.tables import cells
from zoo.errors import InputError
from zoo.inference.pipeline.base import Pipeline, Result, label_names

PREFIXES = ("B-", "I-", "E-", "S-")
# scripts that write words without blanks between them: each character is a word, as BERT has it
SCRIPTS = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA")


@dataclass(frozen=True)
class Piece:
    """One piece of a text: where it stands, without blanks around it, the word that the tokenizer says
    it is of, how much of the text the model saw on its narrower side, and its scores.
    """

    start: int
    end: int
    word: int | None
    seen: int
    scores: Sequence[float]


class TokenClassificationPipeline(Pipeline):
    """A text -> ``{"words": [{"word", "label", "score", "start", "end"}], "entities": [{"label", "text",
    "score", "start", "end"}]}``, with places in the text.

    A word's label is that of its first piece. Words end at blanks, before and behind punctuation, and
    where the tokenizer says so; a tuple of words is taken as they are. Entities by conlleval's rules where labels
    begin with B-, I-, E- and S- (`tag_spans`), as runs of one label where there is an "O" and no such
    prefix, and none otherwise, as for parts of speech; their score is the mean of their words'. A long
    text is read in windows, and a word is judged in the one that shows most around it.
    """

    task = "token-classification"
    meanings = ()
    more_meanings = ("words", "text")
    row = "a text (str) or a tuple of words"
    overlap = 64

    @classmethod
    def is_row(cls, value: Any) -> bool:
        return isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(word, str) for word in value))

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        if (words := values.get("words")) is None:
            return values["text"]
        return tuple(cells(words))

    def pieces(self, rows: Sequence[Any]) -> list[list[tokenizers.Encoding]]:
        return [
            self.tokenizer.windows(row if isinstance(row, str) else " ".join(row), overlap=self.overlap) for row in rows
        ]

    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        return list(self.model(**batch).logits.float().softmax(-1).cpu())

    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        given = row if isinstance(row, str) else " ".join(row)
        text = self.tokenizer.pre_step(given)
        placed = text == given
        judged = self._judged(text, pieces, found)
        if isinstance(row, str):
            groups = grouped(text, judged)
            spans = [(group[0].start, group[-1].end) for group in groups]
            firsts: list[Piece | None] = [group[0] for group in groups]
        else:
            if not placed:
                raise InputError("this model's tokenizer changes texts before it cuts them; give a text and no words")
            spans = places_of_words(row)
            firsts = [next((p for p in judged if start <= p.start < end), None) for start, end in spans]
        names = label_names(self.model, len(found[0][0]))
        words = []
        for (start, end), first in zip(spans, firsts, strict=True):
            best = None if first is None else max(range(len(names)), key=first.scores.__getitem__)
            where = {"start": start, "end": end} if placed else {}
            label, score = (None, None) if best is None or first is None else (names[best], first.scores[best])
            words.append({"word": text[start:end], "label": label, "score": score, **where})
        return {"words": words, "entities": entities(text, words, spans, names)}

    def _judged(self, text: str, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> list[Piece]:
        """The pieces of the whole text in order, one for each place."""
        best: dict[int, Piece] = {}
        for encoding, scores in zip(pieces, found, strict=True):
            here: dict[int, Piece] = {}
            own = [place for place, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
            for number, place in enumerate(own):
                start, end = stripped(text, *encoding.offsets[place])
                if start in here:  # a character of several pieces: the first answers for it
                    here[start] = replace(here[start], end=max(end, here[start].end))
                elif start < end:
                    seen = min(number, len(own) - 1 - number)
                    here[start] = Piece(start, end, encoding.word_ids[place], seen, scores[place].tolist())
            for start, piece in here.items():
                if start not in best or best[start].seen < piece.seen:
                    best[start] = piece
        return [best[start] for start in sorted(best)]


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """A piece's place without blanks; that of a blank alone, as a "▁" by itself has it, is the character behind it,
    since it begins that word.
    """
    if start == end:
        return start, end
    while start < end and text[start].isspace():
        start += 1
    if start == end:
        return (start, start + 1) if end < len(text) and not text[end].isspace() else (start, end)
    while text[end - 1].isspace():
        end -= 1
    return start, end


def grouped(text: str, pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces of each word."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and _goes_on(text, groups[-1][-1], piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def _goes_on(text: str, last: Piece, piece: Piece) -> bool:
    apart = piece.start > last.end or (None not in (last.word, piece.word) and last.word != piece.word)
    before, after = text[max(last.end, 1) - 1], text[piece.start]
    return not apart and _in_word(before) and _in_word(after) and not unicodedata.name(after, "").startswith(SCRIPTS)


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"  # letters, numbers and the marks on them


def places_of_words(words: Sequence[str]) -> list[tuple[int, int]]:
    """Where words stand in the text that joins them by blanks."""
    found, start = [], 0
    for word in words:
        found.append((start, start + len(word)))
        start += len(word) + 1
    return found


def entities(
    text: str, words: Sequence[Mapping[str, Any]], spans: Sequence[tuple[int, int]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """What the words' labels say together."""
    prefixed = all(name == "O" or name.startswith(PREFIXES) for name in names)
    if not prefixed and "O" not in names:
        return []
    labels = [word["label"] or "O" for word in words]
    tags = labels if prefixed else ["O" if label == "O" else f"I-{label}" for label in labels]
    found = []
    for span in tag_spans(tags):
        scores = [word["score"] for word in words[span.first : span.last + 1]]
        start, end = spans[span.first][0], spans[span.last][1]
        where = {"start": start, "end": end} if "start" in words[span.first] else {}
        found.append({"label": span.kind, "text": text[start:end], "score": sum(scores) / len(scores), **where})
    return found
