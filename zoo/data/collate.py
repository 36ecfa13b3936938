"""Batches for pre-training: pad to the longest, corrupt what is to be guessed, say where the loss
looks.

    MaskedLMCollator(mask_id=103, vocab_size=30_522, special_ids=(0, 101, 102), choice=WholeWordMasking(starts))
    CausalLMCollator(pad_id=2)
    TranslationLMCollator(MaskedLMCollator(...))

An *example* is a mapping: ``input_ids`` and, if the model reads them, what else the table of inputs
has for each token (``token_type_ids``, ``position_ids``, ``language_ids``, ...), each a sequence of
ints of one length; any other entry is a number for the whole example (``next_sentence_label``,
``sentence_order_label``). A batch is what models take: int64 tensors (batch, length),
``attention_mask`` (1 = real), ``labels`` (-100 = nothing to predict), numbers as (batch,), and
``lengths``, plain ints, so that a packing model need not ask the device for them.

Collators are frozen and hold no random state: they take a ``torch.Generator`` (``None``: torch's
global one), and the same generator state gives the same batch. For a DataLoader:
``collate_fn=functools.partial(collator, generator=generator)``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from zoo.data.instances import join_translations
from zoo.data.masking import (
    BERT_SHARES,
    IGNORED,
    NGrams,
    Shares,
    choose_spans,
    choose_units,
    prediction_budget,
    python_random,
    replace_ids,
    word_units,
)
from zoo.errors import ConfigError, InputError
from zoo.registry.inputs import INPUTS

Example = Mapping[str, Any]
Batch = dict[str, Any]
Starts = Callable[[int], bool]

PER_TOKEN = tuple(
    name
    for name in INPUTS.along("length")
    if len(INPUTS[name].axes) == 2 and INPUTS[name].dtype.startswith("int")  # ids and the like, not vectors
)


# --- padding
# ------------------------------------------------------------------------------------------------------------------


def pad_examples(examples: Sequence[Example], pad_id: int) -> Batch:
    """Pad to the longest example: ``pad_id`` for ids, 0 for types, positions and languages; adds
    ``attention_mask`` and ``lengths``.
    """
    if not examples:
        raise InputError("a batch needs at least one example")
    names = set(examples[0])
    per_token = [name for name in PER_TOKEN if hasattr(examples[0].get(name), "__len__")]
    for number, example in enumerate(examples):
        if "input_ids" not in example or set(example) != names:
            raise InputError(
                f"example {number} has the entries {sorted(example)}; all need input_ids, and the entries of the first"
            )
        if len(example["input_ids"]) == 0:
            raise InputError(f"example {number} has no tokens")
        for name in per_token:
            if len(example[name]) != len(example["input_ids"]):
                raise InputError(
                    f"example {number} has {len(example['input_ids'])} input_ids but {len(example[name])} {name}"
                )
    lengths = tuple(len(example["input_ids"]) for example in examples)
    batch: Batch = {"attention_mask": _real(lengths).long(), "lengths": lengths}
    for name in examples[0]:
        if name in per_token:
            batch[name] = padded([example[name] for example in examples], pad_id if name == "input_ids" else 0)
        else:
            batch[name] = torch.tensor([example[name] for example in examples])
    return batch


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of several lengths as one (rows, longest) of int64, ``fill`` behind each."""
    grid = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.int64)
    for number, row in enumerate(rows):
        grid[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return grid


def _real(lengths: Sequence[int]) -> Tensor:
    """(batch, longest) bool, True where a token stands."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


# --- what is masked
# ------------------------------------------------------------------------------------------------------------------


class Choice(Protocol):
    """Which positions of one unpadded sequence are to be guessed; ``special`` tokens never are."""

    @property
    def together(self) -> bool:
        """True: touching positions share one draw of mask, original or random."""
        ...

    def choose(
        self,
        input_ids: Sequence[int],
        special: Collection[int],
        probability: float,
        maximum: int | None,
        rng: random.Random,
    ) -> list[int]: ...


@dataclass(frozen=True)
class TokenMasking:
    """BERT: exactly ``round(probability * length)`` tokens (specials counted in the length, at
    least one), chosen one by one.
    """

    together: ClassVar[bool] = False

    def choose(
        self,
        input_ids: Sequence[int],
        special: Collection[int],
        probability: float,
        maximum: int | None,
        rng: random.Random,
    ) -> list[int]:
        return choose_units(
            word_units(input_ids, special), prediction_budget(len(input_ids), probability, maximum), rng
        )


@dataclass(frozen=True)
class EachTokenMasking:
    """RoBERTa and XLM: every token on its own with ``probability``, so that the number varies and
    may be zero.
    """

    together: ClassVar[bool] = False

    def choose(
        self,
        input_ids: Sequence[int],
        special: Collection[int],
        probability: float,
        maximum: int | None,
        rng: random.Random,
    ) -> list[int]:
        chosen = [  # eq: each-token
            place for place, token in enumerate(input_ids) if token not in special and rng.random() < probability
        ]
        return chosen if maximum is None else sorted(rng.sample(chosen, min(maximum, len(chosen))))


@dataclass(frozen=True)
class WholeWordMasking:
    """BERT's whole words: all pieces of a word or none. ``starts(id)`` says whether a token begins
    a word (``start_table``).
    """

    starts: Starts
    together: ClassVar[bool] = False

    def choose(
        self,
        input_ids: Sequence[int],
        special: Collection[int],
        probability: float,
        maximum: int | None,
        rng: random.Random,
    ) -> list[int]:
        units = word_units(input_ids, special, self.starts)
        return choose_units(units, prediction_budget(len(input_ids), probability, maximum), rng)


@dataclass(frozen=True)
class NGramMasking:
    """ALBERT: n-grams of up to ``max_n`` words, p(n) ~ 1/n; of single tokens where ``starts`` is
    None.
    """

    max_n: int = 3
    starts: Starts | None = None
    together: ClassVar[bool] = False

    def choose(
        self,
        input_ids: Sequence[int],
        special: Collection[int],
        probability: float,
        maximum: int | None,
        rng: random.Random,
    ) -> list[int]:
        units = word_units(input_ids, special, self.starts)
        n_grams = NGrams(self.max_n)
        budget = prediction_budget(len(input_ids), probability, maximum)
        return n_grams.choose(units, n_grams.starts(units, rng), budget, rng.random)


@dataclass(frozen=True)
class SpanMasking:
    """SpanBERT: spans of words, length geometric with ``decay`` and at most ``max_words``, until
    ``ceil(probability * length)`` tokens.

    The length is that without special tokens. A whole span becomes masks, stays, or becomes random
    tokens. Random tokens are drawn from the vocabulary; SpanBERT itself drew them from the corpus.
    """

    decay: float = 0.2
    max_words: int = 10
    starts: Starts | None = None
    together: ClassVar[bool] = True

    def choose(
        self,
        input_ids: Sequence[int],
        special: Collection[int],
        probability: float,
        maximum: int | None,
        rng: random.Random,
    ) -> list[int]:
        units = word_units(input_ids, special, self.starts)
        budget = math.ceil(probability * sum(map(len, units)))
        return choose_spans(units, budget if maximum is None else min(budget, maximum), rng, self.decay, self.max_words)


def start_table(pieces: Sequence[str], rule: Callable[[str], bool]) -> Starts:
    """``starts`` for a vocabulary: ``pieces`` by id, and a rule such as
    ``zoo.data.masking.wordpiece_start``.
    """
    table = tuple(map(rule, pieces))
    return table.__getitem__


# --- collators
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MaskedLMCollator:
    """Masked language modeling: of the tokens that ``choice`` picks 80 % become ``mask_id``, 10 %
    stay, 10 % become any of ``vocab_size``.

    ``special_ids`` ([CLS], [SEP], padding, ...) are never picked. ``labels`` hold the original
    where a token was picked, else -100.
    """

    mask_id: int
    vocab_size: int
    special_ids: Collection[int]
    pad_id: int = 0
    probability: float = 0.15
    max_predictions: int | None = None
    choice: Choice = TokenMasking()
    shares: Shares = BERT_SHARES

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_ids", frozenset(self.special_ids))
        if not 0 <= self.mask_id < self.vocab_size:
            raise ConfigError(
                f"mask_id={self.mask_id} is not an id of the vocabulary: it must lie in 0..{self.vocab_size - 1}"
            )
        if not 0 < self.probability <= 1:
            raise ConfigError(f"probability={self.probability} must lie above 0 and not above 1; BERT's is 0.15")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ConfigError(f"max_predictions={self.max_predictions} must be at least 1, or None for no limit")

    def __call__(self, examples: Sequence[Example], generator: torch.Generator | None = None) -> Batch:
        batch = pad_examples(examples, self.pad_id)
        return batch | self.corrupt(batch["input_ids"], batch["lengths"], generator)

    def corrupt(
        self, input_ids: Tensor, lengths: Sequence[int], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """New ``input_ids`` and ``labels`` for padded ids (batch, length); ``lengths`` are the real
        tokens of each row, at its front.
        """
        rng = python_random(generator)
        chosen = torch.zeros_like(input_ids, dtype=torch.bool)
        for number, (row, length) in enumerate(zip(input_ids.tolist(), lengths, strict=True)):
            places = self.choice.choose(row[:length], self.special_ids, self.probability, self.max_predictions, rng)
            chosen[number, places] = True
        corrupted, labels = replace_ids(
            input_ids, chosen, self.mask_id, self.vocab_size, generator, self.shares, together=self.choice.together
        )
        return {"input_ids": corrupted, "labels": labels}


@dataclass(frozen=True, kw_only=True)
class CausalLMCollator:
    """Language modeling from left to right: the label of a place is the *next* token, so labels
    stand where their logits do.

    The last real place of a row has label -100. For XLM's head, whose loss shifts nothing; the task
    causal-lm (GPT-2) takes the ids themselves as labels.
    """

    pad_id: int = 0

    def __call__(self, examples: Sequence[Example], generator: torch.Generator | None = None) -> Batch:
        batch = pad_examples(examples, self.pad_id)
        following = torch.full_like(batch["input_ids"], IGNORED)  # eq: next-token
        following[:, :-1] = batch["input_ids"][:, 1:]  # eq: next-token
        has_next = torch.zeros_like(batch["attention_mask"])
        has_next[:, :-1] = batch["attention_mask"][:, 1:]
        return batch | {"labels": torch.where(has_next.bool(), following, IGNORED)}


@dataclass(frozen=True)
class TranslationLMCollator:
    """XLM's translation language modeling: a sentence and its translation in one row, masked on
    both sides.

    Examples: ``first`` and ``second`` (ids, each ``</s> words </s>``), ``first_language`` and
    ``second_language`` (ids of languages). The batch has ``position_ids`` that start again at 0 in
    the second sentence, and ``language_ids``; without ``reset_positions`` see
    ``join_translations``. ``masked_lm.choice`` sees both sentences as one sequence.
    """

    masked_lm: MaskedLMCollator
    reset_positions: bool = True

    def __call__(self, examples: Sequence[Example], generator: torch.Generator | None = None) -> Batch:
        wanted = {"first", "second", "first_language", "second_language"}
        for number, example in enumerate(examples):
            if set(example) != wanted or len(example["first"]) < 2 or len(example["second"]) < 2:
                raise InputError(
                    f"example {number} needs exactly the entries {sorted(wanted)}, each sentence with both its ends"
                )
        if not examples:
            raise InputError("a batch needs at least one example")
        first, second = ([example[side] for example in examples] for side in ("first", "second"))
        pad_id = self.masked_lm.pad_id
        joined = join_translations(
            padded(first, pad_id),
            torch.tensor([len(ids) for ids in first]),
            torch.tensor([example["first_language"] for example in examples]),
            padded(second, pad_id),
            torch.tensor([len(ids) for ids in second]),
            torch.tensor([example["second_language"] for example in examples]),
            pad_id,
            self.reset_positions,
        )
        lengths = tuple(joined.lengths.tolist())
        batch: Batch = {
            "attention_mask": _real(lengths).long(),
            "lengths": lengths,
            "position_ids": joined.position_ids,
            "language_ids": joined.language_ids,
        }
        return batch | self.masked_lm.corrupt(joined.input_ids, lengths, generator)
