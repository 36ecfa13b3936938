"""The list of mutants stays true to the code: `make mutants` then counts how many of them the tests
notice.
"""

from benchmarks.mutants import mutants


def test_every_mutant_finds_its_text_exactly_once():
    assert len(mutants()) >= 40  # `mutants` checks each as it reads it
