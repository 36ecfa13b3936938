"""Pairs of techniques keep what they mean through save and load, a smaller vocabulary and blocks that are
computed again, or are refused and leave the model as it was. `python -m benchmarks.technique_pairs` tries all.
"""

from __future__ import annotations

import pytest
import torch

import zoo
from benchmarks.technique_pairs import check_pair, check_recomputed, check_smaller_vocabulary, run
from tests.strategies import build, small_config
from zoo.errors import TechniqueError
from zoo.techniques.matrix import EXAMPLES
from zoo.techniques.trimming import with_vocabulary

NAMES = list(EXAMPLES)
SOME = [(first, NAMES[(7 * place + 3) % len(NAMES)]) for place, first in enumerate(NAMES)]


@pytest.mark.parametrize(("first", "second"), SOME)
def test_a_pair_of_techniques_keeps_its_meaning(first, second, tmp_path):
    assert check_pair(first, second, "bert", tmp_path / "model") in ("works", "refused")


def test_most_pairs_of_these_go_together():
    found = []
    for first, second in SOME:
        try:
            zoo.apply(build("bert", small_config("bert")), *EXAMPLES[first], *EXAMPLES[second])
        except TechniqueError:
            continue
        found.append((first, second))
    assert len(found) > len(SOME) / 3


def test_a_pruned_model_keeps_its_zeros_in_a_smaller_vocabulary():
    """The masks were drawn anew, from random weights."""
    model = zoo.apply(build("bert", small_config("bert"), seed=1).eval(), zoo.WeightPruning(sparsity=0.5))
    check_smaller_vocabulary(model, "bert", run(model, "bert"))


@pytest.mark.parametrize("technique", [zoo.Q8Bert(), zoo.Q8Bert(mode="dynamic")])
def test_a_table_whose_rows_share_a_grid_is_not_cut(technique):
    model = zoo.apply(build("bert", small_config("bert"), seed=1).eval(), technique)
    with torch.no_grad():
        model.embeddings.token.rest()[-1] *= 3  # the row by which the grid is laid
    config = model.config.replace(vocab_size=model.config.vocab_size - 1)
    with pytest.raises(TechniqueError, match="rounded on a grid that all of its rows share"):
        with_vocabulary(model, config, lambda old, axis: old.narrow(axis, 0, config.vocab_size))
    bare = zoo.apply(build("bert", small_config("bert"), seed=1).eval(), technique.replace(embeddings=False))
    check_smaller_vocabulary(bare, "bert", run(bare, "bert"))


@pytest.mark.parametrize("techniques", [(zoo.Q8Bert(),), (zoo.IBert(),), (zoo.Sharing(), zoo.IBert())])
def test_ranges_are_moved_once_where_blocks_are_computed_again(techniques):
    model = zoo.apply(build("bert", small_config("bert"), seed=1), *techniques)
    check_recomputed(model, "bert")
