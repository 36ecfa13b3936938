"""MASS's spans: what the decoder reads and writes belongs to the places that the source lost, in every
recorded example too.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

import zoo
from tests.references.case import golden_cases, load_case
from zoo.data.span_masking import (
    NoisedInterval,
    SpanCollator,
    block_places,
    interval,
    pair_batch,
    segment_places,
)
from zoo.errors import ConfigError, InputError

MASK, PAD = 5, 2


def items(name):
    return load_case(golden_cases(f"mass/{name}")[0]).info["items"]


def test_a_recorded_span_gives_the_recorded_decoder_inputs_and_targets():
    for item in items("restricted-mask"):
        given = item["input"]
        texts = [list(column) for column in zip(*given["x"], strict=True)]
        for example in item["output"]["examples"]:
            before = [list(column) for column in zip(*example["positions"], strict=True)]
            chosen = iter([[place + 1 for place in places] for places in before])
            collate = SpanCollator(
                mask_id=given["mask_index"], vocab_size=60, pad_id=PAD, choose=lambda *_, chosen=chosen: next(chosen)
            )
            batch = collate([{"input_ids": text} for text in texts])
            assert batch["decoder_input_ids"].T.tolist() == example["x2"]
            assert batch["labels"].T.flatten().tolist() == example["y"]
            assert batch["decoder_position_ids"].T.tolist() == example["positions"]
            for text, theirs, places in zip(texts, zip(*example["x1"], strict=True), before, strict=True):
                kept = [n for n in range(len(text)) if n - 1 not in places]
                assert [theirs[n] for n in kept] == [text[n] for n in kept]


def test_a_recorded_block_gives_the_recorded_decoder_inputs_and_targets():
    for item in items("summarization-mask"):
        tokens, pad = item["input"]["tokens"], item["input"]["pad_index"]
        for example in item["output"]["examples"]:
            chosen = [place - pad for place in example["positions"]]
            collate = SpanCollator(
                mask_id=8, vocab_size=50, pad_id=pad, choose=lambda *_, chosen=chosen: chosen, shares=(1.0, 0.0, 0.0)
            )
            ours = collate.written(tokens, random.Random(0))
            assert (ours.reads, ours.writes) == (example["prev_output_tokens"], example["target"])
            assert [n for n, (a, b) in enumerate(zip(tokens, ours.source, strict=True)) if a != b] == chosen


def test_a_recorded_interval_is_noised_one_place_behind_what_is_predicted():
    for item in items("sup-nmt-mask"):
        given = item["input"]
        text = [given["eos"], *given["tokens"]]
        noise = NoisedInterval(mask_id=given["mask"], vocab_size=given["vocab"], shares=(1.0, 0.0, 0.0))
        for example in item["output"]["examples"]:
            span = example["start"], example["length"]
            ours = noise(text, random.Random(0), span)
            assert ours.writes == example["target"]
            changed = [n for n, (a, b) in enumerate(zip(given["tokens"], example["source"], strict=True)) if a != b]
            masked = [n for n, token in enumerate(ours.source) if token == given["mask"]]
            assert set(changed) <= set(masked)
            assert len(masked) == min(span[1] + 1, len(given["tokens"]) - span[0])


@pytest.mark.parametrize("span", [1, 2, 3, None])
def test_the_first_token_is_never_masked_and_the_number_is_what_was_asked_for(span):
    rng, length = random.Random(3), 11
    drawn = [segment_places(length, 0.5, rng, span) for _ in range(400)]
    assert {len(places) for places in drawn} == {round(0.5 * length)}
    assert all(places == sorted(set(places)) and places[0] >= 1 and places[-1] < length for places in drawn)
    assert {place for places in drawn for place in places} == set(range(1, length))
    if span is None:
        assert all(places[-1] - places[0] == len(places) - 1 for places in drawn)


def test_a_fifth_of_the_spans_is_at_the_start_and_a_fifth_at_the_end():
    rng = random.Random(0)
    starts = Counter(segment_places(40, 0.25, rng)[0] for _ in range(4000))
    assert abs(starts[1] / 4000 - (0.2 + 0.6 / 30)) < 0.03
    assert abs(starts[30] / 4000 - (0.2 + 0.6 / 30)) < 0.03
    assert sorted(interval(3, 0.9, rng) for _ in range(3)) == [(1, 3)] * 3  # no room to choose


def test_each_block_loses_its_own_span():
    for seed in range(50):
        places = block_places(1 + 8 + 8 + 3, 0.5, random.Random(seed), block=8)
        assert Counter((place - 1) // 8 for place in places) == {0: 4, 1: 4, 2: 1}


def test_a_batch_trains_a_model_that_cannot_see_the_masked_places():
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_heads": 4, "num_layers": 1, "decoder_num_layers": 1}
    model = zoo.create("mass-enfr-1024", task="conditional-generation", **sizes).eval()
    collate = SpanCollator(mask_id=MASK, vocab_size=60, pad_id=PAD, shares=(1.0, 0.0, 0.0), first_word=10)
    examples = [{"input_ids": [1, *range(20, 28), 1], "language": 0}, {"input_ids": [1, 30, 31, 1], "language": 1}]
    batch = collate(examples, torch.Generator().manual_seed(1))
    assert batch["decoder_language_ids"][1].tolist() == [1] * 5
    loss = model(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    masked = batch["input_ids"] == MASK
    assert int(masked.sum()) == int((batch["labels"] != -100).sum()) == 7
    memory = model.model.encode(batch["input_ids"], batch["attention_mask"], batch["language_ids"]).last_hidden_state
    seen, _ = model.model.seen_of_source(batch["input_ids"], batch["attention_mask"], None)
    assert torch.equal(seen, batch["attention_mask"].bool() & ~masked)
    written = {name: batch[f"decoder_{name}"] for name in ("input_ids", "attention_mask", "language_ids")}
    named = {f"decoder_{name}": x for name, x in written.items()}
    first = model.model.decode(memory=memory, attention_mask=seen, **named).last_hidden_state
    memory = memory.masked_fill(masked[:, :, None], 100.0)
    assert torch.equal(first, model.model.decode(memory=memory, attention_mask=seen, **named).last_hidden_state)


def test_translations_are_shifted_by_one():
    batch = pair_batch([{"first": [1, 7, 8, 1], "second": [1, 9, 1], "first_language": 0, "second_language": 1}], PAD)
    assert batch["decoder_input_ids"].tolist() == [[1, 9]]
    assert batch["labels"].tolist() == [[9, 1]]
    assert batch["language_ids"].tolist() == [[0] * 4]
    assert batch["decoder_language_ids"].tolist() == [[1, 1]]


def test_what_cannot_be_masked_is_refused():
    with pytest.raises(ConfigError, match="share=1"):
        SpanCollator(mask_id=MASK, vocab_size=60, pad_id=PAD, share=1.0)
    with pytest.raises(InputError, match="leave out texts"):
        SpanCollator(mask_id=MASK, vocab_size=60, pad_id=PAD)([{"input_ids": [1]}])
