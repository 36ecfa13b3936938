"""What each task makes of rows: labels where they belong, figures that a hand can check, and a loss
that falls.
"""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

import zoo
from tests.strategies import randomised, small_config
from tests.training.test_loop import model_for, tokenizer  # noqa: F401
from zoo.data.regions.files import save_regions
from zoo.data.regions.regions import Regions
from zoo.data.tables import find_columns
from zoo.errors import InputError, TaskError, UnknownNameError
from zoo.registry.tasks import TASKS
from zoo.tasks.metrics.language import class_scores
from zoo.tokenization import Tokenizer
from zoo.tokenization.tokenizer import SpecialTokens
from zoo.training import evaluate, fit, task_options
from zoo.training.supervision import SUPERVISIONS, supervision_of
from zoo.training.supervision.base import label_names, label_number
from zoo.training.supervision.embedding import cosent


def texts(draw: random.Random, low: int = 0, high: int = 40, count: int = 4) -> list[str]:
    return [f"w{draw.randrange(low, high)}" for _ in range(count)]


def rows_for(task: str, count: int = 48) -> list[dict]:
    """Rows whose answer the words say."""
    draw, found = random.Random(0), []
    for number in range(count):
        words, flag = texts(draw), number % 2
        if task == "token-classification":
            tags = [("O", "B-X")[int(word[1:]) >= 20] for word in words]
            found.append({"tokens": words, "ner_tags": tags})
        elif task == "question-answering":
            place = draw.randrange(4)
            words = [w if n != place else "w39" for n, w in enumerate(f"w{draw.randrange(30)}" for _ in range(4))]
            found.append({"question": "w1", "context": " ".join(words), "answer": "w39"})
        elif task == "multiple-choice":
            choices = [f"w{draw.randrange(20)}", f"w{draw.randrange(20)}"]
            choices[flag] = f"w{20 + draw.randrange(20)}"
            found.append({"text": "w3 w4", "choices": choices, "label": flag})
        elif task in ("masked-lm", "causal-lm"):
            found.append({"text": " ".join(["w7"] * 6)})
        elif task in ("next-sentence", "sentence-order"):
            found.append({"text": "w1 w2", "pair": f"w{20 * flag + draw.randrange(20)} w3", "label": flag})
        elif task == "sentence-embedding":
            found.append({"text": words[0], "pair": f"w{draw.randrange(20) + 20 * flag}", "score": flag / 1.0})
        elif task == "cross-lingual-contrast":
            first, second = number % 20, number // 20
            found.append({"text": f"w{first} w{second}", "pair": f"w{first + 20} w{second + 20}"})
        elif task == "conditional-generation":
            found.append({"source": " ".join(words), "target": "w5 w6"})
        else:
            found.append({"text": f"w{20 * flag + draw.randrange(20)}", "label": ("no", "yes")[flag]})
    return found


FAMILY = {"sentence-order": "albert-base", "causal-lm": "gpt2", "conditional-generation": "mbart-large-cc25"}


OPTIONS = {"cross-lingual-contrast": {"queue_size": 16, "momentum": 0.9, "normalize": True, "pooling": "mean"}}


def built(task: str, rows: list[dict]):
    options = task_options(rows, task) | OPTIONS.get(task, {}) if task in SUPERVISIONS else {}
    return model_for(task, FAMILY.get(task, "bert-base"), dropout=0.0, attention_dropout=0.0, **options)


@pytest.fixture(scope="module")
def framed():
    """A tokenizer in mBART's manner: ``w1 w2 [SEP] en_XX``."""
    words = ["[PAD]", "[UNK]", "[SEP]", "en_XX", "ro_RO", *(f"w{n}" for n in range(40))]
    backend = tokenizers.Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(words[:5])
    backend.post_processor = processors.TemplateProcessing(
        single="$A [SEP] en_XX", pair="$A $B [SEP] en_XX", special_tokens=[("[SEP]", 2), ("en_XX", 3)]
    )
    special = SpecialTokens(pad="[PAD]", sep="[SEP]", unk="[UNK]", pad_id=0)
    return Tokenizer(backend, special=special, inputs=("input_ids", "attention_mask"))


def test_a_target_is_written_in_its_own_language(framed):
    rows = [{"source": "w1 w2", "target": "w3", "src_lang": "en_XX", "tgt_lang": "ro_RO"} for _ in range(2)]
    rows[1] |= {"source": "w9", "target": "w3 w4", "src_lang": "ro_RO", "tgt_lang": "en_XX"}
    generation = reader("conditional-generation", framed, rows)
    batch = generation.batch(rows)
    assert batch["input_ids"].tolist() == [[6, 7, 2, 3], [14, 2, 4, 0]]
    assert batch["labels"].tolist() == [[8, 2, 4, -100], [8, 9, 2, 3]]
    model = built("conditional-generation", rows)
    made = model.model.decoder_inputs(batch["labels"])  # the language comes to the front
    assert made[:, :3].tolist() == [[4, 8, 2], [3, 8, 9]]
    plain = reader("conditional-generation", framed, [{"source": "w1", "target": "w2"}])
    assert plain.batch([{"source": "w1", "target": "w2"}])["labels"].tolist() == [[7, 2, 3]]


@pytest.mark.parametrize("task", SUPERVISIONS)
def test_every_task_learns_from_rows(task, tokenizer, framed):  # noqa: F811
    torch.manual_seed(0)
    rows = rows_for(task, 240 if task == "cross-lingual-contrast" else 48)  # a queue wants few texts twice
    model = built(task, rows)
    tokenizer = framed if task == "conditional-generation" else tokenizer
    before = evaluate(model, rows, tokenizer=tokenizer)
    schedule = {"steps": 80, "lr": 3e-3} if task == "cross-lingual-contrast" else {"steps": 30, "lr": 1e-2}
    fit(model, rows, tokenizer=tokenizer, batch_size=16, **schedule)
    after = evaluate(model, rows, tokenizer=tokenizer)
    assert after["loss"] < 0.8 * before["loss"], (before, after)
    assert set(before) == set(after)
    assert all(math.isfinite(value) for value in after.values())


def test_every_task_is_a_task_and_others_are_refused():
    assert set(SUPERVISIONS) <= set(TASKS)
    with pytest.raises(TaskError, match="learns from batches, not from rows"):
        supervision_of("entity-typing")
    with pytest.raises(UnknownNameError, match=r"unknown task .*did you mean .sequence-classification."):
        supervision_of("sequence-clasification")
    with pytest.raises(TaskError, match="visual-question-answering learns from pictures"):
        supervision_of("visual-question-answering")
    with pytest.raises(TaskError, match="next-sentence learns from texts alone; leave the regions out"):
        supervision_of("next-sentence", pictured=True)


def reader(task, tokenizer, rows, **options):  # noqa: F811
    cls = supervision_of(task)
    return cls(tokenizer, find_columns(rows[0], cls.needed, cls.optional), options)


def test_a_tag_stands_at_the_first_token_of_its_word(tokenizer):  # noqa: F811
    rows = [{"words": "w1 w2 w3", "tags": "O B-X O"}, {"words": '["w4"]', "tags": '["B-X"]'}]
    tagging = reader("token-classification", tokenizer, rows, labels=["O", "B-X"], num_labels=2)
    batch = tagging.batch([example for row in rows for example in tagging.examples(row)])
    assert batch["labels"].tolist() == [[-100, 0, 1, 0, -100], [-100, 1, -100, -100, -100]]
    assert batch["input_ids"][1].tolist()[1] == tokenizer.token_to_id("w4")
    figures = tagging.figures([[(0, 0), (1, 1), (1, 0)], [(1, 1)]])
    assert figures["accuracy"] == 0.75
    # of three spans that were said two are right, and none was missed
    assert (figures["precision"], figures["recall"]) == (pytest.approx(2 / 3), 1.0)
    with pytest.raises(InputError, match="2 words and 1 tags"):
        list(tagging.examples({"words": "a b", "tags": "O"}))


def test_an_answer_is_found_where_it_is_said_to_start(tokenizer):  # noqa: F811
    rows = [{"question": "w1", "context": "w2 w3 w2 w4", "answers": {"text": ["w2"], "answer_start": [6]}}]
    answers = reader("question-answering", tokenizer, rows)
    (asked,) = answers.examples(rows[0])
    batch = answers.batch([asked])
    place = batch["start_positions"].item()
    assert place == batch["end_positions"].item() == 5  # [CLS] w1 [SEP] w2 w3 w2
    assert batch["input_ids"][0, place] == tokenizer.token_to_id("w2")
    starts = torch.zeros(1, len(asked.window.ids))
    starts[0, 0] = 9.0  # no place of the passage's
    ends = starts.clone()
    starts[0, 4], ends[0, 6] = 2.0, 2.0
    output = SimpleNamespace(start_logits=starts, end_logits=ends)
    assert answers.results(output, batch, [asked]) == [(0, 4.0, "w3 w2 w4", 18.0, ("w2",))]
    ends[0, 3] = 5.0  # before the start: 0 + 5 for the token alone is the most
    assert answers.results(output, batch, [asked]) == [(0, 5.0, "w2", 18.0, ("w2",))]


def test_a_passage_in_windows_holds_its_answer_in_those_that_show_it_whole(tokenizer):  # noqa: F811
    passage = " ".join(f"w{number % 8}" for number in range(300))
    rows = [{"question": "w1", "context": passage, "answer": "w3 w4", "start": passage.index("w3 w4", 700)}]
    answers = reader("question-answering", tokenizer, rows)
    answers.max_length = 200
    examples = list(answers.examples(rows[0]))
    assert len(examples) > 1
    assert len({example.number for example in examples}) == 1
    for example in examples:
        assert len(example.window.ids) <= 200
        first, last = example.span
        shown = [passage[slice(*example.window.offsets[place])] for place in range(first, last + 1)]
        assert example.span == (0, 0) or (
            shown == ["w3", "w4"] and example.window.offsets[first][0] == rows[0]["start"]
        )
    assert any(example.span != (0, 0) for example in examples)


def test_a_question_without_an_answer_is_right_at_the_first_token(tokenizer):  # noqa: F811
    rows = [{"question": "w1", "context": "w2 w3", "answer": ""}, {"question": "w1", "context": "w2", "answer": "w2"}]
    answers = reader("question-answering", tokenizer, rows)
    examples = [example for row in rows for example in answers.examples(row)]
    assert answers.batch(examples)["start_positions"].tolist() == [0, 3]
    none, one = (example.number for example in examples)
    figures = answers.figures([(none, 1.0, "w2", 3.0, ("",)), (one, 2.0, "w2", 3.0, ("w2",))])
    assert figures == {"exact_match": 0.5, "f1": 0.5}  # it abstains from both
    figures = answers.figures([(one, 2.0, "w2", 3.0, ("w2",))])
    assert figures == {"exact_match": 1.0, "f1": 1.0}  # where all have an answer it doesn't abstain


def test_a_long_passage_is_scored_by_its_best_window(tokenizer):  # noqa: F811
    row = {"question": "w1", "context": " ".join(f"w{n}" for n in range(2, 38)), "answer": "w37"}
    cls = supervision_of("question-answering")
    answers = cls(tokenizer, find_columns(row, cls.needed, cls.optional), {}, 16)
    examples = list(answers.examples(row))
    assert len(examples) > 2
    spans = [example.span for example in examples]
    assert spans[:-1] == [(0, 0)] * (len(spans) - 1)
    assert spans[-1] != (0, 0)
    results = [(0, float(n), f"window {n}", 0.0, ("window 1",)) for n in (0, 2, 1)]
    assert answers.figures(results)["exact_match"] == 0.0
    results[1] = (0, 0.5, "window 2", 0.0, ("window 1",))
    assert answers.figures(results)["exact_match"] == 1.0


def test_cosent_is_its_sum_over_pairs():
    cosines, scores = torch.tensor([0.2, 0.5, -0.1]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    by_hand = math.log(1 + math.exp(20 * (0.5 - 0.2)) + math.exp(20 * (-0.1 - 0.2)))
    assert float(cosent(cosines, scores)) == pytest.approx(by_hand)
    assert float(cosent(cosines, torch.ones(3))) == 0.0


def test_pairs_without_scores_compete_within_the_batch(tokenizer):  # noqa: F811
    rows = [{"text": f"w{n}", "pair": f"w{n + 20}"} for n in range(8)]
    model = built("sentence-embedding", rows)
    before = evaluate(model, rows, tokenizer=tokenizer)
    fit(model, rows, tokenizer=tokenizer, steps=25, batch_size=8, lr=1e-2)
    assert evaluate(model, rows, tokenizer=tokenizer)["loss"] < before["loss"]


def test_labels_are_named_and_numbered():
    assert label_names(["b", " a", "b"]) == ["a", "b"]
    assert label_names([0, 2.0, True]) == ["0", "1", "2"]
    assert label_names(["10", "9"]) == ["9", "10"]
    assert label_number("9", ["9", "10"], 2) == 0
    assert label_number(1, None, 2) == 1
    for wrong in ("c", -1, 2, None, 0.5, ""):
        with pytest.raises(InputError):
            label_number(wrong, None, 2)


def test_class_scores_by_hand():
    found = class_scores(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1]))
    assert found["macro_precision"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert found["macro_recall"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["micro_f1"] == 0.5
    several = class_scores(torch.tensor([[True, False], [True, True]]), torch.tensor([[True, False], [False, True]]))
    assert several["micro_f1"] == pytest.approx(4 / 5)
    assert several["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0.25, 1.5, 3.0], {"loss", "spearman", "pearson", "mean_squared_error"}),
        ([["a"], ["a", "b"], []], {"loss", "accuracy", "macro_precision", "macro_recall", "macro_f1", "micro_f1"}),
        ([0, 1, 2], {"loss", "accuracy", "macro_precision", "macro_recall", "macro_f1", "mcc"}),
    ],
)
def test_kinds_of_classification_have_their_own_figures(labels, expected, tokenizer):  # noqa: F811
    rows = [{"text": f"w{n} w{n}", "label": label} for n, label in enumerate(labels * 4)]
    model = built("sequence-classification", rows)
    before = evaluate(model, rows, tokenizer=tokenizer)
    assert set(before) == expected
    fit(model, rows, tokenizer=tokenizer, steps=20, batch_size=12, lr=1e-2)
    assert evaluate(model, rows, tokenizer=tokenizer)["loss"] < before["loss"]


def pictures(count: int = 12, width: int = 6):
    """Regions whose first feature says which half of the pictures they are of."""
    generator, found = torch.Generator().manual_seed(0), {}
    for number in range(count):
        regions = 2 + number % 3
        features = torch.rand(regions, width, generator=generator)
        features[:, 0] = 4.0 * (number % 2)
        boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0]] * regions)
        found[f"p{number}"] = Regions(features, boxes, (10.0, 10.0))
    return found


SEEN = {
    "visual-question-answering": {"answer": lambda n: ["yes"] * 9 + ["no"] if n % 2 else ["no"] * 10},
    "visual-entailment": {"label": lambda n: ("entailment", "contradiction")[n % 2]},
    "visual-reasoning": {"label": lambda n: n % 2, "image2": lambda n: f"p{n}"},
    "sequence-classification": {"label": lambda n: ("a", "b")[n % 2]},
}


@pytest.mark.parametrize("task", SEEN)
@pytest.mark.parametrize("name", ["visualbert-base", "vilbert-base", "uniter-base"])
def test_pictures_are_learned_with_their_regions(name, task, tokenizer):  # noqa: F811
    rows = [
        {"question": "w1 w2", "image_id": f"p{n}"} | {column: value(n) for column, value in SEEN[task].items()}
        for n in range(12)
    ]
    options = task_options(rows, task, pictured=True)
    if task == "visual-reasoning":
        options["pairs"] = True
    family = name.partition("-")[0]
    config = small_config(family, vocab_size=45, visual_size=6, max_positions=24)
    model = randomised(zoo.create(name, task=task, **config.to_dict(), **options), scale=0.3)
    given = {"tokenizer": tokenizer, "regions": pictures()}
    before = evaluate(model, rows, **given)
    fit(model, rows, steps=25, batch_size=12, lr=1e-2, **given)
    after = evaluate(model, rows, **given)
    assert after["loss"] < 0.9 * before["loss"], (before, after)
    assert after["accuracy"] > 0.75, (before, after)
    with pytest.raises(InputError, match="pass regions="):
        evaluate(model, rows, tokenizer=tokenizer)
    with pytest.raises(InputError, match="'p11' among them"):
        evaluate(model, rows, tokenizer=tokenizer, regions={n: r for n, r in pictures().items() if n != "p11"})


def test_regions_are_read_from_a_dump(tokenizer, tmp_path):  # noqa: F811
    save_regions(tmp_path / "regions.safetensors", pictures())
    rows = [{"text": "w1", "image": f"p{n}", "label": n % 2} for n in range(4)]
    config = small_config("visualbert", vocab_size=45, visual_size=6, max_positions=24)
    options = task_options(rows, "sequence-classification", pictured=True)
    model = zoo.create("visualbert-base", task="sequence-classification", **config.to_dict(), **options)
    figures = evaluate(model, rows, tokenizer=tokenizer, regions=tmp_path / "regions.safetensors")
    assert figures == pytest.approx(evaluate(model, rows, tokenizer=tokenizer, regions=pictures()))


def test_a_wrong_label_is_refused_with_its_row_and_one_label_is_none(tokenizer, tmp_path):  # noqa: F811
    rows = [{"text": "w1", "label": "yes"}, {"text": "w2", "label": "no"}, {"text": "w3", "label": "maybe"}]
    model = model_for("sequence-classification", labels=["no", "yes"])
    with pytest.raises(InputError, match="row 3: the label 'maybe' is none that the model knows: no, yes"):
        evaluate(model, rows, tokenizer=tokenizer)
    (tmp_path / "dev.csv").write_text("text,label\nw1,yes\nw2,\n")
    with pytest.raises(InputError, match=r"dev.csv, row 2: a label must be a word or a whole number, got ''"):
        evaluate(model, tmp_path / "dev.csv", tokenizer=tokenizer)
    with pytest.raises(InputError, match="label 2: a label must be a word or a whole number, got ''"):
        task_options(tmp_path / "dev.csv", "sequence-classification")
    with pytest.raises(InputError, match="all rows have the label 'yes'; a classifier needs two or more"):
        task_options(rows[:1], "sequence-classification")
    assert task_options(rows[:1], "sequence-classification", labels=["no", "yes"])["labels"] == ["no", "yes"]
