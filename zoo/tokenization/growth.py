"""How much a tokenizer may make of a text: a few lines of tokenizer.json can double it again and again,
or frame it in a million tokens.
"""

from __future__ import annotations

from typing import Any

import tokenizers

from zoo.errors import CheckpointError
from zoo.tokenization.files import parse_json

MAX_FRAME = 1_000  # special tokens around a text, and the places of texts among them
MAX_GROWTH = 1_000  # characters that a normalizer may make of one


def check_growth(backend: tokenizers.Tokenizer, what: str) -> None:
    """Refuse a tokenizer that makes thousands of tokens or characters of nothing."""
    frame = max((_framed(part) for part in _parts(backend.post_processor)), default=0)
    if frame > MAX_FRAME:
        raise CheckpointError(f"{what} puts {frame:,} tokens around a text; at most {MAX_FRAME:,} are taken")
    for step, growth in (("normalizer", _growth(backend.normalizer)), ("decoder", _growth(backend.decoder))):
        if growth > MAX_GROWTH:
            raise CheckpointError(
                f"the {step} of {what} may make {growth:,} characters of one; at most {MAX_GROWTH:,} are taken"
            )


def _parts(step: Any) -> list[dict[str, Any]]:
    """The steps of a part of a tokenizer, in their order, sequences taken apart."""
    if step is None:
        return []
    found, waiting = [], [parse_json(step.__getstate__().decode("utf-8"), "a part of the tokenizer")]
    while waiting:
        part = waiting.pop()
        inner = [value for value in part.values() if isinstance(value, list)] if part.get("type") == "Sequence" else []
        if inner:
            waiting += [one for one in reversed(inner[0]) if isinstance(one, dict)]
        else:
            found.append(part)
    return found


def _framed(part: dict[str, Any]) -> int:
    """How many tokens a template puts around, with the places of the texts."""
    if part.get("type") != "TemplateProcessing":
        return 0
    sizes = {name: len(token["ids"]) for name, token in part["special_tokens"].items()}
    count = 0
    for template in (part["single"], part["pair"]):
        places = [place.get("SpecialToken", {}).get("id") for place in template]
        count = max(count, sum(sizes.get(name, 1) for name in places))
    return count


def _growth(step: Any) -> int:
    """The most characters that a normalizer may make of one.

    A replacement grows what an earlier one wrote only where it can match some of it: where the two
    share no character, or no other step stands between them that turns characters into others.
    """
    before = 1.0  # of steps that any later one may follow on
    written: list[tuple[set[str], float]] = []
    for part in _parts(step):
        if part.get("type") != "Replace":
            before, written = max([before, *(growth for _, growth in written)]), []
            if part.get("type") == "Prepend":
                before *= len(str(part.get("prepend", ""))) + 1
            continue
        pattern, content = part["pattern"], str(part["content"])
        if isinstance(pattern, dict) and isinstance(text := pattern.get("String"), str) and text:
            signs, factor = set(text), max(1.0, len(content) / len(text))
            reached = [growth for those, growth in written if those & signs]
        else:
            factor, reached = len(content) + 1.0, [growth for _, growth in written]
        written.append((set(content), factor * max([before, *reached])))
    return int(max([before, *(growth for _, growth in written)]))
