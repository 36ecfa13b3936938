"""DistilBERT beyond what tests/models/test_equivalence.py asks transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import zoo
from zoo.errors import InputError

SIZES = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 5,
    "max_positions": 9,
}
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
REAL = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def build(task: str | None = None, **fields: Any) -> Any:
    return zoo.create("distilbert-base", task=task, dtype=torch.float64, **{**SIZES, **fields})


def test_segments_are_refused_and_zeros_are_taken():
    model = build().eval()
    with pytest.raises(InputError, match="no segments"):
        model(IDS, REAL, token_type_ids=torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]))
    with torch.no_grad():
        assert torch.equal(
            model(IDS, REAL, torch.zeros_like(IDS)).last_hidden_state, model(IDS, REAL).last_hidden_state
        )


def test_dropout_acts_in_embeddings_attention_and_feed_forward_but_not_behind_attentions_output():
    model = build(num_layers=1, dropout=0.5, attention_dropout=0.0)
    block = model.encoder.blocks[0].train()
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    from zoo.layers import Mask

    seen: list[Tensor] = []
    block.attention_norm.register_forward_hook(lambda _module, given, _result: seen.append(given[0]))
    with torch.no_grad():
        states = [block(x, Mask()) for _ in range(2)]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(states[0], states[1])


def test_a_pre_trained_file_leaves_pooler_and_classifier_to_chance_and_a_fine_tuned_one_does_not():
    config = transformers.DistilBertConfig(
        vocab_size=19, dim=8, n_layers=2, n_heads=2, hidden_dim=5, max_position_embeddings=9
    )
    config.num_labels = 3
    pre_trained = transformers.DistilBertForMaskedLM(config)
    started = zoo.load(pre_trained.state_dict(), config=config.to_dict(), task="sequence-classification", num_labels=3)
    assert {name.split(".")[0] for name in started.load_report.random} == {"pooler", "heads"}
    tuned = transformers.DistilBertForSequenceClassification(config).eval()
    ours = zoo.load(tuned.state_dict(), config=config.to_dict(), task="sequence-classification")
    assert not ours.load_report.random
    with torch.no_grad():
        assert torch.allclose(ours(IDS, REAL).logits, tuned(input_ids=IDS, attention_mask=REAL).logits, atol=1e-6)
    bare = zoo.load(tuned.state_dict(), config=config.to_dict())
    assert bare.pooler is not None  # the file has the layer, so it is kept
    assert zoo.load(pre_trained.state_dict(), config=config.to_dict()).pooler is None


def test_a_config_in_the_words_of_other_models_is_understood():
    from zoo.maps import layouts

    keymap = layouts.load("hf-distilbert")
    assert (
        keymap.config_forward({"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2})["num_layers"] == 3
    )
