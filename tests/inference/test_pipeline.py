"""`zoo.pipeline`: what each task says of a text, in which order, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import zoo
from zoo.errors import InputError, TaskError, UnknownNameError
from zoo.inference.pipeline import (
    FillMaskPipeline,
    QuestionAnsweringPipeline,
    SequenceClassificationPipeline,
    TokenClassificationPipeline,
)
from zoo.inference.pipeline.answers import best_span
from zoo.inference.pipeline.tags import grouped, stripped
from zoo.tokenization.wordpiece import wordpiece

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "'", "ada", "love", "##lace", "new", "##ton"),
    *("york", "lives", "in", "and", "who", "s", "北", "京", "是"),
]
IDS = {word: number for number, word in enumerate(WORDS)}
TINY = {"vocab_size": len(WORDS), "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 12}
TEXTS = ["ada lives in york", "new york .", "ada", "who lives in new york and love and york", "", "newton , ada"]


@pytest.fixture
def tokenizer():
    return wordpiece(IDS, max_length=16)


def tiny(task, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return zoo.create("bert-base", task=task, generator=generator, max_positions=16, **TINY, **options).eval()


class ByToken:
    """A model whose outputs for a token depend on its id alone: what a row says is known beforehand."""

    device = torch.device("cpu")

    def __init__(self, task, table, labels=None):
        self.task, self.table, self.options, self.batches = task, table, {"labels": labels}, []

    def eval(self):
        return self

    def __call__(self, input_ids, **inputs):
        self.batches.append(tuple(input_ids.shape))
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits, start_logits=logits[..., 0], end_logits=logits[..., -1])


def tagger(tokenizer, labels, **tags):
    table = torch.zeros(len(WORDS), len(labels))
    table[:, labels.index("O") if "O" in labels else 0] = 5
    for word, label in tags.items():
        table[IDS[word]] = torch.nn.functional.one_hot(torch.tensor(labels.index(label)), len(labels)) * 9.0
    return TokenClassificationPipeline(ByToken("token-classification", table, labels), tokenizer, batch_size=4)


# --- rows


def test_one_text_a_list_and_an_iterator_give_the_same_each_in_its_own_form(tokenizer):
    model = tiny("sequence-classification", labels=["no", "yes"])
    classify = zoo.pipeline("sequence-classification", model, tokenizer=tokenizer, batch_size=2)
    wanted = [model(**tokenizer([text])).logits.softmax(-1)[0].tolist() for text in TEXTS]
    listed = classify(TEXTS)
    assert [list(found["scores"].values()) for found in listed] == [pytest.approx(row, abs=1e-5) for row in wanted]
    assert [found["label"] for found in listed] == [("no", "yes")[row[1] > row[0]] for row in wanted]
    assert [found["score"] for found in listed] == [pytest.approx(max(row), abs=1e-5) for row in wanted]
    assert classify(TEXTS[3])["score"] == pytest.approx(listed[3]["score"], abs=1e-5)
    streamed = classify(iter(TEXTS))
    assert not isinstance(streamed, list)
    assert [found["label"] for found in streamed] == [found["label"] for found in listed]
    assert classify([]) == []


def test_an_iterator_is_read_a_window_at_a_time_and_batches_are_of_like_length(tokenizer):
    tag = tagger(tokenizer, ["O", "B-X"])
    read = []

    def rows():
        for number in range(40):
            read.append(number)
            yield " ".join(["ada"] * (1 + 7 * number % 12))

    results = tag(rows())
    next(results)
    assert read == [0, 1, 2, 3]  # the first window is one batch
    assert [len(row["words"]) for row in results] == [1 + 7 * number % 12 for number in range(1, 40)]
    widths = [width for _, width in tag.model.batches[3:7]]  # the third window, of four batches
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]


def test_what_is_no_row_is_refused_by_its_number(tokenizer):
    classify = zoo.pipeline("sequence-classification", tiny("sequence-classification"), tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"row 1 must be a text \(str\) or a pair of texts \(a tuple of two\), got 3"):
        classify(["ada", 3])
    with pytest.raises(InputError, match="got dict"):
        classify({"text": "ada"})
    with pytest.raises(InputError, match="mixed"):
        classify([("ada", "york"), "ada"])
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        zoo.pipeline("sequence-classification", tiny("sequence-classification"), tokenizer=tokenizer, batch_size=0)


def test_a_model_needs_its_tokenizer_and_the_tasks_head(tokenizer, tmp_path):
    model = tiny("sequence-classification")
    with pytest.raises(InputError, match=r"set model.tokenizer = zoo.tokenizer\(NAME\)"):
        zoo.pipeline("sequence-classification", model)
    with pytest.raises(TaskError, match="'token-classification', the model's task is 'sequence-classification'"):
        zoo.pipeline("token-classification", model, tokenizer=tokenizer)
    with pytest.raises(UnknownNameError, match="sequence-classification"):
        zoo.pipeline("sequence-clasification", model)
    with pytest.raises(UnknownNameError, match="task of a pipeline"):
        zoo.pipeline("next-sentence", model)
    with pytest.raises(TaskError, match="bring yours there before"):
        zoo.pipeline("sequence-classification", model, tokenizer=tokenizer, dtype="bfloat16")
    zoo.save(model, tmp_path / "model", tokenizer)
    folder = zoo.pipeline("sequence-classification", tmp_path / "model")
    mine = zoo.pipeline("sequence-classification", model, tokenizer=tokenizer)
    for ours, theirs in zip(folder(TEXTS), mine(TEXTS), strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    with pytest.raises(TaskError, match=r"no trained head for token-classification: heads\.token_classification"):
        zoo.pipeline("token-classification", tmp_path / "model")


# --- classification and choice


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"labels": ["a", "b", "c"], "problem_type": "multi-label"}, {"labels", "scores"}),
        ({"num_labels": 1}, {"score"}),
        ({"labels": ["x", "y"], "problem_type": "regression"}, {"scores"}),
    ],
)
def test_a_classifier_says_what_its_problem_asks(tokenizer, options, keys):
    model = tiny("sequence-classification", **options)
    (logits,) = model(**tokenizer(["ada"], ["york"])).logits.tolist()
    found = zoo.pipeline("sequence-classification", model, tokenizer=tokenizer)(("ada", "york"))
    assert found.keys() == keys
    if "labels" in keys:
        assert found["labels"] == [name for name, logit in zip("abc", logits, strict=True) if logit >= 0]
        assert list(found["scores"].values()) == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-5)
    else:
        values = [found["score"]] if "score" in found else list(found["scores"].values())
        assert values == pytest.approx(logits, abs=1e-5)


def test_choices_of_several_rows_share_batches_and_not_their_scores(tokenizer):
    model = tiny("multiple-choice")
    rows = [("who", ["ada", "new york lives in york", "and"]), ("in", ["york"]), ("ada", ["love", "lives"])]
    found = zoo.pipeline("multiple-choice", model, tokenizer=tokenizer, batch_size=2)(rows)
    for (text, choices), one in zip(rows, found, strict=True):
        batch = {n: x[None] for n, x in tokenizer([text] * len(choices), choices).items()}
        scores = model(**batch).logits[0].softmax(0).tolist()
        assert one["scores"] == pytest.approx(scores, abs=1e-5)
        assert one["choice"] == scores.index(max(scores))


# --- tags


def test_words_are_joined_from_pieces_and_entities_from_words(tokenizer):
    tag = tagger(
        tokenizer, ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], ada="B-PER", love="I-PER", new="B-LOC", york="I-LOC"
    )
    text = "Ada Lovelace, who lives in New York."
    found = tag(text)
    assert " ".join(word["word"] for word in found["words"]) == "Ada Lovelace , who lives in New York ."
    assert " ".join(word["label"] for word in found["words"]) == "B-PER I-PER O O O O B-LOC I-LOC O"
    assert [(e["label"], e["text"]) for e in found["entities"]] == [("PER", "Ada Lovelace"), ("LOC", "New York")]
    assert all(text[one["start"] : one["end"]] == one["word"] for one in found["words"])
    assert all(text[one["start"] : one["end"]] == one["text"] for one in found["entities"])
    place = 9 - torch.tensor([9.0, 0, 0, 0, 0]).logsumexp(0).item()
    assert found["entities"][0]["score"] == pytest.approx(torch.tensor(place).exp().item())
    assert tag("") == {"words": [], "entities": []}


def test_a_word_ends_at_punctuation_and_each_ideograph_is_one(tokenizer):
    found = tagger(tokenizer, ["O", "B-X"])("who's newton. 北京是york")
    assert [word["word"] for word in found["words"]] == ["who", "'", "s", "newton", ".", "北", "京", "是", "york"]


def test_a_tuple_of_words_is_taken_as_it_is(tokenizer):
    tag = tagger(tokenizer, ["O", "LOC"], york="LOC", new="LOC")
    found = tag([("ada's", "new", "york", ""), ("york",)])
    assert [[word["label"] for word in row["words"]] for row in found] == [["O", "LOC", "LOC", None], ["LOC"]]
    assert [e["text"] for e in found[0]["entities"]] == ["new york"]  # runs of one label, where none is prefixed
    assert [e["label"] for e in found[0]["entities"]] == ["LOC"]


def test_a_blank_that_is_a_piece_by_itself_begins_its_word():
    """As in training, where the label stands at the word's first piece."""
    text = "ab  cd"
    assert [stripped(text, *place) for place in ((0, 2), (2, 5), (3, 4), (4, 6), (2, 3), (1, 1))] == [
        *((0, 2), (4, 5), (4, 5), (4, 6), (3, 3), (1, 1)),
    ]
    pieces = [(0, 2), (3, 4), (4, 5), (5, 6)]  # "ab", "▁", "c", "d"
    encoding = SimpleNamespace(offsets=pieces, sequence_ids=[0] * 4, word_ids=[0, 1, 1, 1])
    tag = TokenClassificationPipeline(ByToken("token-classification", None, ["O", "B-X"]), SimpleNamespace())
    judged = tag._judged(text, [encoding], [torch.eye(4)])
    assert [(piece.start, piece.end, piece.scores.index(1)) for piece in judged] == [(0, 2, 0), (4, 5, 1), (5, 6, 3)]
    assert [len(group) for group in grouped(text, judged)] == [1, 2]


def test_labels_without_an_outside_make_no_entities(tokenizer):
    found = tagger(tokenizer, ["NOUN", "VERB"], lives="VERB")("ada lives")
    assert [word["label"] for word in found["words"]] == ["NOUN", "VERB"]
    assert found["entities"] == []


def test_a_long_text_is_tagged_to_its_end_by_the_window_that_sees_most_around_a_word(tokenizer):
    class ByPlace(ByToken):
        """Tags every token by how many real tokens stand on its narrower side."""

        def __call__(self, input_ids, attention_mask, **inputs):
            place = torch.arange(input_ids.shape[1]).expand_as(input_ids)
            narrow = torch.minimum(place - 1, attention_mask.sum(1, keepdim=True) - 2 - place).clamp(0, 15)
            return SimpleNamespace(logits=torch.nn.functional.one_hot(narrow, 16) * 50.0)

    model = ByPlace("token-classification", None, [str(number) for number in range(16)])
    tag = TokenClassificationPipeline(model, tokenizer)
    tag.overlap = 6
    words = tag(" ".join(["ada", "in"] * 20))["words"]
    assert len(words) == 40
    windows = [(start, min(start + 14, 40)) for start in range(0, 34, 8)]  # 14 tokens each, 6 in common
    wanted = [max(min(i - a, b - 1 - i) for a, b in windows if a <= i < b) for i in range(40)]
    assert [int(word["label"]) for word in words] == wanted


# --- answers


def answerer(tokenizer, starts, ends, overlap=4):
    table = torch.zeros(len(WORDS), 2)
    for word, score in starts.items():
        table[IDS[word], 0] = score
    for word, score in ends.items():
        table[IDS[word], 1] = score
    ask = QuestionAnsweringPipeline(ByToken("question-answering", table), tokenizer)
    ask.overlap = overlap
    return ask


def test_an_answer_is_found_in_any_window_of_a_long_text(tokenizer):
    ask = answerer(tokenizer, {"new": 5.0, "who": 9.0}, {"york": 6.0, "who": 9.0})
    text = "and in " * 20 + "Ada lives in New York ." + " and in" * 7
    found = ask(("who", text))
    assert found["answer"] == "New York"
    assert text[found["start"] : found["end"]] == "New York"
    windows = [piece.tokens for piece in tokenizer.windows("who", text, overlap=4)]
    inside = [token for window in windows for token in window[3:-1]]
    assert len(windows) > 4
    start = sum(torch.tensor(5.0 if token == "new" else 0.0).exp() for token in inside)
    end = sum(torch.tensor(6.0 if token == "york" else 0.0).exp() for token in inside)
    assert found["score"] == pytest.approx(float(torch.tensor(11.0).exp() / (start * end)), rel=1e-4)
    assert found["no_answer"] == pytest.approx(-11.0)  # [CLS] scores nothing


def test_the_question_is_never_the_answer_and_an_empty_text_has_none(tokenizer):
    ask = answerer(tokenizer, {"who": 9.0}, {"who": 9.0})
    assert ask(("who", "ada"))["answer"] == "ada"
    assert ask(("who", "")) == {"answer": "", "score": 0.0, "start": None, "end": None, "no_answer": None}
    found = ask([("who", "ada"), ("who", ""), ("who", "who")])
    assert [row["answer"] for row in found] == ["ada", "", "who"]
    assert ask(("who " * 14, "ada"))["answer"] == "ada"  # the question is cut to half of the window


@pytest.mark.parametrize("seed", range(5))
def test_the_best_span_is_ordered_and_no_longer_than_allowed(seed):
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed))
    for longest in (1, 3, 9):
        spans = {
            (i, j): float(logits[0, i] + logits[1, j]) for i in range(9) for j in range(i, 9) if j - i + 1 <= longest
        }
        (first, last), score = max(spans.items(), key=lambda item: item[1])
        assert best_span(logits, longest) == (pytest.approx(score), first, last)


# --- masks and vectors


def test_masks_of_several_rows_are_each_filled(tokenizer):
    model = tiny("masked-lm")
    fill = zoo.pipeline("fill-mask", model, tokenizer=tokenizer, top=3, batch_size=2)
    rows = ["[MASK] lives in [MASK]", "ada [MASK]", "[MASK]"]
    found = fill(rows)
    assert [len(row["masks"]) for row in found] == [2, 1, 1]
    for text, row in zip(rows, found, strict=True):
        batch = tokenizer([text])
        places = (batch["input_ids"][0] == IDS["[MASK]"]).nonzero().flatten()
        best = model(**batch).prediction_logits[0, places].softmax(-1).topk(3)
        assert [[guess["id"] for guess in mask] for mask in row["masks"]] == best.indices.tolist()
        for mask, values in zip(row["masks"], best.values.tolist(), strict=True):
            assert [guess["probability"] for guess in mask] == pytest.approx(values, abs=1e-6)
            assert [IDS[guess["token"]] for guess in mask] == [guess["id"] for guess in mask]
    with pytest.raises(InputError, match="a mask lies behind the 16 tokens"):
        fill("ada " * 20 + "[MASK]")
    with pytest.raises(InputError, match=r"'ada <mask>' holds no mask token; write \[MASK\] where"):
        fill(["[MASK]", "ada <mask>"])
    with pytest.raises(InputError, match="top must be at least 1"):
        FillMaskPipeline(model, tokenizer, top=0)


def test_vectors_are_those_of_the_model_in_order(tokenizer):
    model = tiny("sentence-embedding")
    found = zoo.pipeline("sentence-embedding", model, tokenizer=tokenizer, batch_size=2)(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        torch.testing.assert_close(torch.tensor(row["embedding"]), model(**tokenizer([text])).embedding[0])


def test_a_classifier_given_as_a_class_is_the_same(tokenizer):
    model = tiny("sequence-classification")
    assert SequenceClassificationPipeline(model, tokenizer)("ada") == zoo.pipeline(
        "sequence-classification", model, tokenizer=tokenizer
    )("ada")
