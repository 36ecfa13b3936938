"""Bort's search: costs as counted and measured, the coefficient as defined, and no much better
candidate spared.
"""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from zoo.errors import ConfigError, InputError
from zoo.techniques.subarchitecture import (
    BORT,
    SPACE,
    Cost,
    Shape,
    coefficient,
    costs,
    needed_error,
    parameters,
    search,
    seconds,
    shapes,
)


def test_the_grid_leaves_out_heads_that_do_not_divide_and_holds_bort():
    found = shapes()
    assert BORT in found
    assert len(found) == len(set(found)) == sum(h % a == 0 for _, a, h, _ in itertools.product(*SPACE.values()))
    assert all(shape.hidden_size % shape.num_heads == 0 for shape in found)
    with pytest.raises(ConfigError, match="a space has"):
        shapes({"num_layers": (1,)})


def test_the_parameters_of_the_published_optimum_are_those_of_the_registered_model():
    encoder = zoo.create("bort", device="meta").encoder
    assert parameters(BORT) == sum(p.numel() for p in encoder.parameters()) == 23_108_608


def test_time_is_measured_once_for_each_block_and_grows_with_depth():
    small = [Shape(n, 2, 8, 8) for n in (1, 2, 4)]
    found = costs(small, length=4, repeats=1)
    assert found[small[2]].seconds == pytest.approx(4 * found[small[0]].seconds)
    assert seconds(small[0], length=4, repeats=1) > 0


@st.composite
def problems(draw: st.DrawFn) -> tuple[dict[Shape, Cost], dict[Shape, float], Cost, float]:
    """Costs with noise, and errors that fall with each of the four sizes."""
    axes = [sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=3))) for _ in range(4)]
    weights = draw(st.lists(st.floats(0.01, 2), min_size=4, max_size=4))
    cost, error = {}, {}
    for sizes in itertools.product(*axes):
        shape = Shape(*sizes)
        size = math.prod(sizes)
        cost[shape] = Cost(1000 + size, 1 + size * draw(st.floats(0.9, 1.1)) / 1000)
        error[shape] = 0.1 + 1 / (1 + sum(w * s for w, s in zip(weights, sizes, strict=True)))
    return cost, error, Cost(draw(st.integers(1100, 20_000)), draw(st.floats(1.1, 20))), 0.1


@settings(max_examples=30, deadline=None)
@given(problem=problems(), epsilon=st.sampled_from([0.0, 0.01, 0.05, 0.3]))
def test_no_spared_candidate_beats_the_best_by_more_than_epsilon(problem, epsilon):
    cost, error, largest, largest_error = problem
    asked = []

    def trained(shape: Shape) -> float:
        asked.append(shape)
        return error[shape]

    try:
        found = search(cost, trained, largest, largest_error, epsilon=epsilon)
    except InputError:
        assert all(c.parameters >= largest.parameters or c.seconds >= largest.seconds for c in cost.values())
        return
    everywhere = {shape: coefficient(cost[shape], error[shape], largest, largest_error) for shape in cost}
    assert len(asked) == len(set(asked))
    assert set(asked) | set(found.spared) == set(cost)
    assert found.coefficient[found.best] == max(found.coefficient.values())
    assert everywhere[found.best] >= (1 - epsilon) * max(everywhere.values()) * (1 - 1e-12)


def test_candidates_of_one_cost_are_stood_for_by_the_largest():
    cost = {Shape(2, 2, 8, 8): Cost(100, 1.0), Shape(2, 1, 8, 8): Cost(100, 1.0), Shape(1, 1, 8, 8): Cost(50, 0.5)}
    found = search(cost, lambda shape: 1.0, Cost(1000, 10.0), 1.0, epsilon=0.05)
    assert found.spared == {Shape(2, 1, 8, 8): Shape(2, 2, 8, 8)}
    assert found.best == Shape(1, 1, 8, 8)


def test_the_needed_errors_are_where_the_coefficients_meet():
    cost = {Shape(2, 1, 8, 8): Cost(100, 1.0), Shape(1, 1, 8, 8): Cost(50, 0.5)}
    largest = Cost(1000, 10.0)
    small, large = Shape(1, 1, 8, 8), Shape(2, 1, 8, 8)
    ratio = needed_error(cost, large, largest)[small]
    assert coefficient(cost[small], ratio, largest, 1.0) == pytest.approx(coefficient(cost[large], 1.0, largest, 1.0))
    assert ratio == pytest.approx((0.95 * 0.95) / (0.9 * 0.9))


def test_what_makes_no_sense_is_refused():
    cost = {Shape(1, 1, 8, 8): Cost(100, 1.0)}
    with pytest.raises(InputError, match="nothing to find"):
        search(cost, lambda shape: 1.0, Cost(100, 1.0), 1.0)
    with pytest.raises(InputError, match="more than 0"):
        search(cost, lambda shape: 0.0, Cost(200, 2.0), 1.0)
    with pytest.raises(ConfigError, match="epsilon"):
        search(cost, lambda shape: 1.0, Cost(200, 2.0), 1.0, epsilon=-1)
