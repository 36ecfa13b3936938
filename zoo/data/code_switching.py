"""Code-switching: words of a sentence in other languages, by dictionaries (M3P)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zoo.errors import ConfigError, InputError

Dictionary = Mapping[str, Mapping[str, Sequence[str]]]
"""Translations of words: word -> language -> translations."""


@dataclass(frozen=True, kw_only=True)
class CodeSwitcher:
    """Replaces words of a sentence by translations.

    A sentence is switched with ``sentence_probability``; then each of its words that the dictionary knows is
    replaced with ``word_probability``, by a random translation in a random language among those of the word.
    Words are what stands between single spaces, and are looked up as they are written.
    """

    dictionary: Dictionary
    sentence_probability: float = 0.8
    word_probability: float = 0.8

    def __post_init__(self) -> None:
        for name in ("sentence_probability", "word_probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}={value} must lie between 0 and 1")
        for word, found in self.dictionary.items():
            if not found or not all(found.values()) or any(isinstance(words, str) for words in found.values()):
                raise InputError(
                    f"the dictionary must give lists of translations by language for each word, got {found!r} for "
                    f"{word!r}"
                )

    def __call__(self, sentence: str, rng: random.Random) -> str:
        """The sentence, code-switched; ``rng`` draws."""
        if rng.random() >= self.sentence_probability:  # eq: sentence
            return sentence
        return " ".join(self._word(word, rng) for word in sentence.split(" "))

    def _word(self, word: str, rng: random.Random) -> str:
        found = self.dictionary.get(word)
        if found is None or rng.random() >= self.word_probability:  # eq: word
            return word
        translations = found[list(found)[rng.randint(0, len(found) - 1)]]  # eq: word
        return translations[rng.randint(0, len(translations) - 1)]  # eq: word
