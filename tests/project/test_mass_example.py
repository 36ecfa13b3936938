"""The example that translates messages: what it learns from, what it is compared with, and that it runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = [{"en": f"the {word} is there", "de": f"{other} ist da"} for word, other in
        zip(("house", "dog", "cat", "tree", "book", "sun", "moon", "car", "ship"),
            ("Haus", "Hund", "Katze", "Baum", "Buch", "Sonne", "Mond", "Wagen", "Schiff"), strict=True)]  # fmt: skip


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("mass_translation")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture
def found(example: ModuleType, monkeypatch, tmp_path):
    folder = tmp_path / "locale" / "de" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    other = (
        'msgid "The house is there"\nmsgstr "das gleiche"\n\nmsgid "Ships \'%(n)s\' sail"\nmsgstr "Schiffe segeln"\n'
    )
    (folder / "django.po").write_text(other, encoding="utf-8")
    monkeypatch.setattr(example.texts, "translations", lambda languages: [dict(row) for row in ROWS])
    monkeypatch.setattr(example, "fetch", lambda source: tmp_path)
    monkeypatch.setattr(example, "VOCABULARY", 120)
    return example.data()


def test_a_held_out_message_is_learned_from_in_no_catalog(found):
    assert [english for english, _ in found.held_out] == ["the house is there", "the ship is there"]
    english = [row[0] for row in found.train]
    assert found.near == 7
    assert english == [*(row["en"] for row in ROWS[1:8]), "ships sail"]


def test_the_memory_gives_the_translation_of_the_message_most_alike(example, found):
    assert example.memory(found, 0, 1)[1] in {row[1] for row in found.train[: found.near]}
    held = [("the moon was there", "mond"), ("ships sailed", "schiff")]
    other = example.Data(found.train, held, found.train_ids, found.held_out_ids, found.pieces, found.near)
    assert example.memory(other, 0, 1) == ["mond ist da", "schiffe segeln"]
    assert example.score(["mond", ""], other, 1) == 50.0


def test_it_trains_and_writes_in_both_directions(example, found):
    written = example.run(found, 0, (1, 1))
    assert {name: len(texts) for name, texts in written.items()} == {"en-de": 2, "de-en": 2}
