"""What is masked and what stands in its place: against the references' data code, as distributions,
and for every input that is allowed.
"""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.references import pretraining_data
from tests.references.case import find_adapter, golden_cases, load_case
from tests.references.compare import compare
from zoo.data.instances import join_translations, pair_examples, sentence_pairs, text_blocks
from zoo.data.masking import (
    NGrams,
    add_noise,
    choose_spans,
    choose_units,
    choose_weighted,
    drop_words,
    permute,
    prediction_budget,
    python_random,
    rarity_weights,
    replace_ids,
    replace_tokens,
    sentencepiece_start,
    shuffle_words,
    word_units,
    wordpiece_start,
    write_samples,
    xlm_choice,
)
from zoo.errors import InputError

CASES = golden_cases("bert/masking", "albert/masking", "electra/scatter-update", "whole-word-masking/*", "xlm/[acm]*")


def within(count: int, draws: int, probability: float, deviations: float = 5) -> bool:
    """Is ``count`` of ``draws`` as near to ``probability`` as chance allows?"""
    return abs(count - draws * probability) <= deviations * math.sqrt(draws * probability * (1 - probability))


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_the_reference_data_code_gives_the_same(folder):
    case = load_case(folder)
    assert compare(case, find_adapter(case)(case)) == []


@pytest.mark.parametrize("folder", golden_cases("whole-word-masking/*"), ids=lambda folder: folder.name)
def test_the_recorded_draws_and_the_recorded_seed_agree(folder, monkeypatch):
    case = load_case(folder)
    replayed = find_adapter(case)(case)
    monkeypatch.delitem(case.given, "draws")
    assert find_adapter(case)(case) == replayed


def test_a_replay_notices_a_draw_of_another_kind():
    with pytest.raises(AssertionError, match="shuffle"):
        pretraining_data.ReplayedRandom([["shuffle", [0]]]).random()


# --- units ------------------------------------------------------------------------------------------------------------


def test_pieces_join_the_word_before_them_even_across_a_separator():
    tokens = ["[CLS]", "##a", "b", "##c", "[SEP]", "##d", "e", "[SEP]"]
    assert word_units(tokens, ("[CLS]", "[SEP]"), wordpiece_start) == [[1], [2, 3, 5], [6]]
    assert word_units(tokens, ("[CLS]", "[SEP]")) == [[1], [2], [3], [5], [6]]


@pytest.mark.parametrize(
    ("piece", "starts"),
    [("a=", True), ("s.", False), (".", True), ("=", True), ("É", True), ("Ing", False), ("▁a", True)],
)
def test_sentence_pieces_with_foreign_characters_begin_words(piece, starts):
    assert sentencepiece_start(piece) is starts


def test_the_budget_rounds_half_to_even_and_is_at_least_one():
    assert [prediction_budget(length, 0.15) for length in (1, 10, 30, 50)] == [1, 2, 4, 8]
    assert prediction_budget(128, 0.15, 12) == 12


@st.composite
def sequences(draw):
    """Tokens (0 and 1 are special, odd ones go on with a word) and a budget."""
    return (
        draw(st.lists(st.integers(0, 9), min_size=1, max_size=40)),
        draw(st.integers(0, 12)),
        draw(st.integers(0, 2**32)),
    )


def starts(token: int) -> bool:
    return token % 2 == 0


@given(sequences())
def test_whole_words_are_masked_or_left_and_the_budget_is_never_exceeded(example):
    tokens, budget, seed = example
    units = word_units(tokens, (0, 1), starts)
    chosen = choose_units(units, budget, random.Random(seed))
    assert len(chosen) == len(set(chosen)) <= budget
    assert all(set(unit) <= set(chosen) or not set(unit) & set(chosen) for unit in units)
    assert not any(tokens[place] in (0, 1) for place in chosen)
    left = [unit for unit in units if not set(unit) & set(chosen)]
    assert all(len(chosen) + len(unit) > budget for unit in left)  # nothing more would have fitted


@given(sequences())
def test_single_tokens_fill_the_budget_exactly(example):
    tokens, budget, seed = example
    units = word_units(tokens, (0, 1))
    assert len(choose_units(units, budget, random.Random(seed))) == min(budget, len(units))


@given(sequences(), st.integers(1, 4), st.booleans())
def test_n_grams_of_words_are_runs_of_whole_words_within_the_budget(example, max_n, longer):
    tokens, budget, seed = example
    units = word_units(tokens, (0, 1), starts)
    rng = random.Random(seed)
    n_grams = NGrams(max_n, longer)
    chosen = n_grams.choose(units, n_grams.starts(units, rng), budget, rng.random)
    assert len(chosen) == len(set(chosen)) <= budget
    assert all(set(unit) <= set(chosen) or not set(unit) & set(chosen) for unit in units)


@given(sequences(), st.floats(0.05, 0.9), st.integers(1, 10))
def test_spans_fill_the_budget_exactly_and_begin_with_a_word(example, decay, max_words):
    tokens, budget, seed = example
    units = word_units(tokens, (0, 1), starts)
    chosen = set(choose_spans(units, budget, random.Random(seed), decay, max_words))
    assert len(chosen) == min(budget, sum(map(len, units)))
    cut = [unit for unit in units if 0 < len(chosen.intersection(unit)) < len(unit)]
    assert len(cut) <= 1  # only the last span may end inside a word
    assert all(unit[0] in chosen for unit in cut)


def test_n_gram_lengths_fall_as_one_over_n():
    rng = random.Random(0)
    draws = 20_000
    lengths = Counter(NGrams(3).length(rng.random()) for _ in range(draws))
    assert all(within(lengths[n], draws, (1 / n) / (1 + 1 / 2 + 1 / 3)) for n in (1, 2, 3))
    turned = Counter(NGrams(3, longer=True).length(rng.random()) for _ in range(draws))
    assert all(within(turned[n], draws, (1 / (4 - n)) / (1 + 1 / 2 + 1 / 3)) for n in (1, 2, 3))
    assert NGrams(3).length(1 - 2**-53) == 3


def test_span_lengths_are_geometric_with_a_mean_of_3_8_words():
    rng = random.Random(0)
    units = [[place] for place in range(4000)]  # so long that the first span is never cut
    first = []
    for _ in range(3000):
        chosen = choose_spans(units, 10, rng)
        first.append(next((n for n in range(1, 10) if chosen[n] != chosen[n - 1] + 1), 10))
    weights = [0.8 ** (n - 1) for n in range(1, 11)]
    mean = sum(n * w for n, w in enumerate(weights, 1)) / sum(weights)
    assert mean == pytest.approx(3.797, abs=1e-3)  # the value that the paper states as 3.8
    assert sum(first) / len(first) == pytest.approx(mean, abs=5 * 2.6 / math.sqrt(len(first)))


# --- replacement ------------------------------------------------------------------------------------------------------


def test_of_the_chosen_tokens_80_percent_become_the_mask_10_stay_10_become_any_word():
    draws = 20_000
    tokens = ["w"] * draws
    vocabulary = ["[MASK]", "w", "a", "b"]
    masked = replace_tokens(tokens, range(draws), "[MASK]", vocabulary, random.Random(3))
    counts = Counter(masked.tokens)
    assert within(counts["[MASK]"], draws, 0.8 + 0.1 / 4)
    assert within(counts["w"], draws, 0.1 + 0.1 / 4)
    assert within(counts["a"], draws, 0.1 / 4)
    assert masked.labels == tokens


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (0.0, 1.0, 0.0)])
def test_ids_are_replaced_in_the_shares_that_are_asked_for(shares):
    ids = torch.full((40, 500), 7)
    corrupted, labels = replace_ids(
        ids, torch.ones_like(ids, dtype=torch.bool), 4, 10, torch.Generator().manual_seed(0), shares
    )
    draws = ids.numel()
    assert within(int((corrupted == 4).sum()), draws, shares[0] + shares[2] / 10)
    assert within(int((corrupted == 7).sum()), draws, shares[1] + shares[2] / 10)
    for other in (0, 9):
        assert within(int((corrupted == other).sum()), draws, shares[2] / 10)
    assert torch.equal(labels, ids)


@given(st.integers(0, 2**32))
def test_a_run_of_neighbours_shares_one_fate_when_asked(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(100, 160).reshape(2, 30)
    chosen = torch.rand(2, 30, generator=generator) < 0.6
    corrupted, _ = replace_ids(ids, chosen, 1, 50, generator, together=True)
    kind = torch.where(corrupted == ids, 0, torch.where(corrupted == 1, 1, 2))  # a random id may be 1, once in fifty
    for row in range(2):
        for place in range(1, 30):
            if chosen[row, place] and chosen[row, place - 1]:
                pair = {int(kind[row, place]), int(kind[row, place - 1])}
                assert len(pair) == 1 or pair == {1, 2}
    assert torch.equal(corrupted[~chosen], ids[~chosen])


def test_shares_that_do_not_sum_to_one_are_refused():
    ids = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(InputError, match=r"sum to 1"):
        replace_ids(ids, ids.bool(), 1, 2, None, (0.8, 0.1, 0.2))


def test_permuted_tokens_change_places_among_themselves():
    moved = permute(list("abcdef"), {1, 3, 4}, random.Random(1))
    assert sorted(moved.tokens) == list("abcdef")
    assert [moved.tokens[p] for p in (0, 2, 5)] == ["a", "c", "f"]
    assert (moved.positions, moved.labels) == ([1, 3, 4], ["b", "d", "e"])


# --- XLM and ELECTRA --------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_xlm_never_chooses_padding_nor_the_first_place(seed, lengths):
    ids = torch.randint(14, 30, (len(lengths), max(lengths)))
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    chosen = xlm_choice(ids, real, 0.9, generator=torch.Generator().manual_seed(seed))
    assert not chosen[:, 0].any()
    assert not (chosen & ~real).any()


def test_rare_words_are_chosen_more_often_and_special_ones_never():
    weights = rarity_weights(torch.tensor([0, 0, 100, 1]), 0.5)
    assert weights.tolist() == [0.0, 0.0, 0.1, 1.0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 2, 3, 1]])
    real = torch.ones_like(ids)
    draws = [xlm_choice(ids, real, 0.25, weights, generator) for _ in range(3000)]
    assert all(int(chosen.sum()) == 1 for chosen in draws)
    assert within(sum(bool(chosen[0, 2]) for chosen in draws), 3000, 1 / 1.1)


def test_more_places_than_words_are_refused():
    with pytest.raises(InputError, match="only 1"):
        choose_weighted(torch.tensor([0.0, 1.0]), 2)


@settings(max_examples=50)
@given(st.data())
def test_samples_are_written_as_a_loop_would(data):
    length = data.draw(st.integers(1, 6))
    ids = data.draw(st.lists(st.integers(0, 20), min_size=length, max_size=length))
    places = data.draw(st.lists(st.integers(0, length - 1), max_size=6))
    samples = data.draw(st.lists(st.integers(0, 20), min_size=len(places), max_size=len(places)))
    expected = [
        sum(hits) // len(hits)
        if place and (hits := [s for s, p in zip(samples, places, strict=True) if p == place])
        else ids[place]
        for place in range(length)
    ]
    updated, written = write_samples(
        torch.tensor([ids]), torch.tensor([samples], dtype=torch.int64), torch.tensor([places], dtype=torch.int64)
    )
    assert updated[0].tolist() == expected
    assert written[0].tolist() == [place > 0 and place in places for place in range(length)]


# --- noise ------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 20), st.integers(0, 2**32), st.floats(0.5, 5))
def test_shuffled_words_move_less_than_the_window(length, seed, window):
    rng = random.Random(seed)
    shuffled = shuffle_words(range(length), [rng.uniform(0, window) for _ in range(length)])
    assert sorted(shuffled) == list(range(length))
    assert (shuffled[0], shuffled[-1]) == (0, length - 1)
    assert all(abs(word - place) <= math.ceil(window) for place, word in enumerate(shuffled))


def test_a_sentence_that_lost_every_word_gets_one_back():
    assert drop_words(["</s>", "a", "b", "c", "</s>"], [0.0] * 4, 0.5, lambda count: count - 1) == ["</s>", "c", "</s>"]
    assert drop_words(["</s>", "</s>"], [0.0], 0.5, lambda count: count - 1) == ["</s>", "</s>"]


def test_noise_drops_and_blanks_a_tenth_each():
    sentence = ["</s>", *map(str, range(20_000)), "</s>"]
    noised = add_noise(sentence, "<mask>", random.Random(0))
    kept = len(noised) - 2
    assert within(20_000 - kept, 20_000, 0.1)
    assert within(noised.count("<mask>"), kept, 0.1)
    assert noised != add_noise(sentence, "<mask>", random.Random(1))
    assert noised == add_noise(sentence, "<mask>", random.Random(0))


# --- instances --------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_pairs_fit_and_keep_their_documents_in_order(data):
    sizes = data.draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=2, max_size=4))
    numbers = iter(range(10_000))
    documents = [[[next(numbers) for _ in range(size)] for size in sentences] for sentences in sizes]
    max_length = data.draw(st.integers(5, 40))
    objective = data.draw(st.sampled_from(["next-sentence", "sentence-order"]))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    owner = {token: index for index, sentences in enumerate(documents) for sentence in sentences for token in sentence}
    for index in range(len(documents)):
        for pair in sentence_pairs(documents, index, max_length, rng, objective):
            assert pair.first
            assert pair.second
            assert len(pair.first) + len(pair.second) + 3 <= max_length
            for side in (pair.first, pair.second):
                assert side == list(range(side[0], side[0] + len(side)))  # a stretch of one document
            if pair.label == 0:
                assert pair.second[0] > pair.first[-1]
                assert {owner[t] for t in pair.first + pair.second} == {index}
            elif {owner[t] for t in pair.first + pair.second} == {index} and objective == "sentence-order":
                alone = any(set(pair.first) <= set(sentence) for sentence in documents[index])
                # one sentence alone gets a random other, which after ten tries may be of its own document
                assert pair.second[-1] < pair.first[0] or alone


@pytest.mark.parametrize("objective", ["next-sentence", "sentence-order"])
def test_half_of_the_pairs_are_negative(objective):
    documents = [[[d * 1000 + s] * 4 for s in range(200)] for d in range(20)]
    rng = random.Random(0)
    examples = list(pair_examples(documents, 1, 2, 64, objective, rng, short_probability=0.0))
    label = f"{objective.replace('-', '_')}_label"
    assert within(sum(example[label] for example in examples), len(examples), 0.5)
    if objective == "next-sentence":
        strange = sum(example["input_ids"][1] // 1000 != example["input_ids"][-2] // 1000 for example in examples)
        assert strange == sum(example[label] for example in examples)  # every negative comes from another document
    first = examples[0]
    assert first["input_ids"][0] == 1
    assert [first["input_ids"][p] for p in (first["token_type_ids"].index(1) - 1, -1)] == [2, 2]


def test_an_unknown_objective_and_empty_documents_are_refused():
    with pytest.raises(LookupError, match="next-sentence"):
        next(sentence_pairs([[[1]]], 0, 10, random.Random(0), "next sentence"))
    with pytest.raises(InputError, match="empty"):
        next(sentence_pairs([[[1], []]], 0, 10, random.Random(0), "next-sentence"))
    with pytest.raises(InputError, match="max_length=4"):
        next(sentence_pairs([[[1]]], 0, 4, random.Random(0), "next-sentence"))


@settings(max_examples=60)
@given(st.data())
def test_translations_are_joined_as_lists_would_be(data):
    rows = data.draw(st.integers(1, 3))
    sentence = st.lists(st.integers(14, 30), min_size=1, max_size=5).map(lambda words: [1, *words, 1])
    first, second = (data.draw(st.lists(sentence, min_size=rows, max_size=rows)) for _ in range(2))
    reset = data.draw(st.booleans())
    grids = [
        torch.nn.utils.rnn.pad_sequence([torch.tensor(s) for s in side], batch_first=True, padding_value=2)
        for side in (first, second)
    ]
    lengths = [torch.tensor([len(s) for s in side]) for side in (first, second)]
    joined = join_translations(grids[0], lengths[0], 5, grids[1], lengths[1], torch.tensor([6] * rows), 2, reset)
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        if reset:
            ids, positions, languages = a + b, [*range(len(a)), *range(len(b))], [5] * len(a) + [6] * len(b)
        else:
            ids, languages = a + b[1:], [5] * (len(a) - 1) + [6] * len(b)
            positions = list(range(len(ids)))
        n = int(joined.lengths[row])
        assert joined.input_ids[row, :n].tolist() == ids
        assert joined.position_ids[row, :n].tolist() == positions
        assert joined.language_ids[row, :n].tolist() == languages
        assert (joined.input_ids[row, n:] == 2).all()


def test_blocks_are_full_and_in_order():
    assert list(text_blocks([[1, 2], [3], [4, 5, 6]], 3, end=0)) == [[1, 2, 0], [3, 0, 4], [5, 6, 0]]


def test_a_torch_generator_decides_the_python_one():
    first, again, other = (python_random(torch.Generator().manual_seed(seed)).random() for seed in (0, 0, 1))
    assert first == again != other
