"""The survey's tables are those of the code."""

from __future__ import annotations

from docs import survey
from zoo.registry import variants as registry


def test_the_tables_are_current():
    assert survey.render() == survey.PAGE.read_text(encoding="utf-8"), "run python -m docs.survey"


def test_every_model_of_table_3_is_registered_and_has_golden_cases():
    printed = {"K-BERT", "BERT-wwm", "KnowBERT", "SpanBERT", "ZEN", "ERNIE_THU", "K-Adapter"}  # the rows in print
    assert {name for name, (*_, filed) in survey.KNOWLEDGE.items() if filed != "not listed"} == printed
    for name, (variant, system, _, _) in survey.KNOWLEDGE.items():
        assert name in survey.TECHNIQUES or registry.variant(variant).pillar == "knowledge-enhanced", name
        assert list((survey.GOLDEN / system).glob("*/case.json")), name
