"""VECO for generation: its file is told from BART's by the architecture's name, and the language comes
first.
"""

from __future__ import annotations

import math

import pytest
import torch

import zoo
from tests.references.case import golden_cases, load_case

CASE = load_case(golden_cases("veco/nlg-seq2seq")[0])


@pytest.mark.parametrize(("arch", "family"), [("veco_large", "Veco"), ("bart_large", "Bart")])
def test_the_name_of_the_architecture_tells_veco_from_bart(arch, family):
    model = zoo.load(CASE.weights, config={**CASE.config, "arch": arch})
    assert type(model).__name__ == family


def test_tokens_are_scaled_where_the_file_does_not_say():
    stated = {name: value for name, value in CASE.config.items() if name != "no_scale_embedding"}
    model = zoo.load(CASE.weights, config=stated, layout="fairseq-veco")
    small = {"num_layers": 1, "decoder_num_layers": 1, "hidden_size": 16, "vocab_size": 40}
    assert model.embeddings.scale == model.decoder.embeddings.scale == math.sqrt(32)
    assert zoo.create("veco-large", **small).embeddings.scale == math.sqrt(16)


def test_a_target_begins_with_its_language_which_ends_the_labels():
    small = {"num_layers": 1, "decoder_num_layers": 1, "hidden_size": 16, "vocab_size": 40}
    model = zoo.create("veco-large", task="conditional-generation", **small).eval()
    labels = torch.tensor([[7, 2, 38, -100], [7, 8, 2, 39]])
    assert model.model.decoder_inputs(labels)[:, 0].tolist() == [38, 39]
