"""The span of a passage that answers a question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import tokenizers
import torch

from zoo.data.tables import Row
from zoo.errors import InputError
from zoo.inference.pipeline.answers import best_span
from zoo.tasks.metrics.language import answer_f1, best_over_answers, exact_match
from zoo.training.supervision.base import Batch, Supervision

LONGEST_ANSWER = 30  # tokens, as SQuAD's systems have it
STRIDE = 128


class Asked(NamedTuple):
    """A window of a passage, with the question's number, the passage, all right answers, and the
    tokens (start, end) of the answer, (0, 0) where it isn't in this window.
    """

    number: int
    window: tokenizers.Encoding
    passage: str
    answers: tuple[str, ...]
    span: tuple[int, int]


class Answers(Supervision):
    """``question``, ``context`` and ``answer``: a text, or a list, or SQuAD's {"text": [...],
    "answer_start": [...]}; ``start`` says where in the context it stands, in characters, else its
    first place is taken. Without an answer the right place is the first token.
    """

    needed = ("question", "context", "answer")
    optional = ("start",)
    asked = 0

    @property
    def measure(self) -> str:
        return "f1"

    def examples(self, row: Row) -> Iterable[Asked]:
        question, passage = self.columns.text(row, "question"), self.columns.text(row, "context")
        texts, starts = self._answers(row, passage)
        plain = self.tokenizer.prepared(passage)
        if plain != passage:  # the step before the tokenizer moves characters, so the answer is looked for anew
            texts = [self.tokenizer.prepared(text) for text in texts]
            starts = [plain.find(text) for text in texts]
        number, self.asked = self.asked, self.asked + 1
        windows = self.tokenizer.windows(question, passage, overlap=STRIDE, max_length=self.max_length)
        begin = starts[0] if starts else -1
        wanted = (begin, begin + len(texts[0])) if begin >= 0 and texts[0] else None
        return [Asked(number, window, plain, tuple(texts) or ("",), _tokens(window, wanted)) for window in windows]

    def _answers(self, row: Row, passage: str) -> tuple[list[str], list[int]]:
        value = self.columns.of(row, "answer")
        if isinstance(value, str) and value.lstrip().startswith("{"):
            with suppress(ValueError):
                value = json.loads(value)
        starts: Any = self.columns.of(row, "start") if "start" in self.columns else None
        if isinstance(value, dict):
            value, starts = value.get("text", []), value.get("answer_start", starts)
        texts = [value] if isinstance(value, str) else list(value or ())
        texts = [text for text in texts if text != ""]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"an answer must be text, got {value!r}")
        given = list(starts) if isinstance(starts, list | tuple) else [starts] * len(texts)
        places = [_place(text, passage, start) for text, start in zip(texts, given, strict=False)]
        return texts, places

    def size(self, example: Asked) -> int:
        return len(example.window.ids)

    def batch(self, examples: Sequence[Asked]) -> Batch:
        starts, ends = zip(*(example.span for example in examples), strict=True)
        return {
            **self.padded([example.window for example in examples]),
            "start_positions": torch.tensor(starts),
            "end_positions": torch.tensor(ends),
        }

    def results(self, output: Any, batch: Batch, examples: Sequence[Asked]) -> list[Any]:
        logits = torch.stack((output.start_logits, output.end_logits), 1).detach().float().cpu()  # (batch, 2, length)
        kept = []
        for scores, example in zip(logits, examples, strict=True):
            inside = _inside(example.window)
            score, first, last = best_span(scores[:, [place for place, _ in inside]], LONGEST_ANSWER)
            text = example.passage[inside[first][1][0] : inside[last][1][1]].strip() if first <= last else ""
            kept.append((example.number, score, text, float(scores[:, 0].sum()), example.answers))
        return kept

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        best: dict[int, tuple[float, str, tuple[str, ...]]] = {}
        nothing: dict[int, float] = {}
        for number, score, text, none, answers in results:
            nothing[number] = min(none, nothing.get(number, none))
            if number not in best or score > best[number][0]:
                best[number] = (score, text, answers)
        said = {n: "" if nothing[n] > score else text for n, (score, text, _) in best.items()}
        if all(any(answers) for _, _, answers in best.values()):  # every question has one: no abstaining
            said = {number: text for number, (_, text, _) in best.items()}
        both: dict[str, float] = {}
        for name, score_of in (("exact_match", exact_match), ("f1", _f1)):
            both[name] = sum(best_over_answers(score_of, said[n], best[n][2]) for n in said) / len(said)
        return both


def _f1(prediction: str, answer: str) -> float:
    return answer_f1(prediction, answer, empty_matches=not answer)


def _place(text: str, passage: str, start: Any) -> int:
    """Where an answer stands: as said, where it does stand there, else its first place."""
    try:
        said = int(start) if start is not None and start != "" else -1
    except (TypeError, ValueError):
        raise InputError(f"where an answer starts must be a whole number, got {start!r}") from None
    return said if said >= 0 and passage[said : said + len(text)] == text else passage.find(text)


def _inside(window: tokenizers.Encoding) -> list[tuple[int, tuple[int, int]]]:
    """The places of the passage's tokens in a window, each with its (start, end) in the passage."""
    return [
        (place, offset)
        for place, (offset, of) in enumerate(zip(window.offsets, window.sequence_ids, strict=True))
        if of == 1
    ]


def _tokens(window: tokenizers.Encoding, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """The first and last token of the characters, where the window has them all."""
    if wanted is None:
        return 0, 0
    held = [(place, at) for place, at in _inside(window) if at[1] > wanted[0] and at[0] < wanted[1]]
    if not held:
        return 0, 0
    whole = held[0][1][0] <= wanted[0] and held[-1][1][1] >= wanted[1]
    return (held[0][0], held[-1][0]) if whole else (0, 0)
