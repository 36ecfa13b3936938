"""Words to guess: those behind masks, and the next of a text or of a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.nn import functional as F

from zoo.data.collate import MaskedLMCollator, pad_examples
from zoo.data.masking import IGNORED
from zoo.data.tables import Row
from zoo.errors import InputError, TaskError
from zoo.training.supervision.base import Batch, Supervision


class Guesses(Supervision):
    """What guessing words has in common: the loss of each word, and whether the best guess is right."""

    least = True

    @property
    def measure(self) -> str:
        return "loss"

    def results(self, output: Any, batch: Batch, examples: Sequence[Any]) -> list[Any]:
        labels = batch["labels"]
        logits = output.prediction_logits.detach()[:, : labels.shape[1]]  # regions may stand behind the words
        wanted = labels != IGNORED
        logits, labels = logits[wanted].float(), labels[wanted]
        if not len(labels):
            return []
        losses = F.cross_entropy(logits, labels, reduction="none")
        return list(zip(losses.tolist(), (logits.argmax(1) == labels).tolist(), strict=True))

    def figures(self, results: Sequence[Any]) -> dict[str, float]:
        if not results:
            return {"loss": float("nan")}
        mean = sum(loss for loss, _ in results) / len(results)
        right = sum(hit for _, hit in results) / len(results)
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0)), "accuracy": right}


class MaskedWords(Guesses):
    """``text``: 15 % of its tokens are masked anew each time, as BERT does it."""

    needed = ("text",)
    optional = ()

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if self.tokenizer.mask_token_id is None:
            raise TaskError("this tokenizer has no mask token, so nothing can be masked")
        self.collator = MaskedLMCollator(
            mask_id=self.tokenizer.mask_token_id,
            vocab_size=self.tokenizer.vocab_size,
            special_ids=self.tokenizer.special_token_ids,
        )

    def batch(self, examples: Sequence[Row]) -> Batch:
        batch = self.encoded([self.columns.text(row, "text") for row in examples])
        return {**batch, **self.collator.corrupt(batch["input_ids"], batch["lengths"])}


class NextWords(Guesses):
    """``text``: each of its words, given those before it. Where the tokenizer puts nothing behind a text, what ends
    one (`end_token_id` of the model's config) is learned behind it too.
    """

    needed = ("text",)
    optional = ()
    end: int | None = None

    def prepare(self, model: Any) -> None:
        self.end = getattr(model.config, "end_token_id", None)
        self.longest = self.max_length or self.tokenizer.max_length or model.config.max_positions

    def batch(self, examples: Sequence[Row]) -> Batch:
        found = self.tokenizer.encodings([self.columns.text(row, "text") for row in examples], max_length=self.longest)
        rows = []
        for number, encoding in enumerate(found):
            ids, framed = list(encoding.ids), bool(encoding.special_tokens_mask and encoding.special_tokens_mask[-1])
            if self.end is not None and not framed and len(ids) < self.longest:
                ids.append(self.end)
            if len(ids) < 2:
                raise InputError(f"text {number + 1} of the batch has fewer than two tokens, so no next word")
            rows.append({"input_ids": ids})
        batch = pad_examples(rows, self.tokenizer.pad_token_id or 0)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}

    def results(self, output: Any, batch: Batch, examples: Sequence[Row]) -> list[Any]:
        following = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # a place predicts the next token
        return super().results(output, {"labels": following}, examples)


class Generation(Guesses):
    """``source`` and ``target``: the words of the target, each given the source and those before it;
    ``source_language`` and ``target_language`` for tokenizers that know languages.
    """

    needed = ("source", "target")
    optional = ("source_language", "target_language")

    def size(self, example: Row) -> int:
        return len(self.columns.text(example, "source")) + len(self.columns.text(example, "target"))

    def batch(self, examples: Sequence[Row]) -> Batch:
        batch, target = self._texts(examples, "source"), self._texts(examples, "target")
        labels = target["input_ids"].masked_fill(target["attention_mask"] == 0, IGNORED)
        return {**batch, "labels": labels}

    def prompts(self, examples: Sequence[Row]) -> tuple[Batch, list[list[str]]]:
        batch = self._texts(examples, "source")
        return batch, [[self.columns.text(row, "target")] for row in examples]

    def _texts(self, rows: Sequence[Row], which: str) -> Batch:
        languages = None
        if (meaning := f"{which}_language") in self.columns:
            languages = [self.columns.text(row, meaning) for row in rows]
        return self.encoded([self.columns.text(row, which) for row in rows], languages=languages)
