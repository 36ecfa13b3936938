"""Metrics: against the benchmarks' own scripts, and against counting by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.references.case import Output, Skipped, find_adapter, golden_cases, load_case
from tests.references.compare import compare
from zoo.errors import InputError, UnknownNameError
from zoo.tasks.metrics.language import (
    Mined,
    answer_f1,
    binary_f1,
    exact_match,
    glue_metrics,
    matthews_correlation,
    mine_translations,
    mining_scores,
    mlqa_normalizer,
    nearest,
    span_scores,
    spearman_correlation,
    squad_v1,
    squad_v2,
    tag_spans,
)


@pytest.mark.parametrize("folder", golden_cases("nlu-tasks/*"), ids=lambda folder: folder.name)
def test_the_benchmark_script_gives_the_same(folder):
    case = load_case(folder)
    assert compare(case, find_adapter(case)(case)) == []


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_two_classes_are_scored_as_counting_says(pairs):
    ours, theirs = (torch.tensor(side) for side in zip(*pairs, strict=True))
    tp, fp, fn, tn = (sum(pair == kind for pair in pairs) for kind in ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert binary_f1(ours, theirs) == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0.0)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert matthews_correlation(ours, theirs) == pytest.approx(
        (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_equal_values_share_their_average_rank(pairs):
    sides = [list(side) for side in zip(*pairs, strict=True)]
    assume(all(len(set(side)) > 1 for side in sides))
    ranks = [[sum(other < value for other in side) + (side.count(value) + 1) / 2 for value in side] for side in sides]
    wanted = float(torch.corrcoef(torch.tensor(ranks, dtype=torch.float64))[0, 1])
    assert spearman_correlation(*(torch.tensor(side) for side in sides)) == pytest.approx(wanted, abs=1e-9)


def test_a_task_or_language_that_does_not_exist_is_refused():
    with pytest.raises(UnknownNameError, match="sst-2"):
        glue_metrics("sst2", torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(UnknownNameError, match="'de'"):
        mlqa_normalizer("dee")
    with pytest.raises(InputError, match="one length"):
        glue_metrics("rte", torch.tensor([1]), torch.tensor([1, 0]))


def test_two_empty_answers_differ_between_the_squad_versions():
    assert (exact_match("the", "a"), answer_f1("the", "a"), answer_f1("the", "a", empty_matches=True)) == (
        1.0,
        0.0,
        1.0,
    )


def test_a_question_without_prediction_counts_in_version_1_and_not_in_2():
    answers = {"a": ["x"], "b": ["y"]}
    assert squad_v1({"a": "x"}, answers)["f1"] == 50.0
    assert squad_v2({"a": "x"}, answers)["f1"] == 100.0


def test_a_threshold_turns_answers_into_no_answer():
    answers = {"a": ["x"], "b": [""]}
    predictions = {"a": "x", "b": "z"}
    scores = squad_v2(predictions, answers, {"a": 0.2, "b": 0.9}, threshold=0.5)
    assert (scores["exact"], scores["NoAns_exact"], scores["HasAns_exact"]) == (100.0, 100.0, 100.0)
    assert squad_v2(predictions, answers, {"a": 0.2, "b": 0.9})["exact"] == 50.0
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (100.0, 0.2)


@pytest.mark.parametrize(
    ("language", "text", "wanted"),
    [
        ("en", "The A-team, an end", "ateam end"),
        ("de", "Die Straße des Herrn", "straße herrn"),
        ("es", "¿Unos días?", "días"),
        ("hi", "the भारत।", "the भारत"),
        ("ar", "قال الملك", "ق ملك"),
        ("zh", "北京2008年ab cd", "北 京 2008 年 ab cd"),
    ],
)
def test_answers_are_normalised_by_language(language, text, wanted):
    assert mlqa_normalizer(language)(text) == wanted


TAGS = ["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "NOUN", "ADP", "B", "I"]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_spans_do_not_overlap_and_cover_what_is_tagged(tags):
    spans = tag_spans(tags)
    covered = [place for span in spans for place in range(span.first, span.last + 1)]
    assert covered == sorted(set(covered))
    assert set(covered) == {place for place, tag in enumerate(tags) if tag != "O"}


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        (["I-X", "I-X", "I-Y"], [("X", 0, 1), ("Y", 2, 2)]),
        (["B-X", "B-X"], [("X", 0, 0), ("X", 1, 1)]),
        (["B-X", "E-X", "I-X"], [("X", 0, 1), ("X", 2, 2)]),
        (["S-X", "S-X", "E-X"], [("X", 0, 0), ("X", 1, 1), ("X", 2, 2)]),
        (["SYM", "SYM", "NOUN", "NOUN"], [("YM", 0, 0), ("YM", 1, 1), ("OUN", 2, 3)]),
        (["B", "I", "O"], [("_", 0, 1)]),
        (["B-A-B", "I-A-B"], [("A-B", 0, 1)]),
    ],
)
def test_the_rules_of_chunks(tags, wanted):
    assert tag_spans(tags) == wanted


def test_the_same_span_in_another_sentence_is_not_correct():
    scores = span_scores([["B-X"], ["O"]], [["O"], ["B-X"]])
    assert scores == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_translations_are_found_by_cosine_and_by_distance():
    index = torch.tensor([[10.0, 0.1], [0.0, 1.0]])
    queries = torch.tensor([[1.0, 0.4]])
    assert nearest(index, queries).tolist() == [0]
    assert nearest(index, queries, normalize=False).tolist() == [1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_each_sentence_is_mined_once_and_scores_fall(seed, rows, columns, neighbors):
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.rand(rows, 5, generator=generator), torch.rand(columns, 5, generator=generator)
    mined = mine_translations(source, target, neighbors)
    assert len({pair.source for pair in mined}) == len({pair.target for pair in mined}) == len(mined)
    assert [pair.score for pair in mined] == sorted((pair.score for pair in mined), reverse=True)
    cosine = torch.nn.functional.cosine_similarity(source.double()[:, None], target.double()[None], dim=-1)
    for score, row, column in mined:
        rows_mean = cosine[row].sort(descending=True).values[:neighbors].mean()
        columns_mean = cosine[:, column].sort(descending=True).values[:neighbors].mean()
        assert score == pytest.approx(float(2 * cosine[row, column] / (rows_mean + columns_mean)), rel=1e-5)


def test_the_best_threshold_lies_between_two_scores():
    mined = [Mined(3.0, 0, 0), Mined(2.0, 1, 1), Mined(1.0, 2, 0)]
    assert mining_scores(mined, {(0, 0), (1, 1)}) == {"threshold": 1.5, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert mining_scores(mined, {(9, 9)}, threshold=0.0)["f1"] == 0.0


def test_pairs_below_the_threshold_are_left_out():
    rows = torch.eye(3)
    rows[2] = torch.tensor([0.0, 1.0, 1.0])
    everything = mine_translations(rows, torch.eye(3), margin="absolute")
    assert [pair.score for pair in everything] == pytest.approx([1.0, 1.0, 0.5**0.5])
    assert mine_translations(rows, torch.eye(3), margin="absolute", threshold=0.9) == everything[:2]
    apart = mine_translations(rows, torch.eye(3), neighbors=2, margin="distance")[0]
    assert apart.score == pytest.approx(1 - (0.5 + 0.5) / 2)  # row 0 sees only column 0, and the other way round


# --- the comparison itself --------------------------------------------------------------------------------------------


def test_the_comparison_sees_a_wrong_missing_or_surplus_value():
    case = load_case(golden_cases("nlu-tasks/retrieval")[0])
    right = find_adapter(case)(case)
    assert compare(
        case,
        right | {"accuracy": {"normalized": right["accuracy"]["normalized"] + 1e-3, "raw": right["accuracy"]["raw"]}},
    )
    assert compare(case, right | {"nearest_raw": right["nearest_raw"] + 1})
    assert compare(case, right | {"mined_ratio": right["mined_ratio"] + right["mined_ratio"][-1:]})
    assert compare(case, {name: value for name, value in right.items() if name != "bucc"})
    assert compare(case, right | {"bucc": Output(right["bucc"])})
    assert compare(case, right | {"bucc": Skipped("for this test")}) == []
    assert (
        compare(
            case, right | {"nearest_raw": Output(right["nearest_raw"] + 1, where=torch.zeros(14, dtype=torch.bool))}
        )
        == []
    )
    assert compare(
        case, right | {"nearest_raw": Output(right["nearest_raw"], tolerance=1.0)}
    )  # looser, and no reason given
