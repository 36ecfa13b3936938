"""What the data cases of BERT, its whole-word masking and ALBERT share: draws, and instances in the
reference's words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from zoo.data.instances import SentencePair, pack_pair
from zoo.data.masking import Masked, choose_units, prediction_budget, replace_tokens, word_units, wordpiece_start

CLS, SEP, MASK = SPECIAL = "[CLS]", "[SEP]", "[MASK]"
T = TypeVar("T")


class ReplayedRandom(random.Random):
    """Gives back recorded draws in their order: ``["shuffle", order]``, ``["random", u]``,
    ``["randint", value]``.
    """

    def __new__(cls, draws: list[list[Any]]) -> ReplayedRandom:
        return super().__new__(cls, 0)

    def __init__(self, draws: list[list[Any]]):
        super().__init__(0)
        self.draws = iter(draws)

    def _next(self, kind: str) -> Any:
        recorded, value = next(self.draws)
        if recorded != kind:
            raise AssertionError(f"the reference drew {recorded!r} where we draw {kind!r}")
        return value

    def random(self) -> float:
        return float(self._next("random"))

    def randint(self, a: int, b: int) -> int:
        value = int(self._next("randint"))
        assert a <= value <= b
        return value

    def shuffle(self, x: Any) -> None:
        x[:] = [x[k] for k in self._next("shuffle")]


def draws_of(given: dict[str, Any]) -> random.Random:
    """The recorded draws where there are any, else a generator of the recorded seed."""
    return ReplayedRandom(given["draws"]) if "draws" in given else random.Random(given["python_seed"])


def bert_masking(
    tokens: list[str], probability: float, maximum: int, whole_words: bool, vocabulary: list[str], rng: random.Random
) -> Masked[str]:
    units = word_units(tokens, (CLS, SEP), wordpiece_start if whole_words else None)
    chosen = choose_units(units, prediction_budget(len(tokens), probability, maximum), rng)
    return replace_tokens(tokens, chosen, MASK, vocabulary, rng)


def predictions(masked: Masked[str], tokens_name: str = "output_tokens") -> dict[str, Any]:
    return {tokens_name: masked.tokens, "masked_lm_positions": masked.positions, "masked_lm_labels": masked.labels}


def instances(pairs: Iterator[SentencePair[str]], mask: Callable[[list[str]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Pack and mask each pair when it is made, so that the draws come in the reference's order."""
    made = []
    for pair in pairs:
        packed = pack_pair(pair, CLS, SEP)
        made.append({"segment_ids": packed.token_type_ids, "is_random_next": bool(pair.label)} | mask(packed.tokens))
    return made
