"""Writing: against transformers over drawn settings, against a search written out in loops, with and
without what is remembered; the settings and what they refuse.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.inference import search_oracle
from tests.strategies import build, relative, small_config
from zoo.errors import ConfigError, InputError, TaskError, UnknownNameError
from zoo.inference.generate import generate, score
from zoo.inference.search import Search
from zoo.inference.search.penalties import additive, google

TASK = "conditional-generation"
GIVEN = search_oracle.sources(1)


def writer(seed: int = 0) -> Any:
    """A small mBART whose texts are neither sure nor endless."""
    return search_oracle.pair("mbart", seed)[0]


def told(model: Any, row: int, ids: list[int]) -> Tensor:
    """The log-probabilities of what follows ``ids``, by a pass over all of it."""
    real = GIVEN["attention_mask"][row].bool()
    with torch.no_grad():
        source = GIVEN["input_ids"][row][real][None]
        return model(source, decoder_input_ids=torch.tensor([ids])).prediction_logits[0, -1].log_softmax(0)


# -- transformers ------------------------------------------------------------------------------------------------------


def test_drawn_settings_write_what_transformers_writes():
    """`python -m tests.inference.search_oracle` draws hundreds."""
    assert search_oracle.run(12, ("mbart",), first=500) == {"equal": 12}


# -- by hand -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("penalty", ["average", "google", "additive"])
def test_beams_that_hold_everything_find_the_best_of_all_texts(penalty, late):
    """With as many beams as there are texts, the search is over all of them."""
    model, some = writer(), (2, 5, 9)
    found = generate(
        model,
        **GIVEN,
        max_new_tokens=3,
        num_beams=18,
        vocabulary=some,
        penalty=penalty,
        length_penalty=0.7,
        early_stopping="never",
        late_endings=late,
    )
    weights = {
        "average": lambda total, n: total / n**0.7,
        "google": lambda total, n: total / ((5 + n) / 6) ** 0.7,
        "additive": lambda total, n: total + 0.7 * n,
    }[penalty]
    for row in (0, 3):
        best, follows = (-float("inf"), ()), functools.cache(lambda ids, row=row: told(model, row, [2, *ids]))
        for words in itertools.product(some, repeat=3):
            text = words[: words.index(2) + 1] if 2 in words else words
            total = sum(float(follows(text[:i])[word]) for i, word in enumerate(text))
            best = max(best, (weights(total, len(text)), text))
        assert tuple(found.sequences[row, 1 : found.lengths[row]].tolist()) == best[1]
        assert abs(float(found.scores[row]) - best[0]) < 1e-9


def test_penalties_are_what_their_papers_say():
    total = torch.tensor([-6.0])
    assert float(google(total, 7, 1.0)) == -3
    assert float(additive(total, 4, 0.5)) == -4


def test_log_probabilities_come_with_the_texts_and_score_gives_the_same():
    model = writer(2)
    for named in ({}, {"num_beams": 3, "num_return_sequences": 2}, {"no_repeat_ngram_size": 1}):
        found = generate(model, **GIVEN, max_length=9, **named)
        times = len(found.sequences) // len(GIVEN["input_ids"])
        given = {name: x.repeat_interleave(times, 0) for name, x in GIVEN.items()}
        mask = torch.arange(found.sequences.shape[1]) < torch.tensor(found.lengths)[:, None]
        again = score(model, given["input_ids"], found.sequences, given["attention_mask"], target_mask=mask)
        assert relative(found.log_probs, again.log_probs) < 1e-12
        if times == 1:
            assert torch.allclose(found.scores, again.scores)
        row, n = 1, found.lengths[times]
        ids = found.sequences[times, :n].tolist()
        total = sum(float(told(model, row, ids[:i])[ids[i]]) for i in range(1, n))
        assert abs(float(again.scores[times]) - total) < 1e-9


def test_the_longest_text_gives_its_last_place_to_the_end_where_settings_say_so():
    model = writer()
    open_ = generate(model, **GIVEN, max_length=5, suppress_tokens=[2])
    closed = generate(model, **GIVEN, max_length=5, suppress_tokens=[2], end_at_limit=True)
    assert torch.equal(open_.sequences[:, :4], closed.sequences[:, :4])
    assert bool((closed.sequences[:, 4] == 2).all())
    assert not bool((open_.sequences == 2)[:, 1:].any())
    beams = generate(model, **GIVEN, max_length=5, suppress_tokens=[2], end_at_limit=True, num_beams=3)
    assert bool((beams.sequences[:, 4] == 2).all())


def test_a_text_may_end_below_num_beams_others_where_settings_say_so():
    """Two beams, whose ends come first and third: the third counts by the late rule alone."""
    model = writer()

    def processor(ids: Tensor, scores: Tensor) -> Tensor:
        fixed = torch.full_like(scores, -50.0)
        if ids.shape[1] == 1:
            fixed[:, 5], fixed[:, 6] = -0.1, -0.2
        elif ids.shape[1] == 2:
            fixed[:, 2], fixed[:, 5] = -0.1, -0.15
        return fixed

    named = {"num_beams": 2, "num_return_sequences": 2, "processors": (processor,), "max_length": 5}
    named |= {"early_stopping": "never", "length_penalty": 0.0}
    early, late = (generate(model, **GIVEN, **named, late_endings=late) for late in (False, True))
    assert early.sequences[::2, :3].tolist() == late.sequences[::2, :3].tolist() == [[2, 5, 2]] * 4
    assert late.sequences[1::2].tolist() == [[2, 6, 2]] * 4
    assert set(early.lengths[1::2]) == {5}


# -- what is remembered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mbart", "xlm-translation"])
@pytest.mark.parametrize("side", ["right", "left", "packing off"])
def test_remembering_changes_speed_alone(family, side):
    model = build(family, small_config(family, **({"start_token_id": 2} if family == "mbart" else {})), TASK, seed=3)
    real = GIVEN["attention_mask"].bool()
    given = GIVEN if side != "left" else {"input_ids": GIVEN["input_ids"].flip(1), "attention_mask": real.flip(1)}
    own = {"language_ids": 1, "decoder_language_ids": [0, 1, 1, 0]} if family == "xlm-translation" else {}
    start = torch.tensor([[1, 2], [2, 7], [1, 2], [1, 2]])
    with zoo.packing(side != "packing off"):
        for named in (
            {},
            {"num_beams": 4, "num_return_sequences": 3},
            {"start_ids": start, "decoder_attention_mask": start != 1, "num_beams": 2},
        ):
            named = {**named, **own, "max_length": 9}
            assert_same(generate(model, **given, **named), generate(model, **given, **named, use_cache=False))


@pytest.mark.parametrize(
    "technique",
    [
        zoo.LoRA(rank=2),
        zoo.PrefixTuning(length=3, bottleneck=None),
        zoo.StridedAttention(stride=3, causal=True),
        zoo.SlidingWindow(radius=2, causal=True),
        zoo.AdaptiveSpan(),
        zoo.BottleneckAdapter(),
        zoo.LongShortRange(),
        zoo.Int8(),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_techniques_write_the_same_with_and_without_remembering(technique):
    model = build("mbart", small_config("mbart", start_token_id=2), TASK, seed=3)
    zoo.apply(model, technique)
    for parameter in model.parameters():  # so that what was added counts
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for named in ({}, {"num_beams": 3}):
        named = {**named, "max_length": 9}
        assert_same(generate(model, **GIVEN, **named), generate(model, **GIVEN, **named, use_cache=False))


def assert_same(one: Any, other: Any) -> None:
    assert torch.equal(one.sequences, other.sequences)
    assert relative(one.log_probs, other.log_probs) < 1e-12
    assert relative(one.scores, other.scores) < 1e-12


def test_a_batch_writes_what_each_source_writes_alone():
    model = writer(1)
    for named in ({}, {"num_beams": 3, "length_penalty": 2.0}):
        together = generate(model, **GIVEN, max_length=12, **named)
        for row in range(4):
            n = int(GIVEN["attention_mask"][row].sum())
            where = GIVEN["attention_mask"][row].bool()
            alone = generate(model, GIVEN["input_ids"][row][where].view(1, n), max_length=12, **named)
            length = alone.lengths[0]
            assert together.lengths[row] == length
            assert torch.equal(together.sequences[row, :length], alone.sequences[0])


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_by_their_probabilities():
    model = writer()
    one = {name: x[:1] for name, x in GIVEN.items()}
    found = generate(
        model,
        **one,
        max_new_tokens=1,
        do_sample=True,
        num_return_sequences=4000,
        temperature=2.0,
        top_k=5,
        generator=torch.Generator().manual_seed(0),
    )
    counted = torch.bincount(found.sequences[:, 1], minlength=search_oracle.VOCABULARY) / 4000
    logits = told(model, 0, [2]) / 2
    kept = logits.topk(5).indices
    wanted = torch.zeros_like(logits).index_copy(0, kept, logits[kept].softmax(0))
    assert float((counted - wanted).abs().max()) < 0.03
    assert set(found.sequences[:, 1].tolist()) <= set(kept.tolist())


def test_the_nucleus_is_the_least_set_that_reaches_the_probability():
    model = writer()
    one = {name: x[:1] for name, x in GIVEN.items()}
    ordered = told(model, 0, [2]).exp().sort(descending=True)
    enough = int((ordered.values.cumsum(0) < 0.6).sum()) + 1
    named = {"do_sample": True, "top_p": 0.6, "num_return_sequences": 2000, "max_new_tokens": 1}
    found = generate(model, **one, **named, generator=torch.Generator().manual_seed(1))
    assert set(found.sequences[:, 1].tolist()) == set(ordered.indices[:enough].tolist())


def test_a_generator_repeats_what_was_drawn():
    model = writer()
    named = {"do_sample": True, "max_length": 8}
    first, second = (generate(model, **GIVEN, **named, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.sequences, second.sequences)
    beams = generate(model, **GIVEN, **named, num_beams=3, generator=torch.Generator().manual_seed(3))
    assert beams.sequences.shape[0] == 4


# -- who looks on ------------------------------------------------------------------------------------------------------


def test_a_streamer_hears_each_token_of_each_source():
    model, heard, seen = writer(), {}, []
    found = generate(
        model,
        **GIVEN,
        max_length=9,
        streamer=lambda source, token: heard.setdefault(source, []).append(token),
        progress=lambda length, longest: seen.append((length, longest)),
    )
    for row, length in enumerate(found.lengths):
        assert heard[row] == found.sequences[row, 1:length].tolist()
    assert seen[0] == (2, 9)
    with pytest.raises(InputError, match="set both to 1"):
        generate(model, **GIVEN, num_beams=2, streamer=print)


def test_a_user_s_processor_and_allowed_tokens_are_asked():
    model = writer()
    found = generate(
        model,
        **GIVEN,
        max_length=4,
        processors=(lambda ids, scores: scores.index_fill(1, torch.tensor([2]), -torch.inf),),
        prefix_allowed_tokens=lambda source, ids: [2, 3 + source],
    )
    assert found.sequences[:, 1:].tolist() == [[3 + source] * 3 for source in range(4)]
    with pytest.raises(InputError, match="no token may follow"):
        generate(model, **GIVEN, prefix_allowed_tokens=lambda source, ids: [])
    with pytest.raises(InputError, match="source 0 has 1 texts"):
        generate(model, **GIVEN, num_beams=2, num_return_sequences=2, prefix_allowed_tokens=lambda source, ids: [2])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 9, "max_new_tokens": 3}, "give one"),
        ({"temperature": 0.5}, "add do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "above 0"),
        ({"top_k": 3}, "add do_sample"),
        ({"do_sample": True, "top_p": 1.5}, "probability"),
        ({"length_penalty": 2.0}, "raise num_beams"),
        ({"early_stopping": True}, "raise num_beams"),
        ({"num_return_sequences": 2}, "raise num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3, "do_sample": True}, "more than num_beams"),
        ({"min_length": 5, "max_length": 4}, "is more than max_length"),
        ({"num_beams": 0}, "at least 1"),
        ({"bad_words_ids": [[]]}, "empty"),
        ({"num_beams": 2, "early_stopping": "always"}, '"never"'),
        ({"num_beams": 2, "length_penalty": float("nan")}, "finite"),
        ({"vocabulary": []}, "nothing could be written"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Search(**settings)


def test_names_and_ids_that_do_not_exist_are_refused():
    model = writer()
    with pytest.raises(UnknownNameError, match="average"):
        Search(num_beams=2, penalty="averege")
    with pytest.raises(UnknownNameError, match="num_beams"):
        generate(model, **GIVEN, num_beam=2)
    with pytest.raises(InputError, match=r"suppress_tokens holds 19; ids lie in 0\.\.18"):
        generate(model, **GIVEN, suppress_tokens=[19])
    with pytest.raises(InputError, match="source 1 has no token"):
        generate(model, GIVEN["input_ids"], GIVEN["attention_mask"] * torch.tensor([[1], [0], [1], [1]]))
    with pytest.raises(InputError, match="24 positions"):
        generate(model, torch.full((1, 25), 3))
    with pytest.raises(InputError, match=r"\(4, n\)"):
        generate(model, **GIVEN, start_ids=torch.ones(3, 1, dtype=torch.long))
    with pytest.raises(TaskError, match="does not write"):
        generate(build("bert", small_config("bert")), **GIVEN)
    with pytest.raises(InputError, match="target_ids"):
        score(model, GIVEN["input_ids"])


def test_settings_of_a_released_folder_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"num_beams": 4, "forced_eos_token_id": 2, "min_length": 56}')
    assert Search.read(tmp_path) == Search(num_beams=4, forced_eos_token_id=2, min_length=56)
    (tmp_path / "generation_config.json").write_text(
        '{"num_beams": 1, "length_penalty": 2.0, "top_k": 50, "eos_token_id": [2, 7], "bad_words_ids": [[3]]}'
    )
    assert Search.read(tmp_path) == Search(end_token_id=(2, 7), bad_words_ids=((3,),))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"vocabulary": torch.ones(4, dtype=torch.bool)}, "a value for each of the 19 ids"),
        ({"processors": [lambda ids, scores: scores[:, :3]]}, "a processor must give scores of shape"),
        ({"processors": lambda ids, scores: None}, "it gave NoneType"),
        ({"processors": [3]}, "are functions, got 3"),
        ({"prefix_allowed_tokens": lambda source, ids: [99]}, r"gave \[99\]; ids lie in 0\.\.18"),
        ({"bad_words_ids": [3]}, "a list of lists of ids"),
        ({"suppress_tokens": 3}, "suppress_tokens must be a list, got 3"),
        ({"use_cache": "no"}, "use_cache must be True or False"),
        ({"stop": [""]}, "strings that are not empty"),
        ({"min_length": 9, "max_new_tokens": 4}, "min_length=9 is more than the 5 tokens"),
        ({"generator": torch.Generator()}, "add do_sample"),
        ({"search": {"num_beams": 2}}, "search must be a zoo.Search"),
        ({"start_ids": [2]}, r"start_ids must be a tensor \(batch, n\)"),
        ({"streamer": 3}, "streamer must be a function"),
        ({"progress": 3}, "progress must be a function"),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(named, message):
    with pytest.raises((ConfigError, InputError), match=message):
        generate(writer(), GIVEN, **{"max_new_tokens": 4, **named})


def test_as_many_sources_as_targets_are_scored():
    one = {key: x[:1] for key, x in GIVEN.items()}
    with pytest.raises(InputError, match="1 sources and 2 targets"):
        score(writer(), one, torch.tensor([[2, 5, 3], [2, 6, 3]]))
    with pytest.raises(InputError, match="target_ids must be a tensor"):
        score(writer(), one, "a dog")
    with pytest.raises(InputError, match="one source at least"):
        generate(writer(), torch.zeros(0, 3, dtype=torch.long))
