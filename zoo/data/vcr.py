"""Texts of VCR as single-stream models read them: a question, an answer, a rationale, each with its
segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

SEGMENTS = (0, 2, 3)  # of question, answer and rationale; regions have 1


def joined_text(
    parts: Sequence[Sequence[int]], cls_id: int, sep_id: int, segments: Sequence[int] = SEGMENTS
) -> tuple[list[int], list[int]]:
    """``[CLS] question [SEP] answer [SEP] rationale [SEP]`` -> ids and segments (token_type_ids).

    The [SEP] before a part has the segment of that part; the last one that of the last part.
    """
    ids, types = [cls_id], [segments[0]]
    for number, part in enumerate(parts):
        lead = [sep_id] if number else []
        ids += [*lead, *part]
        types += [segments[number]] * (len(lead) + len(part))
    return [*ids, sep_id], [*types, segments[len(parts) - 1]]


def answer_texts(
    question: Sequence[int], answers: Iterable[Sequence[int]], cls_id: int, sep_id: int
) -> list[tuple[list[int], list[int]]]:
    """Q -> A: the question with each answer."""
    return [joined_text([question, answer], cls_id, sep_id) for answer in answers]


def rationale_texts(
    question: Sequence[int], answer: Sequence[int], rationales: Iterable[Sequence[int]], cls_id: int, sep_id: int
) -> list[tuple[list[int], list[int]]]:
    """QA -> R: the question and an answer, the right one outside of the test set, with each rationale."""
    return [joined_text([question, answer, rationale], cls_id, sep_id) for rationale in rationales]
