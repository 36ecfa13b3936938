"""Texts that a model writes: from a source, from a beginning, in another language."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
import torch

from zoo.errors import InputError, TaskError, unknown
from zoo.inference.generate import generate
from zoo.inference.pipeline.base import Pipeline, Result
from zoo.inference.search.settings import Search
from zoo.tokenization import Tokenizer


class WritingPipeline(Pipeline):
    """A source -> ``{"text", "score", "texts", "scores"}``: the best text and its score, and all
    ``num_return_sequences`` of them, best first.

    Settings of the search are those beside the weights, changed by ``search`` and by keyword. A model
    of two languages or more reads ``language`` and writes ``to``.
    """

    task = "conditional-generation"
    row = "a source (str)"

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        batch_size: int = 8,
        search: Search | None = None,
        language: str | None = None,
        to: str | None = None,
        cut: bool = False,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(model, tokenizer, batch_size=batch_size)
        self.search = (search or getattr(model, "search", None) or Search()).replace(**settings)
        self.language, self.cut = language, cut
        self.progress: Callable[[int, int], None] | None = None  # as those of `zoo.generate`
        self.streamer: Callable[[int, int], None] | None = None
        self.generator = torch.Generator(model.device).manual_seed(seed)
        self.named, changes = languages_of(model, self.tokenizer, language, to)
        self.search = self.search.replace(**changes)

    @classmethod
    def row_of(cls, values: Mapping[str, Any]) -> Any:
        text = values["text"]
        if isinstance(text, str) and not text.strip():
            raise InputError(f"a source is empty: {text!r:.60}; give at least one word")
        return text

    def pieces(self, rows: Sequence[Any]) -> list[list[tokenizers.Encoding]]:
        """The sources, whole; one that the model has too few positions for is refused unless ``cut``."""
        longest = self.tokenizer.max_length or self.model.config.max_positions
        found = self.tokenizer.encodings(list(rows), truncation=self.cut, language=self.language)
        for row, encoding in zip(rows, found, strict=True):
            if len(encoding.ids) > longest:
                raise InputError(
                    f"a source has {len(encoding.ids)} tokens, the model reads {longest}: split it, or have it cut "
                    f"(cut=True, --cut): {row!r:.60}"
                )
            if not self.words(encoding):
                raise InputError(f"a source is empty: {row!r:.60}; give at least one word")
        return [[encoding] for encoding in found]

    @staticmethod
    def words(encoding: tokenizers.Encoding) -> int:
        """Tokens of a source that are not part of its frame."""
        return len(encoding.ids) - sum(encoding.special_tokens_mask)

    def run(self, batch: Mapping[str, torch.Tensor]) -> Sequence[Any]:
        inputs = {name: x for name, x in batch.items() if name in self.model.model.inputs}
        rows = len(batch["input_ids"])
        start = self.named.get("start_ids")
        found = generate(
            self.model,
            inputs,
            search=self.search,
            generator=self.generator if self.search.do_sample else None,
            streamer=self.streamer,
            progress=self.progress,
            **{**self.named, **({} if start is None else {"start_ids": start.to(self.model.device).expand(rows, -1)})},
        )
        texts, scores = [self.cut_at_stop(text) for text in found.texts(self.tokenizer)], found.scores.tolist()
        times = self.search.num_return_sequences
        return [
            (texts[row * times : (row + 1) * times], scores[row * times : (row + 1) * times]) for row in range(rows)
        ]

    def cut_at_stop(self, text: str) -> str:
        """A text without the stop string that ended it, and what stands behind."""
        places = [text.find(string) for string in self.search.stop if string in text]
        return text[: min(places)] if places else text

    def result(self, row: Any, pieces: Sequence[tokenizers.Encoding], found: Sequence[Any]) -> Result:
        ((texts, scores),) = found
        return {"text": texts[0], "score": scores[0], "texts": texts, "scores": scores}


class ContinuingPipeline(WritingPipeline):
    """The same with a causal model: a text -> how it goes on, its beginning included."""

    task = "causal-lm"
    row = "a beginning (str)"


def languages_of(
    model: Any, tokenizer: Tokenizer, source: str | None, target: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """How a model is told the languages: inputs of its call, and settings of the search."""
    inputs, config = model.model.inputs, model.config
    if "decoder_language_ids" in inputs:
        known = getattr(config, "languages", ())
        for language in (source, target):
            if language is None:
                raise InputError(f"say both languages; this model knows {', '.join(known)}")
            if language not in known:
                raise unknown("language of this model", language, known)
        return {"language_ids": source, "decoder_language_ids": target}, {}
    if target is None:
        if getattr(config, "start_token_id", 0) is None:
            known = ", ".join(sorted(tokenizer.frames.languages)) or "its tokenizer names none"
            raise InputError(f"say the language to write in; this model knows {known}")
        return {}, {}
    languages = tokenizer.frames.languages
    if not languages:
        raise TaskError(
            f"the tokenizer of this {type(model.model).__name__} has no language codes, so that to={target!r} can't be "
            "told; leave out to=, or give a tokenizer that has them"
        )
    for language in (source, target):
        if language is not None and language not in languages:
            raise unknown("language of this model", language, sorted(languages))
    if config.start_token_id is None:  # mBART-cc25 begins with the code
        return {"start_ids": torch.tensor([[languages[target]]])}, {}
    return {}, {"forced_bos_token_id": languages[target]}  # mBART-50 writes it first
