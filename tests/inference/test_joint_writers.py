"""Writing in the stream that holds what is read: the cache changes nothing, wherever padding stands, and each step is
what one pass over all says.
"""

from __future__ import annotations

import math

import pytest
import torch

import zoo
from tests.strategies import build, relative, small_config
from zoo.errors import ConfigError, InputError, TaskError
from zoo.layers.cache import KeyValueCache
from zoo.tasks.losses import kept_token_loss

ROWS, REGIONS, WORDS = 3, 3, 4


def model_of(name="vlp", seed=1, **fields):
    own = {"max_positions": 24, "num_regions": REGIONS, "num_segments": 6, "end_token_id": 2, "mask_token_id": 3}
    return build(name, small_config(name, **own | fields), "masked-lm", seed=seed)


def pictures(model, rows=ROWS):
    generator = torch.Generator().manual_seed(3)
    return {
        "visual_features": torch.randn(rows, REGIONS, model.config.visual_size, generator=generator).double(),
        "visual_boxes": torch.randn(rows, REGIONS, model.config.box_size, generator=generator).double(),
        "visual_mask": torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 0]])[:rows],
    }


READ = {
    "input_ids": torch.tensor([[1, 2, 7], [1, 2, 0], [1, 2, 9]]),
    "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]]),
}

BEAMS = {"num_beams": 3, "num_return_sequences": 2}


@pytest.mark.parametrize("settings", [{}, BEAMS, {"num_beams": 2, "no_repeat_ngram_size": 1}])
def test_the_cache_changes_nothing(settings):
    model = model_of()
    given = {**READ, **pictures(model), "max_new_tokens": WORDS, **settings}
    with_cache, without = zoo.generate(model, **given), zoo.generate(model, **given, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    assert relative(with_cache.scores, without.scores) < 1e-10
    assert relative(with_cache.log_probs, without.log_probs) < 1e-10


def test_each_word_is_read_off_a_mask_behind_those_before_it():
    model = model_of(end_token_id=None)
    shown = pictures(model)
    written = zoo.generate(model, **READ, **shown, max_new_tokens=WORDS).sequences
    for row in range(ROWS):
        count = int(READ["attention_mask"][row].sum())
        words: list[int] = []
        for number in range(WORDS):
            ids = torch.tensor([[*READ["input_ids"][row, :count].tolist(), *words, 3]])
            ranks = torch.tensor([[0] * count + list(range(1, number + 2))])
            segments = torch.tensor([[0] * count + [5] * (number + 1)])
            own = {name: x[row : row + 1] for name, x in shown.items()}
            with torch.no_grad():
                logits = model(ids, token_type_ids=segments, ranks=ranks, **own).logits
            words.append(int(logits[0, count + number].argmax()))
        assert written[row].tolist() == words


def test_what_is_read_sees_nothing_that_is_written():
    model = model_of().model
    shown = pictures(model)
    ids = torch.tensor([[1, 2, 7, 8, 9]]).expand(ROWS, -1)
    ranks = torch.tensor([[0, 0, 1, 2, 3]]).expand(ROWS, -1)
    with torch.no_grad():
        whole = model(ids, ranks=ranks, **shown)
        alone = model(ids[:, :2], ranks=ranks[:, :2], **shown)
        fewer = model(ids[:, :4], ranks=ranks[:, :4], **shown)
        plain = model(ids, **shown)
    assert relative(whole.text.last_hidden_state[:, :2], alone.text.last_hidden_state) < 1e-12
    assert relative(whole.image.last_hidden_state, alone.image.last_hidden_state) < 1e-12
    assert relative(whole.text.last_hidden_state[:, :4], fewer.text.last_hidden_state) < 1e-12
    assert relative(whole.text.last_hidden_state, plain.text.last_hidden_state) > 1e-3


def test_a_texts_score_is_what_writing_it_gave():
    model = model_of(end_token_id=None)
    shown = {**READ, **pictures(model)}
    written = zoo.generate(model, **shown, max_new_tokens=WORDS)
    closing = torch.tensor([[7], [2], [9]])  # what is read last
    given = {name: x for name, x in shown.items() if name not in ("input_ids", "attention_mask")}
    target = torch.cat([closing, written.sequences], 1)
    found = zoo.score(
        model, READ["input_ids"], target, READ["attention_mask"], target_mask=torch.ones_like(target), **given
    )
    assert relative(found.log_probs, written.log_probs) < 1e-10


def test_a_cache_over_a_picture_goes_on_as_one_pass_does():
    model = model_of().model
    shown, cache = pictures(model), KeyValueCache()
    words, ranks = torch.tensor([[1, 2, 7]]).expand(ROWS, -1), torch.tensor([[0, 0, 1]]).expand(ROWS, -1)
    with torch.no_grad():
        whole = model(words, ranks=ranks, **shown).text.last_hidden_state
        model(words[:, :2], **shown, cache=cache)
        places = model.written_inputs(torch.full((ROWS,), 2), torch.arange(1))
        places.pop("token_type_ids")
        new = model(words[:, 2:], ranks=ranks[:, 2:], **places, cache=cache).text.last_hidden_state
    assert relative(new, whole[:, 2:]) < 1e-12


def test_what_can_not_be_written_is_refused():
    model = model_of()
    with pytest.raises(InputError, match="input_ids are missing"):
        zoo.generate(model, max_new_tokens=2)
    with pytest.raises(InputError, match="positions of the model"):
        zoo.generate(model, **READ, **pictures(model), max_new_tokens=99)
    with pytest.raises(TaskError, match="does not write"):
        zoo.generate(build("uniter", small_config("uniter"), "masked-lm"), READ["input_ids"])
    with pytest.raises(InputError, match=r"ranks must lie in 0\.\."):
        model(READ["input_ids"], ranks=torch.full((3, 3), -1))
    with pytest.raises(InputError, match="ranks are of words"):
        model.model(ranks=torch.zeros(3, 3, dtype=torch.int64), **pictures(model))


def unimo(**fields):
    return build("unimo", small_config("unimo", max_positions=20, **{"end_token_id": 2} | fields), "masked-lm", seed=2)


@pytest.mark.parametrize("settings", [{}, BEAMS])
@pytest.mark.parametrize("read", [True, False])
def test_a_writer_of_next_words_gives_the_same_with_and_without_its_cache(settings, read):
    model = unimo()
    words = {"input_ids": torch.tensor([[5, 6, 7], [5, 8, 1], [9, 4, 3]]), "attention_mask": READ["attention_mask"]}
    given = {**(words if read else {}), **pictures(model), "max_new_tokens": WORDS, **settings}
    with_cache, without = zoo.generate(model, **given), zoo.generate(model, **given, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    assert relative(with_cache.log_probs, without.log_probs) < 1e-10
    assert (with_cache.sequences[:, 0] == model.config.start_token_id).all()


def test_a_next_word_is_read_off_the_one_before_it_and_its_score_is_the_same():
    model = unimo(end_token_id=None)
    shown = pictures(model)
    written = zoo.generate(model, **shown, max_new_tokens=WORDS)
    for row in range(ROWS):
        words, own = [0], {name: x[row : row + 1] for name, x in shown.items()}
        for _ in range(WORDS):
            ids = torch.tensor([words])
            with torch.no_grad():
                logits = model(ids, ranks=torch.arange(1, len(words) + 1)[None], **own).logits[0, len(words) - 1]
            assert relative(written.log_probs[row, len(words) - 1], logits.log_softmax(0).max()) < 1e-10
            words.append(int(logits.argmax()))
        assert written.sequences[row].tolist() == words
    target = written.sequences
    found = zoo.score(model, None, target, target_mask=torch.ones_like(target), **shown)
    assert relative(found.log_probs, written.log_probs) < 1e-10


def test_an_answer_is_read_from_the_product_of_the_first_two_tokens_wherever_padding_stands():
    model = build("vlp", small_config("vlp"), "visual-question-answering", num_labels=4, seed=3)
    shown = pictures(model, 1)
    ids, padded = torch.tensor([[1, 2, 7, 8]]), torch.tensor([[0, 1, 0, 2, 7, 8]])
    mask, places = torch.tensor([[0, 1, 0, 1, 1, 1]]), torch.tensor([[0, 0, 0, 4, 5, 6]])
    with torch.no_grad():
        result = model(ids, **shown)
        states = result.encoded.text.last_hidden_state
        wanted = model.heads["visual_question_answering"](states[:, 0] * states[:, 1])
        assert relative(result.logits, wanted) < 1e-12
        assert relative(model(padded, mask, position_ids=places, **shown).logits, wanted) < 1e-12


def test_the_loss_of_kept_texts_leaves_the_worst_out_and_divides_by_the_words_of_the_others():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[1, -100, 2, 3, -100], [4, 5, -100, 6, 6], [-100] * 5, [3, -100, -100, -100, -100]])
    for smoothing in (0.0, 0.1):
        sums, counts = [], []
        for text, ids in zip(logits, labels.tolist(), strict=True):
            total = 0.0
            for scores, label in zip(text, ids, strict=True):
                if label != -100:
                    target = [0.0, *[smoothing / 5] * 6]
                    target[label] = 1 - smoothing
                    logp = scores.log_softmax(0).tolist()
                    total += sum(t * (math.log(t) - q) for t, q in zip(target, logp, strict=True) if t)
            sums.append(total)
            counts.append(sum(label != -100 for label in ids))
        kept = sorted(range(4), key=sums.__getitem__)[:2]
        wanted = sum(sums[i] for i in kept) / (sum(counts[i] for i in kept) + 1e-5)
        assert float(kept_token_loss(logits, labels, 0.5, smoothing)) == pytest.approx(wanted)
    with pytest.raises(ConfigError, match="drop_worst"):
        zoo.create("vlp-base", task="masked-lm", device="meta", drop_worst=1.0)


def enumerated(model, given, length, penalty):
    """Every text of at most so many words with its score, by one pass for each word and without a search."""
    end, vocabulary, found = model.config.end_token_id, model.config.vocab_size, []

    def scores(words):
        ids = torch.tensor([[1, 2, *words, 3]])
        places, segments = [0, 0, *range(1, len(words) + 2)], [0, 0, *[5] * (len(words) + 1)]
        with torch.no_grad():
            logits = model(ids, token_type_ids=torch.tensor([segments]), ranks=torch.tensor([places]), **given).logits
        return logits[0, len(words) + 2].log_softmax(0).tolist()

    def go_on(words, total):
        if words and (words[-1] == end or len(words) == length):
            found.append((total + penalty * len(words), words))
            return
        for token, value in enumerate(scores(words)):
            if token < vocabulary:
                go_on([*words, token], total + value)

    go_on([], 0.0)
    return sorted(found, key=lambda each: -each[0])


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_wide_beams_find_the_best_of_all_captions(penalty):
    """VLP's beams with its additive penalty: as many as there are texts of two words miss none."""
    model = model_of(vocab_size=8, max_positions=12)
    shown = pictures(model, 1)
    best = enumerated(model, shown, 2, penalty)[:5]
    written = zoo.generate(
        model, READ["input_ids"][:1, :2], **shown, num_beams=64, num_return_sequences=5, max_new_tokens=2,
        penalty="additive", length_penalty=penalty, early_stopping="never",
    )  # fmt: skip
    found = [row[:length].tolist() for row, length in zip(written.sequences, written.lengths, strict=True)]
    assert found == [words for _, words in best]
    assert written.scores.tolist() == pytest.approx([score for score, _ in best], abs=1e-9)
    narrow = zoo.generate(
        model, READ["input_ids"][:1, :2], **shown, num_beams=8, max_new_tokens=2,
        penalty="additive", length_penalty=penalty, early_stopping="never",
    )  # fmt: skip
    assert float(narrow.scores[0]) == pytest.approx(best[0][0], abs=1e-9)  # all first words are kept
