"""Frames that name a text's language: mBART's ``a </s> en_XX``, for any of its languages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

from zoo.errors import CheckpointError, unknown
from zoo.tokenization.files import guarded, parse_json

CODE = re.compile(r"[a-z]{2,3}_[A-Z]{2}")
EMPTY = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {}, "unk_token": ""}}


class LanguageFrames:
    """The frame of a backend for each of its languages; none where its frame names none.

    ``languages``: the codes among its special tokens. ``default``: the one that its own frame has.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend, self.default, self.languages = backend, "", dict[str, int]()
        self._made: dict[str, tokenizers.Tokenizer] = {}
        self._template: dict[str, Any] = {}
        if backend.post_processor is None:
            return
        state = parse_json(backend.post_processor.__getstate__().decode("utf-8"), "the frame")
        named = state.get("special_tokens") if isinstance(state, Mapping) else None
        if not isinstance(named, Mapping) or state.get("type") != "TemplateProcessing":
            return
        codes = [name for name in named if CODE.fullmatch(name)]
        if len(codes) == 1:
            self.default, self._template = codes[0], dict(state)
            added = backend.get_added_tokens_decoder().items()
            self.languages = {t.content: i for i, t in added if t.special and CODE.fullmatch(t.content)}

    def of(self, language: str | None) -> tokenizers.Tokenizer:
        """What puts the frame of a language around a text: its ``post_process``."""
        if language in (None, self.default):
            return self.backend
        if language not in self.languages:
            raise unknown("language of this tokenizer", str(language), self.languages)
        if language not in self._made:
            self._made[language] = self._frame(language)
        return self._made[language]

    def _frame(self, language: str) -> tokenizers.Tokenizer:
        """A backend without words that has the frame alone, so that no thread changes the other's."""

        def renamed(part: Any) -> Any:
            if isinstance(part, list):
                return [renamed(one) for one in part]
            if isinstance(part, dict):
                return {renamed(key): renamed(value) for key, value in part.items()}
            return language if part == self.default else part

        frame = renamed(self._template)
        frame["special_tokens"][language]["ids"] = [self.languages[language]]
        written = json.dumps({**EMPTY, "post_processor": frame})
        return guarded("the frame of a language", CheckpointError, lambda: tokenizers.Tokenizer.from_str(written))
