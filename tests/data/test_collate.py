"""Collators: what they may touch, how often, and that a generator decides everything."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.collate import (
    CausalLMCollator,
    EachTokenMasking,
    MaskedLMCollator,
    NGramMasking,
    SpanMasking,
    TokenMasking,
    TranslationLMCollator,
    WholeWordMasking,
    pad_examples,
    start_table,
)
from zoo.data.masking import prediction_budget, wordpiece_start
from zoo.errors import ConfigError, InputError

PAD, CLS, SEP, MASK = range(4)
PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"##w{n}" if n % 3 == 0 else f"w{n}" for n in range(4, 40))]
STARTS = start_table(PIECES, wordpiece_start)
CHOICES = [
    TokenMasking(),
    EachTokenMasking(),
    WholeWordMasking(STARTS),
    NGramMasking(),
    NGramMasking(2, STARTS),
    SpanMasking(),
    SpanMasking(starts=STARTS),
]


def collator(choice=CHOICES[0], **options) -> MaskedLMCollator:
    return MaskedLMCollator(mask_id=MASK, vocab_size=len(PIECES), special_ids=(PAD, CLS, SEP), choice=choice, **options)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


examples = st.lists(
    st.lists(st.integers(4, len(PIECES) - 1), min_size=1, max_size=20).map(
        lambda words: {"input_ids": [CLS, *words, SEP]}
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150)
@given(examples, st.sampled_from(CHOICES), st.integers(0, 2**32), st.floats(0.05, 1.0))
def test_only_labeled_places_change_and_none_of_them_is_special_or_padding(batch, choice, seed, probability):
    made = collator(choice, probability=probability)(batch, seeded(seed))
    clean = pad_examples(batch, PAD)
    labeled = made["labels"] != -100
    assert torch.equal(made["labels"][labeled], clean["input_ids"][labeled])
    assert torch.equal(made["input_ids"][~labeled], clean["input_ids"][~labeled])
    assert not torch.isin(clean["input_ids"][labeled], torch.tensor([PAD, CLS, SEP])).any()
    assert not labeled[clean["attention_mask"] == 0].any()
    assert made["lengths"] == tuple(len(example["input_ids"]) for example in batch)
    assert made["attention_mask"].sum(1).tolist() == list(made["lengths"])


@settings(max_examples=100)
@given(examples, st.integers(0, 2**32), st.floats(0.05, 1.0), st.one_of(st.none(), st.integers(1, 5)))
def test_the_number_of_predictions_is_exact(batch, seed, probability, maximum):
    counts = (
        (collator(probability=probability, max_predictions=maximum)(batch, seeded(seed))["labels"] != -100)
        .sum(1)
        .tolist()
    )
    words = [len(example["input_ids"]) - 2 for example in batch]
    assert counts == [min(n, prediction_budget(n + 2, probability, maximum)) for n in words]
    spans = (collator(SpanMasking(), probability=probability)(batch, seeded(seed))["labels"] != -100).sum(1).tolist()
    assert spans == [math.ceil(probability * n) for n in words]


@settings(max_examples=60)
@given(examples, st.sampled_from(CHOICES), st.integers(0, 2**32))
def test_the_same_generator_state_gives_the_same_batch(batch, choice, seed):
    make = collator(choice, probability=0.5)
    torch.manual_seed(seed % 7)  # the global generator has no say
    first = make(batch, seeded(seed))
    torch.manual_seed(seed % 7 + 1)
    again = make(batch, seeded(seed))
    assert all(torch.equal(first[name], again[name]) for name in ("input_ids", "labels"))


def test_a_generator_goes_on_from_batch_to_batch():
    generator = seeded(0)
    batch = [{"input_ids": [CLS, *range(4, 40), SEP]}]
    make = collator(probability=0.5)
    assert not torch.equal(make(batch, generator)["labels"], make(batch, generator)["labels"])


@pytest.mark.parametrize(
    "choice",
    CHOICES,
    ids=lambda choice: type(choice).__name__ + ("" if getattr(choice, "starts", None) is None else "-words"),
)
def test_every_choice_masks_80_keeps_10_and_replaces_10_percent(choice):
    batch = [{"input_ids": [CLS, *range(4, 40), SEP]}] * 600
    made = collator(choice, probability=0.3)(batch, seeded(1))
    clean = pad_examples(batch, PAD)["input_ids"]
    labeled = made["labels"] != -100
    total = int(labeled.sum())
    vocabulary = len(PIECES)
    slack = 5 * math.sqrt(0.16 / total) * (2.5 if choice.together else 1)  # spans share one draw: fewer draws
    assert int((made["input_ids"] == MASK).sum()) / total == pytest.approx(0.8 + 0.1 / vocabulary, abs=slack)
    assert int(((made["input_ids"] == clean) & labeled).sum()) / total == pytest.approx(
        0.1 + 0.1 / vocabulary, abs=slack
    )
    assert total / (600 * 38) == pytest.approx(0.3, abs=0.03)


def test_spans_of_spanbert_become_masks_or_not_as_a_whole():
    batch = [{"input_ids": list(range(4, 40))}] * 100
    mixed = {}
    for choice in (SpanMasking(), TokenMasking()):
        made = collator(choice, probability=0.5, shares=(0.5, 0.5, 0.0))(batch, seeded(0))
        labeled, masked = made["labels"] != -100, made["input_ids"] == MASK
        mixed[type(choice)] = int((labeled[:, 1:] & labeled[:, :-1] & (masked[:, 1:] != masked[:, :-1])).sum())
    assert mixed[SpanMasking] == 0
    assert mixed[TokenMasking] > 100


def test_every_token_is_chosen_equally_often():
    batch = [{"input_ids": [CLS, *range(4, 24), SEP]}] * 4000
    frequency = (collator()(batch, seeded(2))["labels"] != -100)[:, 1:-1].double().mean(0)
    assert frequency.sub(3 / 20).abs().max() < 5 * math.sqrt(0.15 * 0.85 / 4000)


@given(examples, st.integers(0, 2**32))
def test_whole_words_share_their_fate_of_being_chosen(batch, seed):
    made = collator(WholeWordMasking(STARTS), probability=0.5)(batch, seeded(seed))
    for row, example in enumerate(batch):
        labeled = (made["labels"][row] != -100).tolist()
        for place in range(2, len(example["input_ids"]) - 1):
            if not STARTS(example["input_ids"][place]):
                assert labeled[place] == labeled[place - 1]


def test_entries_beside_the_ids_are_padded_or_stacked():
    batch = pad_examples(
        [
            {"input_ids": [1, 5, 2, 6, 2], "token_type_ids": [0, 0, 0, 1, 1], "next_sentence_label": 1},
            {"input_ids": [1, 5, 2], "token_type_ids": [0, 0, 0], "next_sentence_label": 0},
        ],
        pad_id=9,
    )
    assert batch["input_ids"].tolist() == [[1, 5, 2, 6, 2], [1, 5, 2, 9, 9]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["next_sentence_label"].tolist() == [1, 0]
    assert batch["lengths"] == (5, 3)
    assert {tensor.dtype for name, tensor in batch.items() if name != "lengths"} == {torch.int64}


def test_causal_labels_are_the_next_tokens():
    batch = CausalLMCollator(pad_id=2)([{"input_ids": [1, 7, 8, 1]}, {"input_ids": [1, 9]}])
    assert batch["labels"].tolist() == [[7, 8, 1, -100], [9, -100, -100, -100]]
    assert batch["input_ids"].tolist() == [[1, 7, 8, 1], [1, 9, 2, 2]]


def test_translations_are_masked_on_both_sides_and_say_their_languages():
    masked = MaskedLMCollator(mask_id=5, vocab_size=40, special_ids=(1, 2), pad_id=2, probability=0.5)
    pair = {"first": [1, 20, 21, 22, 1], "second": [1, 30, 31, 1], "first_language": 3, "second_language": 0}
    batch = TranslationLMCollator(masked)([pair, {**pair, "second": [1, 33, 1]}], seeded(0))
    assert batch["position_ids"].tolist()[0] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch["language_ids"].tolist()[0] == [3] * 5 + [0] * 4
    assert batch["lengths"] == (9, 8)
    many = TranslationLMCollator(masked)([pair] * 300, seeded(1))["labels"] != -100
    assert many[:, 1:4].any(0).all()
    assert many[:, 6:8].any(0).all()
    assert not many[:, [0, 4, 5, 8]].any()
    shared = TranslationLMCollator(masked, reset_positions=False)([pair], seeded(0))
    assert shared["lengths"] == (8,)
    assert shared["position_ids"].tolist() == [list(range(8))]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([], "at least one"),
        ([{"input_ids": []}], "no tokens"),
        ([{"input_ids": [1]}, {"input_ids": [1], "token_type_ids": [0]}], "example 1"),
        ([{"input_ids": [1, 2], "token_type_ids": [0]}], "2 input_ids but 1 token_type_ids"),
        ([{"token_type_ids": [0]}], "input_ids"),
    ],
)
def test_malformed_examples_are_refused(batch, words):
    with pytest.raises(InputError, match=words):
        collator()(batch, seeded(0))


def test_malformed_translations_are_refused():
    with pytest.raises(InputError, match="second_language"):
        TranslationLMCollator(collator())([{"first": [1, 1], "second": [1, 1]}])


@pytest.mark.parametrize("options", [{"probability": 0.0}, {"probability": 1.5}, {"max_predictions": 0}])
def test_impossible_options_are_refused_with_their_value(options):
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        collator(**options)
    with pytest.raises(ConfigError, match="mask_id=99"):
        MaskedLMCollator(mask_id=99, vocab_size=10, special_ids=())
