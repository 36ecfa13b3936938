"""The training examples, small: what they train learns, and what they compare with is what it is
said to be.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import zoo
from zoo.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = [
    [
        "First wash the rice in cold water.",
        "Then boil the rice in a large pot.",
        "Then wait until the pot is dry.",
        "Last salt the rice.",
    ],
    ["First cut the bread into thin slices.", "Then toast the slices in a hot pan.", "Last put cheese on the slices."],
    [
        "First peel the apples and the pears.",
        "Then bake the apples with sugar.",
        "Then cool the apples.",
        "Last eat them with cream.",
    ],
    ["First heat the milk in a small pot.", "Then stir the cocoa into the milk.", "Last pour the milk into a cup."],
] * 3
MESSAGES = [
    ["save the file", "die datei sichern"],
    ["open the file", "die datei öffnen"],
    ["save the page", "die seite sichern"],
    ["open the page", "die seite öffnen"],
    ["close the page", "die seite schließen"],
    ["close the file", "die datei schließen"],
] * 8
SMALL = {"hidden_size": 64, "num_heads": 2, "initializer_range": 0.12}


@pytest.fixture(scope="module")
def pretraining():
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("pretraining")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def texts(pretraining):
    return importlib.import_module("texts")


@pytest.fixture(scope="module")
def retrieval(pretraining):
    return importlib.import_module("translation_retrieval")


def run(pretraining, name, steps, seed=0):
    documents = MESSAGES if name == "tlm" else RECIPES
    corpus = pretraining.corpus_of(documents, documents, 80)
    size = pretraining.OBJECTIVES[name].size | SMALL
    if "intermediate_size" in size:
        size |= {"intermediate_size": 64}
    objective = replace(pretraining.OBJECTIVES[name], size=size, batch=8, rate=3e-3)
    return pretraining.train(objective, corpus, steps, torch.Generator().manual_seed(seed), checks=1, check_batches=4)[
        1
    ]


OBJECTIVES = ("mlm", "wwm", "ngram", "clm", "tlm", "nsp", "sop")


def test_the_objectives_are_these(pretraining):
    assert tuple(pretraining.OBJECTIVES) == OBJECTIVES


@pytest.mark.parametrize(("name", "steps"), [*((name, 30) for name in OBJECTIVES[:5]), ("nsp", 60), ("sop", 90)])
def test_every_objective_learns_within_a_few_steps(pretraining, name, steps):
    curve = run(pretraining, name, steps)
    assert len(curve.train) == steps
    assert curve.final < 0.85 * curve.baseline


def test_the_model_that_guesses_the_next_word_cannot_see_it(pretraining):
    objective = replace(pretraining.OBJECTIVES["clm"], size=pretraining.OBJECTIVES["clm"].size | SMALL, batch=4)
    model, _ = pretraining.train(
        objective, pretraining.corpus_of(RECIPES, RECIPES, 80), 0, torch.Generator().manual_seed(0), check_batches=1
    )
    rows = torch.tensor([[3, 9, 10, 11], [3, 9, 10, 12]])
    first, second = model.eval()(rows).logits
    torch.testing.assert_close(first[:3], second[:3])
    assert not torch.equal(first[3], second[3])


def test_the_same_seed_gives_the_same_curve_and_another_does_not(pretraining):
    first, again, other = (run(pretraining, "ngram", 2, seed).train for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_too_little_text_for_a_batch_is_refused_by_number(pretraining):
    objective = pretraining.OBJECTIVES["mlm"]
    corpus = pretraining.corpus_of(RECIPES, RECIPES[:1], 80)
    with pytest.raises(InputError, match=f"fill no batch of {objective.batch}"):
        next(pretraining.batches(objective, corpus.held_out, corpus.pieces, torch.Generator()))


def test_the_unigram_baseline_is_what_the_best_guess_without_context_costs(texts):
    unigram = texts.Unigram.of([[5, 5, 5], [6]], 8)  # with one added to each of eight: 4, 2 and six of 1, out of 12
    labels = torch.tensor([[-100, 5], [6, 7]])
    assert unigram.loss(labels) == pytest.approx((math.log(12 / 4) + math.log(12 / 2) + math.log(12)) / 3)


def test_the_baseline_counts_the_training_text_and_the_ends_of_sentences_where_they_are_guessed(pretraining, texts):
    corpus = pretraining.Corpus(train=[[[5, 5, 5], [6]]], held_out=[], pieces=[""] * 8)
    words, ends = (
        pretraining.baseline(pretraining.OBJECTIVES["clm"], corpus, [{"labels": torch.tensor([[5, last, -100]])}])
        for last in (6, texts.SEP)
    )
    assert words == pytest.approx((math.log(12 / 4) + math.log(12 / 2)) / 2)
    assert ends == pytest.approx((math.log(14 / 4) + math.log(14 / 3)) / 2)  # two sentences end: 4, 2, 3 and five of 1


def test_a_coin_costs_ln_2_where_both_labels_are_as_frequent(texts):
    assert texts.coin(torch.tensor([0, 1, 1, 0])) == pytest.approx(math.log(2))
    assert texts.coin(torch.tensor([1, 1, 1])) == 0


def test_a_catalogue_gives_plain_messages_and_leaves_out_fuzzy_plural_and_empty_ones(texts):
    catalogue = r"""msgid ""
msgstr "Language: de\n"

#: models.py:3
msgid "The %(name)s was <b>saved</b>."
msgstr ""
"%(name)s wurde "
"<b>gesichert</b>."

#, fuzzy
msgid "Log out"
msgstr "Anmelden"

#, python-format
msgid "%d day"
msgid_plural "%d days"
msgstr[0] "%d Tag"
msgstr[1] "%d Tage"

msgid "Home"
msgstr ""
"""
    (pair,) = texts.messages(catalogue)
    assert [texts.plain(side) for side in pair] == ["The was saved", "wurde gesichert"]


def test_a_document_is_cut_at_lines_and_sentence_ends(texts):
    text = 'A headline\n\nIt rained. "It rained," he said. Was it 3.5 inches? Nobody knows.'
    assert texts.sentences_of(text) == [
        "A headline",
        "It rained.",
        '"It rained," he said.',
        "Was it 3.5 inches?",
        "Nobody knows.",
    ]


def test_retrieval_counts_the_right_ones_both_ways(retrieval):
    vectors = torch.eye(4)
    assert retrieval.accuracy(vectors, vectors) == 1
    assert retrieval.accuracy(vectors, vectors[[1, 0, 2, 3]]) == 0.5
    assert retrieval.accuracy(vectors, vectors[[1, 2, 3, 0]]) == 0


def test_a_drawing_is_a_small_file(pretraining, tmp_path):
    pytest.importorskip("matplotlib")
    curve = pretraining.Curve([3.0, 2.0, 1.0], {0: 3.0, 2: 1.0}, 2.5)
    pretraining.draw(curve, pretraining.OBJECTIVES["mlm"], tmp_path / "folder" / "mlm.png")
    content = (tmp_path / "folder" / "mlm.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 60_000


def test_spans_on_a_tiny_text_move_and_are_drawn(pretraining, tmp_path, monkeypatch):
    example = importlib.import_module("adaptive_span")
    monkeypatch.setattr(example, "SIZE", example.SIZE | {"num_layers": 1, "hidden_size": 16, "num_heads": 2})
    monkeypatch.setattr(example, "BLOCK", 32)
    row = example.characters(RECIPES * 4)
    assert "".join(example.CHARACTERS[place] for place in row[:15].tolist()) == "first wash the "
    batch = example.batch_of(row, torch.Generator().manual_seed(0), 2, 8)
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    model, run = example.train(row, row, 30, torch.Generator().manual_seed(0), coefficient=1e-3)
    assert run.held_out < run.bits[0]
    assert float(run.spans[0].max()) == 64
    assert float(example.spans(model).max()) < 64
    pytest.importorskip("matplotlib")
    example.draw(run, {"dense": 0.2, "learned spans": 0.1}, tmp_path / "spans.png")
    assert (tmp_path / "spans.png").read_bytes().startswith(b"\x89PNG")


def test_the_int8_example_compares_one_model_with_its_own_rounding():
    sys.path.insert(0, str(EXAMPLES))
    try:
        example = importlib.import_module("mobilebert_int8")
    finally:
        sys.path.remove(str(EXAMPLES))
    data = [(" ".join(document), number % 2) for number, document in enumerate(RECIPES)]
    found = example.run(data, steps=2)
    assert 0 <= found["accuracy"] <= 1
    assert found["bytes"] > 2 * found["int8_bytes"]


def test_the_distillation_table_shows_the_mean_and_the_spread():
    sys.path.insert(0, str(EXAMPLES))
    try:
        example = importlib.import_module("distillation_table")
    finally:
        sys.path.remove(str(EXAMPLES))
    runs = [{"alone": {"accuracy": a, "macro_f1": a / 2, "parameters": 10}} for a in (0.5, 0.7)]
    assert "| alone | 60.0 (50.0 .. 70.0) | 30.0 (25.0 .. 35.0) | 10 |" in example.table(runs)


def test_the_table_of_compressions_has_a_row_for_each_technique_and_stack(tmp_path):
    """On a model and texts as small as can be: what each row promises of parameters and files."""
    example = importlib.import_module("examples.compression_table")
    generator = torch.Generator().manual_seed(0)
    rows = [(torch.randint(5, 40, (6 + n % 3,), generator=generator).tolist(), n % 2) for n in range(8)]
    data = example.Texts(rows, rows[:4], ("one", "two"))
    sizes = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_layers": 6,
        "num_heads": 2,
        "intermediate_size": 48,
        "max_positions": 16,
    }
    model = zoo.create("bert-base", task="sequence-classification", num_labels=2, generator=generator, **sizes)
    found = {row.name: row for row in example.run(data, model)}
    first = found["fine-tuned, as it is"]
    assert len(found) == 19
    assert sum(name.startswith("stack") for name in found) == 3
    assert found["weights 80 % gone, across"].file < found["weights 50 % gone, across"].file < first.file
    for name in (
        "three quarters of the width, by importance",
        "half of the heads, by importance",
        "half of the units, by magnitude",
        "4 of 6 layers",
        "Theseus, 3 layers",
    ):
        assert found[name].parameters < first.parameters
        assert found[name].file < first.file
    assert "layers on average" in found["exits, patience 2"].remark
    example.draw(list(found.values()), tmp_path / "table.svg")
    assert example.markdown([first]).count("|") == 24
