"""M3P: what the golden cases do not say."""

from __future__ import annotations

import random

import pytest
import torch

import zoo
from tests.families.m3p import small_batch
from tests.strategies import randomised, small_config
from zoo.data.code_switching import CodeSwitcher
from zoo.data.vision_masking import mask_known_regions
from zoo.errors import ConfigError, InputError
from zoo.models.m3p import M3P


def model_of(**fields: object) -> M3P:
    with torch.no_grad():
        return randomised(M3P(small_config("m3p", **fields)).double())  # type: ignore[return-value]


def test_a_caption_sees_the_words_before_it_and_the_real_regions_alone() -> None:
    model, given = model_of(), small_batch().inputs
    picture = {name: x for name, x in given.items() if name.startswith("visual")}
    memory = model(**picture).last_hidden_state
    ids = given["input_ids"]
    states = model.decode(ids, memory, given["visual_mask"]).last_hidden_state
    later = model.decode(torch.cat([ids[:, :3], ids[:, 3:] % 7 + 8], 1), memory, given["visual_mask"]).last_hidden_state
    assert torch.allclose(states[:, :3], later[:, :3])
    assert not torch.allclose(states[:, 3:], later[:, 3:])
    there = given["visual_mask"].bool().unsqueeze(2)
    other = torch.where(there, memory, torch.ones_like(memory))
    assert torch.allclose(states, model.decode(ids, other, given["visual_mask"]).last_hidden_state)
    shown = torch.where(there, -memory, memory)
    assert not torch.allclose(states, model.decode(ids, shown, given["visual_mask"]).last_hidden_state)


def test_padded_regions_move_no_word() -> None:
    model, given = model_of(refine_image=False), small_batch().inputs
    row = {name: x[:1] for name, x in given.items() if name not in ("attention_mask", "visual_mask")}
    short = {name: x[:, :2] if name.startswith("visual") else x for name, x in row.items()}
    padded = model(**row, visual_mask=torch.tensor([[1, 1, 0]]))
    alone = model(**short)
    assert torch.allclose(padded.text.last_hidden_state, alone.text.last_hidden_state)
    full = model(**row)
    assert not torch.allclose(full.text.last_hidden_state, alone.text.last_hidden_state)


def test_a_language_is_added_to_a_text_alone_and_may_be_left_out() -> None:
    model, given = model_of(num_languages=2, languages=("en", "de")), small_batch().inputs
    ids = given["input_ids"]
    plain = model(ids).last_hidden_state
    assert not torch.allclose(plain, model(ids, language_ids="de").last_hidden_state)
    with pytest.raises(zoo.errors.UnknownNameError, match="xx"):
        model(ids, language_ids="xx")


def test_what_no_model_can_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="causal"):
        small_config("m3p", causal=True)
    model, given = model_of(max_positions=8), small_batch().inputs
    with pytest.raises(InputError, match="3 regions and 6 tokens need 9 positions; this model has 8"):
        model(**given)


def test_a_word_is_switched_by_its_own_dictionary() -> None:
    words = {"dog": {"de": ["Hund"]}, "red": {"de": ["rot"]}}
    always = CodeSwitcher(dictionary=words, sentence_probability=1.0, word_probability=1.0)
    assert always("a red dog and Dog", random.Random(0)) == "a rot Hund and Dog"
    assert CodeSwitcher(dictionary=words, sentence_probability=0.0)("a dog", random.Random(0)) == "a dog"
    kept = CodeSwitcher(dictionary=words, sentence_probability=1.0, word_probability=0.0)
    assert kept("a dog", random.Random(0)) == "a dog"
    with pytest.raises(ConfigError, match="word_probability=2"):
        CodeSwitcher(dictionary=words, word_probability=2)
    with pytest.raises(InputError, match="'dog'"):
        CodeSwitcher(dictionary={"dog": {"de": []}})


def test_a_region_that_nobody_knows_is_not_masked() -> None:
    features = torch.ones(3, 2)
    masked = mask_known_regions(features, [0, 4, 5], random.Random(0), probability=1.0, zero_share=1.0)
    assert masked.labels.tolist() == [-1, 4, 5]
    assert masked.features.sum(1).tolist() == [2, 0, 0]
    last = mask_known_regions(features, [0, 4, 5], random.Random(0), probability=1e-9)
    assert last.labels.tolist() == [-1, -1, 5]
    assert torch.equal(last.features, features)
    with pytest.raises(InputError, match="3 regions"):
        mask_known_regions(features, [1], random.Random(0))
