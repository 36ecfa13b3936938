"""The tables of the families' pages say what the code does."""

from __future__ import annotations

import pytest

from docs import family_tables
from tests.checkpoints.test_real_weights import SHIPPED
from zoo.registry import variants as registry
from zoo.registry.records import DOWNLOADED, KEY_MAP_ONLY, records

FAMILIES = registry.families()


def cells(table):
    """The rows of a table by what stands in their first column."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_every_variant_stands_beside_its_paper_once():
    rows = family_tables.papers(FAMILIES["bert"]).splitlines()[2:]
    assert all(sum(f"`{v.name}`" in row for row in rows) == 1 for v in FAMILIES["bert"])
    assert any("(https://arxiv.org/abs/2010.10499)" in row and "`bort`" in row for row in rows)
    assert any("(https://doi.org/10.1038/s42256-020-00284-w)" in row for row in rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_model_are_in_sum_its_parameters(family):
    for variant in {v.name: v for v in (FAMILIES[family][0], FAMILIES[family][-1])}.values():
        model = family_tables.built(variant)
        counts = family_tables.count_parts(model)
        assert sum(counts.values()) == model.num_parameters()
        assert {part for _, part in counts} <= set(family_tables.ORDER)


def test_parts_are_told_apart_by_stream():
    counts = family_tables.count_parts(family_tables.built(registry.variant("ernie-thu-base")))
    assert counts["entity", "norms"] == 13 * 2 * 100  # one norm in the mix layer, two in each of six norm layers
    assert counts["text", "pooler"] == 768 * 768 + 768
    assert ("entity", "embeddings") not in counts
    rows = family_tables.parts([registry.variant("ernie-thu-base")]).splitlines()
    assert rows[0].startswith("| variant | stream | embeddings | attention | feed-forward | norms |")
    assert rows[-1].startswith("| `ernie-thu-base` | **all** |")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_that_a_model_reads_is_in_the_table_of_its_inputs(family):
    variant = FAMILIES[family][0]
    rows = cells(family_tables.inputs([variant]))
    assert {*variant.inputs} <= {name for name, row in rows.items() if row["read by"] == "the model"}


def test_the_table_of_inputs_names_the_tasks_that_read_a_label():
    rows = cells(family_tables.inputs([registry.variant("albert-base")]))
    assert rows["sentence_order_label"]["read by"] == "`sentence-order`, `pretraining`"
    assert rows["start_positions"]["read by"] == "`question-answering`"
    assert "next_sentence_label" not in rows


def test_heads_are_listed_with_their_weight_and_their_own_parameters():
    rows = cells(family_tables.heads([registry.variant("electra-base")]))
    assert rows["replaced_token"]["weight in `pretraining`"] == "trained by a task of its own"
    assert rows["replaced_token"]["own parameters in `electra-base`"] == f"{768 * 768 + 768 + 768 + 1:,}"
    linking = cells(family_tables.heads([registry.variant("knowbert-wiki")]))["entity_linking"]
    assert (linking["reads"], linking["own parameters in `knowbert-wiki`"]) == ("the linked mentions", "–")


def test_what_is_called_downloaded_and_checked_is_what_the_tests_of_real_weights_check():
    assert {name for name, record in records().items() if record.proof.startswith(DOWNLOADED)} == set(SHIPPED)
    assert {record.proof for record in records().values()} >= {KEY_MAP_ONLY}
    minilm = records()["minilm-l6-h384.all-minilm-l6-v2"]
    assert minilm.proof == f"{DOWNLOADED} (the first source)"
    assert minilm.at(minilm.sources[1]).proof == KEY_MAP_ONLY
