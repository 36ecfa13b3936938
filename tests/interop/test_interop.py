"""Other libraries read what the zoo writes, and the zoo what they write; what takes seconds runs here,
the rest in ``python -m tests.interop.run``. Its figures in ``docs/interop.csv`` are those of the
checks that there are.
"""

from __future__ import annotations

import csv

import pytest

from tests.interop.checks import CHECKS, Check
from tests.interop.run import TABLE

BOUND = 2e-6  # of the largest value: sums in another order


@pytest.mark.parametrize("check", [check for check in CHECKS if not check.slow], ids=lambda check: check.name)
def test_both_sides_give_the_same(check: Check, tmp_path):
    if not check.installed:
        pytest.skip(f"needs {check.library}: pip install 'extended-zoo[test,interop]'")
    assert check.run(tmp_path) < BOUND


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_every_check_was_run_and_the_page_says_what_came_of_it(check: Check):
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["library"], row["check"]) == (check.library, check.name)]
    assert rows, f"run python -m tests.interop.run {check.name}"
    for row in rows:
        way, weights = "reads ours" if check.reads else "is read", "trained" if check.trained else "random"
        assert (row["claim"], row["way"], row["weights"]) == (check.claim, way, weights)
        assert float(row["difference"]) < BOUND


def test_no_check_is_gone_that_the_page_tells_of():
    with TABLE.open(encoding="utf-8", newline="") as file:
        told = {(row["library"], row["check"]) for row in csv.DictReader(file)}
    assert told <= {(check.library, check.name) for check in CHECKS}
